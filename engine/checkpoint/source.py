"""Where a checkpoint is, and what it says: a folder laid out as Hugging Face does, or a source that
answers as one.

Whoever reads a tokenizer or defaults of sampling asks a source for the folder's files by their
names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from engine.checkpoint.json_file import (
    MOST_BYTES,
    CheckpointError,
    read_bytes,
    read_json,
    read_text,
)
from engine.checkpoint.model_config import CONFIG, GENERATION, ModelConfig

_Content = TypeVar("_Content")


class Source(Protocol):
    """A checkpoint. Every method raises CheckpointError for what cannot be read."""

    path: Path

    def place(self, name: str) -> Path:
        """Returns the file that holds what the file of this name says, for an error message."""

    def has(self, name: str) -> bool:
        """Returns whether there is a file of this name."""

    def json(self, name: str, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
        """Returns what a JSON file says; nothing where there is none."""

    def text(self, name: str, most_bytes: int = MOST_BYTES) -> str:
        """Returns the text of a file."""

    def data(self, name: str, most_bytes: int = MOST_BYTES) -> bytes:
        """Returns what is in a file that is no text."""

    def model_config(self) -> ModelConfig:
        """Returns the model's shape."""

    def shape_digest(self) -> str:
        """Returns a digest of all that the costs of an iteration depend on: of no weight."""


class Folder:
    """A folder with config.json, safetensors, and the files of a tokenizer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def json(self, name: str, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
        return read_json(self.path / name, most_bytes) if (self.path / name).exists() else {}

    def text(self, name: str, most_bytes: int = MOST_BYTES) -> str:
        return self._read(name, read_text, most_bytes)

    def data(self, name: str, most_bytes: int = MOST_BYTES) -> bytes:
        return self._read(name, read_bytes, most_bytes)

    def model_config(self) -> ModelConfig:
        return ModelConfig.from_dict(read_json(self.path / CONFIG), self.json(GENERATION))

    def shape_digest(self) -> str:
        digest = hashlib.sha256(self.data(CONFIG))
        for path in sorted(self.path.glob("*.safetensors")):
            digest.update(f"{path.name}:{path.stat().st_size}".encode())
        return digest.hexdigest()[:16]

    def _read(self, name: str, read: Callable[[Path, int], _Content], most_bytes: int) -> _Content:
        try:
            return read(self.path / name, most_bytes)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{name} cannot be read: {reason} (in {self.path})") from error
