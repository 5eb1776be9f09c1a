"""Opens a checkpoint, whichever form it has."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.gguf.source import GgufFile
from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.model_config import CONFIG
from engine.checkpoint.source import Folder, Source


def open_source(path: Path) -> Source:
    """Returns the checkpoint at a path. Raises CheckpointError where there is none that can be
    read.
    """
    try:
        return _at(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _at(path: Path) -> Source:
    if path.is_dir():
        found = sorted(path.glob("*.gguf")) if not (path / CONFIG).exists() else []
        if found:
            raise CheckpointError(
                f"no {CONFIG} in {path}, but {found[0].name}: name the GGUF file itself"
            )
        return Folder(path)
    if path.exists():
        return GgufFile(path)
    raise CheckpointError(f"no checkpoint folder or GGUF file {path}")
