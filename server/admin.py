"""Who may ask about every tenant's requests: whoever has the token in `--admin-token-file`.

A call shows the token as `authorization: Bearer TOKEN`. The server keeps only a digest of it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from engine.toml_file import opened
from server import errors

KEY = "authorization"
SCHEME = "bearer"
MOST_TOKEN_BYTES = 4096
# Of the file: others may neither read nor write it, and its group not write it.
FORBIDDEN = stat.S_IRWXO | stat.S_IWGRP


class Admin:
    """Tells which calls are the operator's, by the digest of the operator's token.

    With None there is no token: no call is the operator's, and nobody looks at what callers show.
    """

    def __init__(self, digest: bytes | None = None) -> None:
        self.digest = digest

    @classmethod
    def of_file(cls, path: Path | None) -> Admin:
        """Returns the admin of a token file; None: there is none. Raises ValueError, with one line
        that names the file, for a file that is no good.
        """
        return cls() if path is None else cls(_digest(_read_token(path)))

    def is_shown(self, metadata: Iterable[tuple[str, str]]) -> bool:
        """Returns whether a call with that metadata is the operator's. Raises CallError,
        UNAUTHENTICATED, for a token that is not the operator's.
        """
        shown = [value for key, value in metadata if key == KEY]
        if self.digest is None or not shown:
            return False
        scheme, _, token = shown[0].partition(" ")
        is_token = scheme.lower() == SCHEME and len(shown) == 1
        if is_token and hmac.compare_digest(_digest(token.strip().encode()), self.digest):
            return True
        raise errors.unauthenticated()


def _digest(token: bytes) -> bytes:
    """Returns a digest of the token. All are of the same length, so comparing them tells no
    length.
    """
    return hashlib.sha256(token).digest()


def _read_token(path: Path) -> bytes:
    try:
        with opened(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            token = file.read(MOST_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise ValueError(f"--admin-token-file {path}: {error.strerror}") from error
    if mode & FORBIDDEN:
        raise ValueError(
            f"--admin-token-file {path}: others may read or change it (mode {mode:04o}): chmod 600"
        )
    if not 0 < len(token) <= MOST_TOKEN_BYTES or not all(0x20 < byte < 0x7F for byte in token):
        raise ValueError(
            f"--admin-token-file {path}: a token is one word of printable ASCII, of at most"
            f" {MOST_TOKEN_BYTES} bytes"
        )
    return token
