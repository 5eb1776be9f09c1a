"""Checkpoint folders: those that load, and the one line that a wrong one gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.source import Folder
from engine.checkpoint.tokenizer import Tokenizer
from engine.computing.loading import load
from engine.computing.tensor_files import INDEX, SINGLE
from engine.computing.weights import load_model, random_model
from engine.deciding.plan import Chunk
from tests.engine.computing.parts import (
    CONTEXT,
    Recorder,
    Saved,
    advance,
    make_executor,
    make_plan,
    make_sequence,
)


def prefill(executor: Recorder, tokens: torch.Tensor) -> torch.Tensor:
    sequence = make_sequence(tokens.tolist(), range(CONTEXT // 4))
    executor.run(make_plan(chunks=[Chunk(sequence, 0, len(tokens), True)]))
    return executor.logits[0]


@pytest.fixture
def llama(saved: Callable[[str], Saved]) -> Saved:
    return saved("llama")


@pytest.fixture
def copy(llama: Saved, tmp_path: Path) -> Path:
    """A folder of its own, to be spoilt."""
    return Path(shutil.copytree(llama.folder, tmp_path / "copy"))


def test_a_sharded_folder_computes_the_same(llama: Saved, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    logits = prefill(make_executor(tmp_path), llama.texts[0])
    torch.testing.assert_close(logits, llama.logits[0, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_read(llama: Saved, copy: Path, stored: torch.dtype) -> None:
    halves = {name: t.to(stored) for name, t in load_file(copy / SINGLE).items()}
    save_file(halves, copy / SINGLE)
    logits = prefill(make_executor(copy), llama.texts[0])
    torch.testing.assert_close(logits, llama.logits[0, -1], atol=0.3, rtol=0)
    expected = halves["model.embed_tokens.weight"].float()
    torch.testing.assert_close(load_model(copy).embedding.data, expected, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-biases", "qwen3"])
def test_half_precision_computes_nearly_the_same(
    saved: Callable[[str], Saved], name: str, dtype: str
) -> None:
    """Chunked prefill and a decode; bf16 has 8 bits of mantissa, logits reach about 5."""
    checkpoint = saved(name)
    executor = load(checkpoint.folder, dtype=dtype, num_pages=8)
    sequence = make_sequence(checkpoint.texts[0, :40].tolist(), [6, 1, 3])
    executor.run(make_plan(chunks=[Chunk(sequence, 0, 25, False)]))
    sequence.prefill(25, 0.0)
    last = make_plan(chunks=[Chunk(sequence, 25, 15, True)])
    executor.run(last)
    advance(last, [int(checkpoint.texts[0, 40])])
    logits: list[torch.Tensor] = []
    executor.model.register_forward_hook(lambda *a: logits.append(a[-1].float()))
    executor.run(make_plan([sequence]))
    torch.testing.assert_close(logits[0][0], checkpoint.logits[0, 40], atol=0.25, rtol=0)


def test_load_sizes_memory_and_keeps_the_stored_dtype_when_asked(copy: Path) -> None:
    config = Folder(copy).model_config()
    page = 2 * config.num_kv_heads * config.head_dim * config.num_layers * 16 * 4
    executor = load(copy, dtype="float32", kv_bytes=5 * page + 1)
    assert (executor.num_pages, executor.page_size, executor.dtype) == (5, 16, torch.float32)
    executor.warm_up()
    half = load(copy, dtype="bfloat16", num_pages=2)
    assert half.kv.keys_and_values.dtype == torch.bfloat16
    half.warm_up()
    with pytest.raises(CheckpointError, match="int4"):
        load(copy, dtype="int4", num_pages=1)
    with pytest.raises(CheckpointError, match="no page"):
        load(copy, dtype="float32", kv_bytes=page - 1)
    assert load(copy, num_pages=1).dtype in (torch.float32, torch.bfloat16)  # whichever is faster


def test_random_weights_repeat_from_their_seed(llama: Saved) -> None:
    config = Folder(llama.folder).model_config()
    a, b, c = (random_model(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.blocks[0].qkv.weight, b.blocks[0].qkv.weight)
    assert not torch.equal(a.blocks[0].qkv.weight, c.blocks[0].qkv.weight)
    assert all(torch.isfinite(p).all() for p in a.parameters())


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / SINGLE)


def _misshape_tensor(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    tensors["model.norm.weight"] = torch.zeros(3)
    save_file(tensors, folder / SINGLE)


def _store_integers(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, folder / SINGLE)


def _name_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))


def _name_missing_tensor(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"extra.weight": SINGLE}}))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no checkpoint folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json in"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "no weights": (lambda f: (f / SINGLE).unlink(), "no model.safetensors"),
    "pickled weights": (
        lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"),
        "pytorch_model.bin is not read",
    ),
    "a pointer file": (lambda f: (f / SINGLE).write_text("version x"), "not a safetensors file"),
    "missing shard": (_name_missing_shard, "lacks shard 'model-00002-of-00002.safetensors'"),
    "index names too much": (_name_missing_tensor, "model.safetensors lacks tensor 'extra.weight'"),
    "empty index": (lambda f: (f / INDEX).write_text("{}"), "no weight_map"),
    "missing tensor": (_drop_tensor, r"lacks tensor model.layers.1.mlp.up_proj.weight"),
    "misshapen tensor": (_misshape_tensor, r"model.norm.weight .* shape \[3\]; .* \[32\]"),
    "integer weights": (_store_integers, "lm_head.weight .* is I8; F32, F16, BF16"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_folder_gets_one_line_that_names_what_is_wrong(copy: Path, wrong: str) -> None:
    spoil, message = WRONG[wrong]
    spoil(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(copy, num_pages=1)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_is_named(copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer.model or tokenizer.json in"):
        Tokenizer.load(copy)
