"""The token by which a caller shows who it is, sent with every call."""

from __future__ import annotations

import os
from collections.abc import Callable

from niyama.client import arguments
from niyama.client.errors import InvalidRequest

# The token itself; the path of a file (not as text, which would be a token); a function.
Token = str | os.PathLike[str] | Callable[[], str]

_MOST_BYTES = 1 << 16  # of a file


def source(token: Token) -> Callable[[], str]:
    """Returns what gives the token for a call, at the moment of the call. Raises InvalidRequest for
    a text or a file that holds none.

    A file is read again when it has changed. A function is called for each call, on the event loop
    of AsyncClient: it returns what it has at hand, and what it raises ends the call.
    """
    if isinstance(token, os.PathLike):
        return _File(token)
    if callable(token):
        given = token
        return lambda: arguments.token(given())
    word = arguments.token(token)
    return lambda: word


class _File:
    """A token in a file, which whoever renews it replaces or writes to."""

    def __init__(self, path: os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._seen: tuple[int, ...] = ()
        self._word = ""
        self()

    def __call__(self) -> str:
        """Returns the token that stands there now. Raises InvalidRequest where there is none."""
        try:
            found = os.stat(self._path)
            version = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
            if version != self._seen:
                self._word = self._read()
                self._seen = version
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "a token is one word of printable ASCII"
            raise InvalidRequest(f"token file {self._path}: {reason}", "token") from None
        return self._word

    def _read(self) -> str:
        with open(self._path, "rb") as file:
            return arguments.token(file.read(_MOST_BYTES + 1)[:_MOST_BYTES].decode("ascii").strip())
