"""Models in GGUF files compute what transformers computes from the same weights, as the package
gguf unpacks them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from engine.checkpoint.gguf.header import PACKINGS
from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.opening import open_source
from engine.computing.gguf_tensors import PIECE
from engine.computing.loading import load
from engine.computing.model import inverse_frequencies
from engine.computing.runner import ModelExecutor
from engine.computing.unpacking import unpack
from engine.computing.weights import load_model
from engine.deciding.plan import Chunk
from tests.engine.checkpoint.gguf.writing import (
    Tensors,
    packed,
    plain,
    shape,
    stored,
    write,
)
from tests.engine.computing.parts import (
    LLAMA3,
    VOCAB,
    Saved,
    make_executor,
    make_plan,
    make_saved,
    make_sequence,
)

TOLERANCE = 1e-4
QUANTIZES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # the package can
# Where in a block the others have their scales and minima, as float16.
SCALES = {
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)},
    **{"IQ4_NL": (0,), "IQ4_XS": (0,)},
}
# Every family; of `llama` also what only the tensors say.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 1, "head_dim": 16}),
}


def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def random_blocks(kind: str, rows: int, weights: int) -> np.ndarray:
    """Any bytes, as all are good, but for scales that make weights of about 0.1 of them."""
    packing = PACKINGS[kind]
    blocks = rows * weights // packing.weights
    raw = generator().integers(0, 256, (blocks, packing.bytes), dtype=np.uint8)
    size = 1.0
    for _ in range(2):
        for at in SCALES[kind]:
            scales = (size * generator().uniform(0.5, 1, (blocks, 1))).astype(np.float16)
            raw[:, at : at + 2] = scales.view(np.uint8)
        size = 0.1 / gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]).std()
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", PACKINGS)
def test_every_type_is_unpacked_as_the_package_does_it(kind: str) -> None:
    if kind in QUANTIZES:
        values = generator().normal(0, 1, (6, 768)).astype(np.float32)
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    else:
        raw = random_blocks(kind, 6, 768)
    wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    found = unpack(torch.from_numpy(np.ascontiguousarray(raw).view(np.uint8)).flatten(), kind)
    assert np.isfinite(wanted).all()
    assert len(np.unique(wanted)) > 100
    assert np.array_equal(found.numpy().reshape(wanted.shape), wanted)
    assert PACKINGS[kind] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert PIECE % PACKINGS[kind].weights == 0


def export(path: Path, saved: Saved, kind: str, **more: Any) -> tuple[Path, Tensors]:
    """Writes a model, and has transformers compute with what its tensors have become."""
    tensors = packed(saved.model, kind)
    metadata = shape(saved.model.config) | plain(saved.model.config.vocab_size) | more
    return write(path / f"{kind}.gguf", metadata, tensors), tensors


def take(model: transformers.PreTrainedModel, kind: str) -> None:
    """Gives a model's matrices the values that they have when they are stored as this type."""
    packing = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                raw = gguf.quants.quantize(parameter.numpy(), packing)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(raw, packing)))


def check_logits(path: Path, model: transformers.PreTrainedModel, texts: torch.Tensor) -> None:
    with torch.no_grad():
        wanted = model(texts).logits
    executor = make_executor(path)
    assert executor.config.num_parameters == model.num_parameters()
    for text, logits in zip(texts, wanted, strict=True):
        for length in (1, len(text) // 2, len(text)):
            sequence = make_sequence(text[:length].tolist(), range(math.ceil(length / 4)))
            executor.run(make_plan(chunks=[Chunk(sequence, 0, length, True)]))
            found = executor.logits[0]
            torch.testing.assert_close(found, logits[length - 1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "Q8_0") for name in MODELS), *(("qwen2", kind) for kind in QUANTIZES[:-1])],
)
def test_logits_equal_transformers_given_the_same_weights(
    name: str, kind: str, tmp_path: Path
) -> None:
    family, changes = MODELS[name]
    saved = make_saved(family, {"intermediate_size": 64, **changes}, tmp_path / "hf")
    path, _ = export(tmp_path, saved, kind)
    take(saved.model, kind)
    check_logits(path, saved.model, saved.texts[:2])


