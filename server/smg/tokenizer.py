"""A checkpoint's tokenizer as GetTokenizer sends it: a zip in pieces, the last with its SHA-256."""

from __future__ import annotations

import io
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from smg_grpc_proto.generated import common_pb2 as common

PIECE_BYTES = 64 << 10
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def tokenizer_archive(folder: Path) -> bytes:
    """Returns a zip of the tokenizer's files. Raises FileNotFoundError for a checkpoint without a
    tokenizer.json.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _FILES:
            if name == _FILES[0] or (folder / name).is_file():
                archive.write(folder / name, name)
    return packed.getvalue()


def pieces(archive: bytes) -> list[Any]:
    """Returns the messages that carry the archive, of which there is at least one."""
    starts = range(0, max(1, len(archive)), PIECE_BYTES)
    messages = [
        common.GetTokenizerChunk(data=archive[start : start + PIECE_BYTES]) for start in starts
    ]
    messages[-1].sha256 = sha256(archive).hexdigest()
    return messages
