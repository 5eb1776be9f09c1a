"""Reads a model's weights from a Hugging Face checkpoint folder, or draws them for benchmarks.

A folder holds config.json and model.safetensors, or shards with model.safetensors.index.json
(https://huggingface.co/docs/safetensors). Anything missing or misshapen is a CheckpointError of
one line that names it, before memory is taken for any of it. Weights are converted to one dtype,
and put side by side as the model has them: q, k, v in one matrix [in, out], gate and up in another.

An index may name files of its own folder only. Where they lead is not looked at, because a snapshot
of the hub is a folder of links out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoint.json_file import CheckpointError, Keys, read_json, shown
from engine.checkpoint.model_config import ModelConfig
from engine.computing.linear import Linear
from engine.computing.model import Block, Decoder

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")  # as the files name them
_SHARD = re.compile(r"[^/\\]+\.safetensors")
# What GPTQ and AWQ, compressed-tensors, and bitsandbytes put in the place of a weight.
_QUANTIZED = ("qweight", "weight_packed", "weight.absmax")


class TensorFiles:
    """The named tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = _tensor_files(folder)
        self._open = {name: _open(folder / name) for name in sorted(set(self._file_of.values()))}
        names = {name: frozenset(file.keys()) for name, file in self._open.items()}
        for tensor, name in self._file_of.items():
            if tensor not in names[name]:
                raise CheckpointError(f"{name} lacks tensor {shown(tensor)} of {INDEX} in {folder}")

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises CheckpointError where the tensor is missing, has another shape than this, or holds
        no floats.
        """
        if name not in self._file_of:
            raise CheckpointError(
                f"checkpoint {self.folder} lacks tensor {name}{self._instead(name)}"
            )
        found = self._open[self._file_of[name]].get_slice(name)
        if tuple(found.get_shape()) != shape:
            raise CheckpointError(
                f"tensor {name} in {self.folder} has shape {found.get_shape()};"
                f" config.json asks for {list(shape)}"
            )
        if found.get_dtype() not in _FLOATS:
            raise CheckpointError(
                f"tensor {name} in {self.folder} is {found.get_dtype()};"
                f" {', '.join(_FLOATS)} are supported"
            )

    def read(self, name: str) -> Tensor:
        """Reads a tensor that was checked, in the dtype of its file."""
        tensor: Tensor = self._open[self._file_of[name]].get_tensor(name)
        return tensor

    def _instead(self, name: str) -> str:
        """Says what a quantized checkpoint has in the place of this matrix, or nothing."""
        stem = name.removesuffix(".weight")
        found = [f"{stem}.{kind}" for kind in _QUANTIZED if f"{stem}.{kind}" in self._file_of]
        return f"; it has {found[0]}: quantized weights are not supported" if found else ""


def _tensor_files(folder: Path) -> dict[str, str]:
    """Maps the name of each tensor to that of the file that holds it."""
    if (folder / INDEX).exists():
        weight_map = Keys(read_json(folder / INDEX), INDEX).table("weight_map").raw
        if not weight_map:
            raise CheckpointError(f"{INDEX} has no weight_map (in {folder})")
        for name in weight_map.values():
            _check_name(name)
        for name in sorted(set(weight_map.values())):
            if not (folder / name).is_file():
                raise CheckpointError(f"checkpoint {folder} lacks shard {shown(name)}")
        return dict(weight_map)
    if not (folder / SINGLE).is_file():
        hint = "; pytorch_model.bin is not read" if any(folder.glob("pytorch_model*.bin")) else ""
        raise CheckpointError(f"no {SINGLE} or {INDEX} in {folder}{hint}")
    return dict.fromkeys(_open(folder / SINGLE).keys(), SINGLE)


def _check_name(shard: object) -> None:
    """Raises CheckpointError where an index names what is no safetensors file of its own folder."""
    if type(shard) is not str or not shard.isprintable() or not _SHARD.fullmatch(shard):
        raise CheckpointError(
            f"{INDEX}: weight_map must name .safetensors files of its folder, got {shown(shard)}"
        )


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is not a safetensors file: {error} (in {path.parent})"
        ) from error


def read_config(folder: Path) -> ModelConfig:
    """Reads the model's shape. Raises CheckpointError where the folder is none, or its config.json
    is no good.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder {folder}")
    return ModelConfig.from_folder(folder)


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Loads the model of a checkpoint folder, with its weights in `dtype` on `device`. Raises
    CheckpointError where it cannot be, be it that there is no memory for it.
    """
    config = read_config(folder)
    files = check_weights(folder, config)
    check_memory(config, dtype, torch.device(device))
    try:
        model = Decoder(config, dtype, device)
    except RuntimeError as error:  # torch.OutOfMemoryError, or the CPU allocator's
        raise CheckpointError(f"no memory for the weights: {error}") from error
    with torch.inference_mode():
        model.embedding.copy_(files.read("model.embed_tokens.weight"))
        if not config.tied_embeddings:
            model.head.weight.copy_(files.read("lm_head.weight").t())
        model.norm.copy_(files.read("model.norm.weight"))
        for index, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            _fill(block, files, f"model.layers.{index}.")
    return model


def check_weights(folder: Path, config: ModelConfig) -> TensorFiles:
    """Opens the files of a folder, which have every tensor that the model needs; otherwise raises
    CheckpointError.
    """
    files = TensorFiles(folder)
    for name, shape in _tensors(config):
        files.check(name, shape)
    return files


def check_memory(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raises CheckpointError where all the memory of the device is less than the weights and the
    rotary table take.
    """
    if device.type == "cuda":
        most = torch.cuda.mem_get_info(device)[1]
    else:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rotary = 2 * config.max_positions * config.head_dim * torch.float32.itemsize
    needed = config.num_parameters * dtype.itemsize + rotary
    if needed > most:
        raise CheckpointError(
            f"no memory for {config.num_parameters} parameters and {config.max_positions}"
            f" positions (config.json): {needed >> 20} MiB of {most >> 20}"
        )