@pytest.mark.parametrize("kind", SCALES)
def test_logits_equal_transformers_for_types_that_only_llama_cpp_writes(
    kind: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
    saved = make_saved("Qwen2", sizes, tmp_path / "hf")
    _, tensors = export(tmp_path, saved, "F32")
    with torch.no_grad():
        for name, parameter in saved.model.named_parameters():
            if parameter.dim() == 2:
                raw = random_blocks(kind, *parameter.shape)
                tensors[stored(name)] = raw, kind
                values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
                parameter.copy_(torch.from_numpy(values))
    metadata = shape(saved.model.config) | plain(VOCAB)
    check_logits(write(tmp_path / "m.gguf", metadata, tensors), saved.model, saved.texts[:1])


def test_a_tensor_larger_than_a_piece_is_read_whole(tmp_path: Path) -> None:
    saved = make_saved(
        "Llama", {"intermediate_size": 32800, "num_hidden_layers": 1}, tmp_path / "hf"
    )
    path, _ = export(tmp_path, saved, "Q8_0")
    take(saved.model, "Q8_0")
    model = load_model(path)
    assert model.blocks[0].down.weight.numel() > PIECE
    wanted = saved.model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(model.blocks[0].down.weight, wanted.t())


def test_llama_3_s_scaling_comes_from_what_its_tensor_divides_by(tmp_path: Path) -> None:
    """As the converter of llama.cpp writes it: the plain frequency over the scaled one."""
    saved = make_saved("Llama", {"rope_parameters": LLAMA3}, tmp_path / "hf")
    stated = open_source(tmp_path / "hf").model_config()
    kept = open_source(export(tmp_path, saved, "F32")[0]).model_config()
    plainly, scaled = (inverse_frequencies(c.rope, 8) for c in (kept, stated))
    assert not torch.equal(plainly, scaled)
    tensors = packed(saved.model, "F32") | {
        "rope_freqs.weight": ((plainly / scaled).numpy(), "F32")
    }
    metadata = shape(saved.model.config) | plain(VOCAB)
    check_logits(write(tmp_path / "m.gguf", metadata, tensors), saved.model, saved.texts)


@pytest.mark.parametrize(
    "more",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},  # linear is meant where no type is stated
        {"llama.rope.scale_linear": 4.0},
    ],
)
def test_linear_scaling_has_an_old_key_and_a_new_one(more: dict[str, Any], tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    saved = make_saved("Llama", {"rope_parameters": rope}, tmp_path / "hf")
    check_logits(export(tmp_path, saved, "F32", **more)[0], saved.model, saved.texts[:2])


def prefilled(executor: ModelExecutor, text: torch.Tensor) -> torch.Tensor:
    """The logits after a text."""
    found: list[torch.Tensor] = []
    executor.model.register_forward_hook(lambda *made: found.append(made[-1]))
    sequence = make_sequence(text.tolist(), range(8))
    executor.run(make_plan(chunks=[Chunk(sequence, 0, len(text), True)]))
    return found[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_options_of_loading_hold_for_it_too(dtype: str, tmp_path: Path) -> None:
    saved = make_saved("Llama", {"intermediate_size": 64}, tmp_path / "hf")
    path, _ = export(tmp_path, saved, "Q8_0")
    take(saved.model, "Q8_0")
    saved.model.save_pretrained(tmp_path / "hf")
    for quantize in ("none", "int8"):
        found, wanted = (
            prefilled(load(source, dtype=dtype, quantize=quantize, num_pages=8), saved.texts[0])
            for source in (path, tmp_path / "hf")
        )
        assert torch.equal(found, wanted)


def drop(tensors: Tensors) -> None:
    del tensors["blk.1.ffn_up.weight"]


def misshape(tensors: Tensors) -> None:
    tensors["output_norm.weight"] = np.ones(3, np.float32), "F32"


def add_one(tensors: Tensors) -> None:
    tensors["blk.0.attn_sinks"] = np.ones(4, np.float32), "F32"


def stack(tensors: Tensors) -> None:
    tensors["token_embd.weight"] = np.ones((1, VOCAB, 32), np.float32), "F32"


WRONG = {
    "missing tensor": (drop, "lacks the tensor blk.1.ffn_up.weight"),
    "missing embedding": (lambda t: t.pop("token_embd.weight"), "lacks the tensor token_embd"),
    "misshapen tensor": (misshape, r"output_norm.weight has shape \[3\]; .* \[32\]"),
    "misshapen embedding": (stack, r"token_embd.weight has the shape \[1, 97, 32\]"),
    "a tensor of no use": (add_one, "no use: 'blk.0.attn_sinks'"),
    "divisors too many": (
        lambda t: t.update({"rope_freqs.weight": (np.ones(5, np.float32), "F32")}),
        r"rope_freqs.weight is F32 of shape \[5\]; F32 of shape \[4\]",
    ),
    "divisors of nothing": (
        lambda t: t.update({"rope_freqs.weight": (np.zeros(4, np.float32), "F32")}),
        "m.gguf: rope_freqs.weight must hold positive numbers",
    ),
    "divisors without an end": (
        lambda t: t.update({"rope_freqs.weight": (np.full(4, np.inf, np.float32), "F32")}),
        "m.gguf: rope_freqs.weight must hold positive numbers",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tensors_that_do_not_fit_the_metadata_are_named(wrong: str, tmp_path: Path) -> None:
    spoil, message = WRONG[wrong]
    saved = make_saved("Llama", {}, tmp_path / "hf")
    tensors = packed(saved.model, "F32")
    spoil(tensors)
    path = write(tmp_path / "m.gguf", shape(saved.model.config) | plain(VOCAB), tensors)
    with pytest.raises(CheckpointError, match=message):
        load(path, num_pages=1)


def test_a_file_that_became_shorter_meanwhile_is_refused(tmp_path: Path) -> None:
    saved = make_saved("Llama", {}, tmp_path / "hf")
    path, _ = export(tmp_path, saved, "F32")
    source = open_source(path)
    header = source.header
    path.write_bytes(path.read_bytes()[:-8])
    last = max(header.tensors.values(), key=lambda tensor: tensor.start)
    with pytest.raises(CheckpointError, match="changed or replaced while it was being read"):
        header.read(last, 0, last.num_bytes)
    with pytest.raises(CheckpointError, match="ends too early"):
        load(path, num_pages=1)


def test_a_file_that_was_replaced_meanwhile_is_refused(tmp_path: Path) -> None:
    """The places of its tensors may be others, and nothing of the new file's would show that."""
    saved = make_saved("Llama", {}, tmp_path / "hf")
    path, _ = export(tmp_path, saved, "F32")
    header = open_source(path).header
    (tmp_path / "new").write_bytes(path.read_bytes())
    (tmp_path / "new").rename(path)
    tensor = header.tensors["output_norm.weight"]
    with pytest.raises(CheckpointError, match="changed or replaced while it was being read"):
        header.read(tensor, 0, tensor.num_bytes)
