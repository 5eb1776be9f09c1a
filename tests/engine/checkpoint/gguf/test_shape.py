"""What metadata say of a model is what its config.json says; what is not supported is named."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from engine.checkpoint.generation_config import read_sampling, unused_keys
from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.opening import open_source
from engine.checkpoint.source import Folder
from engine.deciding.request import Sampling
from tests.engine.checkpoint.gguf.writing import Tensors, plain, shape, write

SIZES = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 300}
SIZES |= {"eos_token_id": 2, "head_dim": 16, "rms_norm_eps": 2.0**-18}  # as float32 has it, too
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"rope_theta": 5e5},
    "Mistral": {"sliding_window": None},
    "Qwen2": {"rope_theta": 1e6},
    "Qwen3": {"head_dim": 32},
}


def embedding(tied: bool = False) -> Tensors:
    """As much of the tensors as a shape is read from."""
    table = np.zeros((97, 64), np.float32), "F32"
    return {"token_embd.weight": table} | ({} if tied else {"output.weight": table})


def file_of(path: Path, metadata: dict[str, Any], tensors: Tensors | None = None) -> Path:
    stated = {key: value for key, value in metadata.items() if value is not None}
    return write(path / "s.gguf", stated, embedding() if tensors is None else tensors)


def llama(**changes: Any) -> dict[str, Any]:
    """The metadata of a Llama, changed."""
    changed = {f"llama.{key.replace('__', '.')}": value for key, value in changes.items()}
    return shape(transformers.LlamaConfig(**SIZES)) | plain(97) | changed


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_is_what_the_family_s_config_json_says(
    family: str, tied: bool, tmp_path: Path
) -> None:
    changes = SIZES | FAMILIES[family] | {"tie_word_embeddings": tied}
    config = getattr(transformers, f"{family}Config")(**changes)
    config.save_pretrained(tmp_path)
    path = file_of(tmp_path, shape(config) | plain(97), embedding(tied))
    wanted = Folder(tmp_path).model_config()
    is_llama = family == "Mistral"  # GGUF has one architecture for both
    expected = replace(wanted, architecture="LlamaForCausalLM") if is_llama else wanted
    assert open_source(path).model_config() == expected


def test_what_is_left_out_is_what_llama_cpp_takes(tmp_path: Path) -> None:
    left_out = ("attention__head_count_kv", "attention__key_length", "attention__value_length")
    left_out += ("rope__dimension_count", "rope__freq_base")
    found = open_source(file_of(tmp_path, llama(**dict.fromkeys(left_out)))).model_config()
    assert (found.num_kv_heads, found.head_dim, found.rope.theta) == (4, 16, 10000.0)


def test_a_window_limits_the_context(tmp_path: Path) -> None:
    found = open_source(file_of(tmp_path, llama(attention__sliding_window=64))).model_config()
    assert found.max_positions == 64
    assert "limited to 64 of 300 tokens" in found.context_note
    for unlimited in (0, 300):
        more = llama(attention__sliding_window=unlimited)
        assert open_source(file_of(tmp_path, more)).model_config().max_positions == 300


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("Q8_0", "bfloat16")]
)
def test_the_dtype_is_one_that_holds_the_weights(kind: str, dtype: str, tmp_path: Path) -> None:
    raw = (
        np.zeros((64, 68), np.uint8)
        if kind == "Q8_0"
        else np.zeros((64, 64), f"f{int(kind[1:]) // 8}")
    )
    tensors = embedding() | {"blk.0.attn_q.weight": (raw, kind)}
    assert open_source(file_of(tmp_path, llama(), tensors)).model_config().dtype == dtype


def test_a_digest_is_of_the_shape_and_of_no_weight(tmp_path: Path) -> None:
    def digest(metadata: dict[str, Any], fill: float = 0.0) -> str:
        table = np.full((97, 64), fill, np.float32), "F32"
        path = file_of(tmp_path, metadata, {"token_embd.weight": table})
        return open_source(path).shape_digest()

    assert digest(llama()) == digest(llama(), fill=1.0)
    assert digest(llama()) == digest(llama() | {"general.name": "other"})
    assert digest(llama()) != digest(llama(feed_forward_length=64))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": (
        {"general.architecture": "mamba"},
        "general.architecture 'mamba' is not supported; supported are llama, qwen2, qwen3",
    ),
    "no layers": (llama(block_count=0), "llama.block_count must be a whole number from 1"),
    "layers of text": (llama(block_count="2"), "llama.block_count must be a whole number"),
    "no context": (llama(context_length=None), "llama.context_length must .* is missing"),
    "heads by layer": (llama(attention__head_count=[4, 4]), "head_count must be a whole number"),
    "no heads": (llama(attention__head_count=0), "attention.head_count must be a whole number"),
    "more heads than width": (llama(attention__head_count=65), "head_count must be .* 1 to 64"),
    "heads that do not divide": (
        llama(attention__head_count_kv=3),
        r"llama.attention.head_count_kv must .* head_count \(4\) is a multiple, got 3",
    ),
    "another width": (llama(embedding_length=32), "embedding_length must be 64, as token_embd"),
    "values of another size": (llama(attention__value_length=8), "value_length must be the size"),
    "rotated in part": (
        llama(rope__dimension_count=8),
        "dimension_count must be the size of",
    ),
    "heads of odd size": (
        llama(attention__key_length=15, attention__value_length=15, rope__dimension_count=15),
        "llama.attention.key_length makes heads of size 15, which must be even .* got 15",
    ),
    "heads of a size that turns out odd": (
        llama(
            attention__head_count=64,
            attention__head_count_kv=None,
            attention__key_length=None,
            attention__value_length=None,
            rope__dimension_count=None,
        ),
        "llama.attention.head_count makes heads of size 1, which must be even .* got 64",
    ),
    "no eps": (
        llama(attention__layer_norm_rms_epsilon=None),
        "layer_norm_rms_epsilon must be a number from 0 to 1, and is missing",
    ),
    "eps of nothing": (
        llama(attention__layer_norm_rms_epsilon=float("nan")),
        "layer_norm_rms_epsilon must be a number from 0 to 1, got nan",
    ),
    "theta of nothing": (llama(rope__freq_base=float("inf")), "rope.freq_base must be a number"),
    "yarn": (
        llama(rope__scaling__type="yarn", rope__scaling__factor=4.0),
        r"llama.rope.scaling.type is not supported \(none and linear are\), got 'yarn'",
    ),
    "a factor below one": (
        llama(rope__scaling__type="linear", rope__scaling__factor=0.5),
        "llama.rope.scaling.factor must be at least 1, got 0.5",
    ),
    "an old factor below one": (
        llama(rope__scale_linear=0.5),
        "llama.rope.scale_linear must be at least 1, got 0.5",
    ),
    "experts": (llama(expert_count=8), "llama.expert_count asks for a feature .* got 8"),
    "caps": (llama(attn_logit_softcapping=50.0), "llama.attn_logit_softcapping asks for"),
    "fewer tokens": (
        llama() | {"tokenizer.ggml.tokens": ["\u0100", "\u0101", "\u0100\u0101"]},
        "tokenizer.ggml.tokens has 3 tokens, but token_embd.weight 97 rows",
    ),
    "an end beyond": (
        llama() | {"tokenizer.ggml.eot_token_id": 97},
        "eot_token_id must be a whole number from 0 to 96",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_keys_that_make_no_model_are_named(wrong: str, tmp_path: Path) -> None:
    metadata, message = WRONG[wrong]
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(file_of(tmp_path, metadata)).model_config()
    assert "\n" not in str(caught.value)


def test_any_value_of_any_key_makes_a_shape_or_is_refused(tmp_path: Path) -> None:
    values: list[Any] = [True, 0, 1, 2**31, 2**32 - 1, 0.0, -1.0, 1e38, float("nan"), "", "x"]
    values += [[1], ["x"], [0.5], [True]]
    for key in llama():
        for value in values:
            source = open_source(file_of(tmp_path, llama() | {key: value}))
            with contextlib.suppress(CheckpointError):  # and nothing else
                assert isinstance(source.model_config(), ModelConfig)


def test_sampling_that_a_file_recommends_is_the_default(tmp_path: Path) -> None:
    assert read_sampling(open_source(file_of(tmp_path, llama()))) == Sampling()
    stated = {"temp": 0.25, "top_k": 40, "top_p": 0.5, "min_p": 0.125, "penalty_repeat": 1.5}
    stated |= {"mirostat": 2, "xtc_probability": 0.0}
    metadata = llama() | {f"general.sampling.{key}": value for key, value in stated.items()}
    source = open_source(file_of(tmp_path, metadata))
    expected = Sampling(temperature=0.25, top_k=40, top_p=0.5, min_p=0.125, repetition_penalty=1.5)
    assert read_sampling(source) == expected
    assert unused_keys(source) == ["general.sampling.mirostat"]
    for key, value, message in (
        ("temp", -1.0, r"s\.gguf: temperature must"),
        ("temp", "hot", r"s\.gguf: general\.sampling\.temp must be a number"),
        ("top_k", 0.5, r"s\.gguf: general\.sampling\.top_k must be a whole number"),
    ):
        wrong = open_source(file_of(tmp_path, llama() | {f"general.sampling.{key}": value}))
        with pytest.raises(CheckpointError, match=message):
            read_sampling(wrong)