# The names of what `_fill` puts side by side in one matrix, in that order.
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def _tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the names and shapes of all tensors that a checkpoint of such a model holds."""
    table = (config.vocab_size, config.hidden_size)
    yield "model.embed_tokens.weight", table
    if not config.tied_embeddings:
        yield "lm_head.weight", table
    yield "model.norm.weight", table[1:]
    e, d, f = config.hidden_size, config.head_dim, config.intermediate_size
    q, kv = config.num_heads * d, config.num_kv_heads * d
    linears = [
        *((name, size, e, config.qkv_bias) for name, size in zip(_QKV, (q, kv, kv), strict=True)),
        ("self_attn.o_proj", e, q, config.out_bias),
        *((name, f, e, config.mlp_bias) for name in _GATE_UP),
        ("mlp.down_proj", e, f, config.mlp_bias),
    ]
    norms = {"input_layernorm": e, "post_attention_layernorm": e}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": d, "self_attn.k_norm": d}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, size in norms.items():
            yield f"{prefix}{name}.weight", (size,)
        for name, outputs, inputs, has_bias in linears:
            yield f"{prefix}{name}.weight", (outputs, inputs)
            if has_bias:
                yield f"{prefix}{name}.bias", (outputs,)


def _fill(block: Block, files: TensorFiles, prefix: str) -> None:
    """Copies into a layer the tensors whose names begin with `prefix`."""

    def linear(into: Linear, *parts: str) -> None:
        into.weight.copy_(torch.cat([files.read(f"{prefix}{n}.weight") for n in parts]).t())
        if into.bias is not None:
            into.bias.copy_(torch.cat([files.read(f"{prefix}{n}.bias") for n in parts]))

    def vector(into: Tensor | None, name: str) -> None:
        if into is not None:
            into.copy_(files.read(f"{prefix}{name}.weight"))

    vector(block.attention_norm, "input_layernorm")
    vector(block.mlp_norm, "post_attention_layernorm")
    vector(block.q_norm, "self_attn.q_norm")
    vector(block.k_norm, "self_attn.k_norm")
    linear(block.qkv, *_QKV)
    linear(block.out, "self_attn.o_proj")
    linear(block.gate_up, *_GATE_UP)
    linear(block.down, "mlp.down_proj")


def random_model(
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Decoder:
    """Makes a model of this shape with random weights, for benchmarks and tests; norms are 1."""
    model = Decoder(config, dtype, device)
    generator = torch.Generator(torch.device(device)).manual_seed(seed)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if name.endswith("norm"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model
