"""A checkpoint's tokenizer as GetTokenizer sends it: a zip in pieces, the last with its SHA-256."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from smg_grpc_proto.generated import common_pb2 as common

PIECE_BYTES = 64 << 10


def pieces(archive: bytes) -> list[Any]:
    """Returns the messages that carry the archive, of which there is at least one."""
    starts = range(0, max(1, len(archive)), PIECE_BYTES)
    messages = [
        common.GetTokenizerChunk(data=archive[start : start + PIECE_BYTES]) for start in starts
    ]
    messages[-1].sha256 = sha256(archive).hexdigest()
    return messages
