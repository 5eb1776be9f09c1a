"""Weights from a Hugging Face checkpoint folder, or at random for benchmarks.

A folder holds config.json and model.safetensors, or shards with model.safetensors.index.json
(https://huggingface.co/docs/safetensors). Anything missing or misshapen is a CheckpointError of
one line that names it. Weights are converted to one dtype, with q, k, v in one matrix [in, out]
and gate, up in another.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.computing.config import CheckpointError, ModelConfig, read_json
from engine.computing.linear import Linear
from engine.computing.model import Block, Decoder

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class TensorFiles:
    """The named tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = _tensor_files(folder)
        self._open = {name: _open(folder / name) for name in sorted(set(self._file_of.values()))}
        for tensor, name in self._file_of.items():
            if tensor not in self._open[name].keys():  # noqa: SIM118 - safe_open has only keys()
                raise CheckpointError(f"{name} in {folder} lacks tensor {tensor} of the index")

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._file_of:
            raise CheckpointError(f"checkpoint {self.folder} lacks tensor {name}")
        file = self._open[self._file_of[name]]
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
            raise CheckpointError(
                f"tensor {name} in {self.folder} has shape {list(found)};"
                f" config.json asks for {list(shape)}"
            )
        tensor = file.get_tensor(name)
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"tensor {name} in {self.folder} is {tensor.dtype}; float32, float16 and bfloat16"
                " are supported"
            )
        return tensor


def _tensor_files(folder: Path) -> dict[str, str]:
    """Name of each tensor to the file that holds it."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / INDEX} has no weight_map")
        for name in sorted(set(weight_map.values())):
            if not (folder / name).is_file():
                raise CheckpointError(f"checkpoint {folder} lacks shard {name}")
        return weight_map
    if not (folder / SINGLE).is_file():
        hint = "; pytorch_model.bin is not read" if any(folder.glob("pytorch_model*.bin")) else ""
        raise CheckpointError(f"no {SINGLE} or {INDEX} in {folder}{hint}")
    return dict.fromkeys(_open(folder / SINGLE).keys(), SINGLE)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def read_config(folder: Path) -> ModelConfig:
    """The model's shape. Raises CheckpointError when the folder or its config.json is no good."""
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder {folder}")
    return ModelConfig.from_folder(folder)


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """The model of a checkpoint folder, its weights in `dtype` on `device`."""
    config = read_config(folder)
    files = TensorFiles(folder)
    model = Decoder(config, dtype, device)
    table = (config.vocab_size, config.hidden_size)
    with torch.inference_mode():
        model.embedding.copy_(files.read("model.embed_tokens.weight", table))
        if not config.tied_embeddings:
            model.head.weight.copy_(files.read("lm_head.weight", table).t())
        model.norm.copy_(files.read("model.norm.weight", (config.hidden_size,)))
        for index, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            _fill(block, config, files, f"model.layers.{index}.")
    return model


def _fill(block: Block, config: ModelConfig, files: TensorFiles, prefix: str) -> None:
    e, d, f = config.hidden_size, config.head_dim, config.intermediate_size
    q, kv = config.num_heads * d, config.num_kv_heads * d

    def linear(into: Linear, inputs: int, *parts: tuple[str, int]) -> None:
        weights = [files.read(f"{prefix}{name}.weight", (size, inputs)) for name, size in parts]
        into.weight.copy_(torch.cat(weights).t())
        if into.bias is not None:
            into.bias.copy_(torch.cat([files.read(f"{prefix}{n}.bias", (m,)) for n, m in parts]))

    def vector(into: Tensor | None, name: str, size: int) -> None:
        if into is not None:
            into.copy_(files.read(f"{prefix}{name}.weight", (size,)))

    vector(block.attention_norm, "input_layernorm", e)
    vector(block.mlp_norm, "post_attention_layernorm", e)
    vector(block.q_norm, "self_attn.q_norm", d)
    vector(block.k_norm, "self_attn.k_norm", d)
    heads = (("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv))
    linear(block.qkv, e, *heads)
    linear(block.out, q, ("self_attn.o_proj", e))
    linear(block.gate_up, e, ("mlp.gate_proj", f), ("mlp.up_proj", f))
    linear(block.down, f, ("mlp.down_proj", e))


def random_model(
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Decoder:
    """A model of this shape with random weights (norms are 1), for benchmarks and tests."""
    model = Decoder(config, dtype, device)
    generator = torch.Generator(torch.device(device)).manual_seed(seed)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if name.endswith("norm"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model
