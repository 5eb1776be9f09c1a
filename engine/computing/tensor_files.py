"""The safetensors files of a Hugging Face checkpoint folder.

It holds model.safetensors, or shards with model.safetensors.index.json
(https://huggingface.co/docs/safetensors). An index may name files of its own folder only. Where
they lead is not looked at, because a snapshot of the hub is a folder of links out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoint.json_file import CheckpointError, Keys, read_json, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")  # as the files name them
_SHARD = re.compile(r"[^/\\]+\.safetensors")
# What GPTQ and AWQ, compressed-tensors, and bitsandbytes put in the place of a weight.
_QUANTIZED = ("qweight", "weight_packed", "weight.absmax")


class Tensors(Protocol):
    """The tensors of a checkpoint, by the names that a Hugging Face folder has for them."""

    def check(self, wanted: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Raises CheckpointError where one of the tensors is missing, has another shape than the
        one beside its name, or holds no floats.
        """

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Reads a tensor that was checked."""


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

    def check(self, wanted: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        for name, shape in wanted:
            self._check(name, shape)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
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

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor: Tensor = self._open[self._file_of[name]].get_tensor(name)
        return tensor.to(dtype)

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
