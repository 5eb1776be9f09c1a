"""Reads a model's weights from a checkpoint, or draws them for benchmarks.

Anything missing or misshapen is a CheckpointError of one line that names it, before memory is taken
for any of it. Weights are converted to one dtype, and put side by side as the model has them: q, k,
v in one matrix [in, out], gate and up in another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint.gguf.source import GgufFile
from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.opening import open_source
from engine.checkpoint.source import Source
from engine.computing.gguf_tensors import GgufTensors
from engine.computing.linear import Linear
from engine.computing.model import Block, Decoder
from engine.computing.tensor_files import TensorFiles, Tensors


def load_model(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Loads the model of the checkpoint at a path, with its weights in `dtype` on `device`. Raises
    CheckpointError where it cannot be, be it that there is no memory for it.
    """
    source = open_source(path)
    config = source.model_config()
    files = check_weights(source, config)
    check_memory(config, dtype, torch.device(device))
    try:
        model = Decoder(config, dtype, device)
    except RuntimeError as error:  # torch.OutOfMemoryError, or the CPU allocator's
        raise CheckpointError(f"no memory for the weights: {error}") from error
    with torch.inference_mode():
        model.embedding.copy_(files.read("model.embed_tokens.weight", dtype))
        if not config.tied_embeddings:
            model.head.weight.copy_(files.read("lm_head.weight", dtype).t())
        model.norm.copy_(files.read("model.norm.weight", dtype))
        for index, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            _fill(block, files, f"model.layers.{index}.", dtype)
    return model


def check_weights(source: Source, config: ModelConfig) -> Tensors:
    """Opens a checkpoint's tensors, which are every one that the model needs; otherwise raises
    CheckpointError.
    """
    files: Tensors
    if isinstance(source, GgufFile):
        files = GgufTensors(source.header, config)
    else:
        files = TensorFiles(source.path)
    files.check(tensors_of(config))
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
            f" positions, as the checkpoint states them: {needed >> 20} MiB of {most >> 20}"
        )


# The names of what `_fill` puts side by side in one matrix, in that order.
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def tensors_of(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
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


def _fill(block: Block, files: Tensors, prefix: str, dtype: torch.dtype) -> None:
    """Copies into a layer the tensors whose names begin with `prefix`."""

    def linear(into: Linear, *parts: str) -> None:
        weights = [files.read(f"{prefix}{name}.weight", dtype) for name in parts]
        into.weight.copy_(torch.cat(weights).t())
        if into.bias is not None:
            biases = [files.read(f"{prefix}{name}.bias", dtype) for name in parts]
            into.bias.copy_(torch.cat(biases))

    def vector(into: Tensor | None, name: str) -> None:
        if into is not None:
            into.copy_(files.read(f"{prefix}{name}.weight", dtype))

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
