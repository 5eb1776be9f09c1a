"""A TOML file of the operator's: what it says, and which of its lines says so.

`tomllib` tells the line of what is no TOML, and no line of anything else. But every statement of a
file is TOML by itself, and ends with the first of its lines up to which it is, since only arrays
and texts of several lines go on: so statements are found by parsing them one by one, and only once
a line is to be blamed.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import reprlib
import select
import stat
import time
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MOST_BYTES = 1 << 20  # of a file: thousands of tenants
PIPE_S = 10.0  # for who writes to one
MOST_SHOWN = 128  # characters of a key in a message
_MOST_PARSED = 2 * MOST_BYTES  # while a line is looked for; beyond, none is named
_AT = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)

Keys = tuple[str, ...]  # that lead to a value: ("tiers", "chat", "ttft_s")


class Misstated(ValueError):
    """What a file says under these keys is no good."""

    def __init__(self, keys: Keys, what: str) -> None:
        super().__init__(f"{dotted(keys)}{'' if what.startswith(':') else ' '}{what}")
        self.keys = keys


class BadFile(ValueError):
    """A file is no good: `file:line: what is wrong`. `line` is 0 where none is to blame."""

    def __init__(self, path: Path, what: str, line: int = 0) -> None:
        super().__init__(f"{path}:{line}: {what}" if line else f"{path}: {what}")
        self.path = path
        self.line = line
        self.what = what


class Document(NamedTuple):
    """What a file says. Relative paths in it are relative to its folder."""

    path: Path
    text: str
    tables: dict[str, Any]

    def line_of(self, keys: Keys) -> int:
        """Returns the line that states the value, or else the nearest table that should; 0 where
        there is none.
        """
        lines = lines_of(self.text)
        known = (keys[:n] for n in range(len(keys), 0, -1))
        return next((lines[each] for each in known if each in lines), 0)

    def blame(self, error: Misstated) -> BadFile:
        """Returns the error with file and line."""
        return BadFile(self.path, str(error), self.line_of(error.keys))


def contents(path: Path, most_bytes: int) -> tuple[bytes, os.stat_result]:
    """Returns what a file holds, or so many bytes of it, and what it was then. A pipe is read to
    its end, and is an OSError where nobody writes to it or its writer takes longer than PIPE_S:
    else it would be waited for for ever.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        state = os.fstat(file.fileno())
        if stat.S_ISFIFO(state.st_mode):
            return _of_pipe(file.fileno(), path, most_bytes), state
        os.set_blocking(file.fileno(), True)
        return file.read(most_bytes), state


def _of_pipe(descriptor: int, path: Path, most_bytes: int) -> bytes:
    found, until = bytearray(), time.monotonic() + PIPE_S
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(found) < most_bytes:
        try:
            piece = os.read(descriptor, most_bytes - len(found))
        except BlockingIOError:
            left_s = until - time.monotonic()
            if left_s > 0 and poll.poll(left_s * 1000):
                continue
            what = f"is a pipe whose writer did not end within {PIPE_S:g} s"
            raise OSError(errno.ETIMEDOUT, what, str(path)) from None
        if not piece:
            break
        found += piece
    if not found:
        raise OSError(errno.ENXIO, "is a pipe that nobody writes to", str(path))
    return bytes(found)


def read(path: Path) -> str:
    """Returns the file's text. Raises BadFile."""
    try:
        found, _ = contents(path, MOST_BYTES + 1)
    except OSError as error:
        raise BadFile(path, str(error.strerror)) from error
    except ValueError as error:  # a path with a null character
        raise BadFile(path, str(error)) from error
    if len(found) > MOST_BYTES:
        raise BadFile(path, f"has more than {MOST_BYTES} bytes")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise BadFile(path, f"is not UTF-8: {error.reason}", line) from error


def parse(text: str, path: Path) -> Document:
    """Returns what the text of a file says. Raises BadFile."""
    try:
        return Document(path, text, tomllib.loads(text))
    except RecursionError as error:
        raise BadFile(path, "nested too deeply") from error
    except ValueError as error:
        said = _AT.fullmatch(str(error))
        if said is None:
            raise BadFile(path, str(error)) from error
        line = int(said[2] or text.rstrip("\n").count("\n") + 1)
        what = said[1] if said[3] is None else f"{said[1]} (column {said[3]})"
        raise BadFile(path, what, line) from error


def lines_of(text: str) -> dict[Keys, int]:
    """Returns the line, from 1, of each table and each value of a text that is TOML."""
    found: dict[Keys, int] = {}
    table: Keys = ()
    statement, first, left = "", 1, _MOST_PARSED
    for number, line in enumerate(text.split("\n"), start=1):
        if not statement:
            first = number
        statement += line + "\n"
        left -= len(statement)
        if left < 0:
            break
        try:
            said = tomllib.loads(statement)
        except ValueError:
            continue
        is_header = statement.lstrip().startswith("[")
        statement = ""
        if is_header:
            table = max(_paths(said), key=len)
            for n in range(1, len(table) + 1):
                found.setdefault(table[:n], first)
        else:
            for keys in _paths(said):
                found.setdefault(table + keys, first)
    return found


def _paths(said: dict[str, Any]) -> Iterator[Keys]:
    for key, value in said.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in _paths(value))


def dotted(keys: Keys) -> str:
    """Returns the keys as a message can show them."""
    return ".".join(map(named, keys))


def named(key: str) -> str:
    """Returns one key as a message can show it."""
    return key if len(key) <= MOST_SHOWN and key.isprintable() else reprlib.repr(key)


def refuse_unknown(table: dict[str, Any], known: Collection[str], keys: Keys = ()) -> None:
    """Raises Misstated for a key of the table at `keys` that is not known."""
    for key in table:
        if key not in known:
            what = f"is unknown; known are {', '.join(sorted(known))}{suggestion(key, known)}"
            raise Misstated((*keys, key), what)


def suggestion(name: str, known: Collection[str], prefix: str = "") -> str:
    """Returns the known name that may have been meant, as the end of a message; nothing where none
    is like it. All of them begin with `prefix`, which makes none likelier.
    """
    rest = [each.removeprefix(prefix) for each in known]
    wanted = name.removeprefix(prefix)
    near = difflib.get_close_matches(wanted, rest, 1) if len(name) <= MOST_SHOWN else []
    return f" (did you mean {prefix}{near[0]}?)" if near else ""
