"""A GGUF file as a checkpoint: what its metadata says is given as the files of a folder that would
say the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.checkpoint.gguf import vocabulary
from engine.checkpoint.gguf.header import Header, read_header
from engine.checkpoint.gguf.sampling import generation
from engine.checkpoint.gguf.shape import read_shape
from engine.checkpoint.json_file import MOST_BYTES
from engine.checkpoint.model_config import GENERATION, ModelConfig


class GgufFile:
    """A GGUF file, which says all in its metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header = read_header(path)

    def place(self, name: str) -> Path:
        return self.path

    def has(self, name: str) -> bool:
        return name in self._made

    def json(self, name: str, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
        made = self._made[name]() if name in self._made else {}
        assert isinstance(made, dict), name
        return made

    def text(self, name: str, most_bytes: int = MOST_BYTES) -> str:
        return json.dumps(self.json(name), ensure_ascii=False, separators=(",", ":"))

    def data(self, name: str, most_bytes: int = MOST_BYTES) -> bytes:
        made = self._made[name]()
        assert isinstance(made, bytes), name
        return made

    def model_config(self) -> ModelConfig:
        return read_shape(self.header)

    def shape_digest(self) -> str:
        return hashlib.sha256(str(self.model_config()).encode()).hexdigest()[:16]

    @cached_property
    def _vocabulary(self) -> vocabulary.Vocabulary:
        return vocabulary.read_vocabulary(self.header)

    @cached_property
    def _made(self) -> dict[str, Callable[[], dict[str, Any] | bytes]]:
        """What is made of the metadata, by the name of the file that would say it."""
        made: dict[str, Callable[[], dict[str, Any] | bytes]] = {
            GENERATION: lambda: generation(self.header),
            "tokenizer_config.json": lambda: vocabulary.tokenizer_config(self._vocabulary),
        }
        if self._vocabulary.model == vocabulary.BPE:
            made["tokenizer.json"] = lambda: vocabulary.tokenizer_json(self._vocabulary)
        else:
            made["tokenizer.model"] = lambda: vocabulary.sentencepiece_model(self._vocabulary)
        return made
