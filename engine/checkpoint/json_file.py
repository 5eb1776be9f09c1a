"""The JSON files of a checkpoint folder and their keys, each read as what it has to be.

A checkpoint comes from somebody else. So whatever a file holds either is what was expected, or
raises a CheckpointError, with one short line that names file and key. No torch here.
"""

from __future__ import annotations

import json
import re
import reprlib
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

MOST_LINE = 600  # characters of an error
MOST_BYTES = 16 << 20  # of a file; the largest in use, an index of a thousand shards, has a tenth
MOST = 2**31 - 1  # of a whole number: sizes beyond are no tensor's
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # or a whole one
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = 60
_SHOWN.maxlevel = 2


class CheckpointError(ValueError):
    """A checkpoint cannot be served. The message is one line of bounded length that says
    why.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.encode("utf-8", "backslashreplace").decode().split())
        super().__init__(line if len(line) <= MOST_LINE else line[: MOST_LINE - 3] + "...")


def shown(value: object) -> str:
    """Returns a value of a file as an error message can show it: short, whatever it holds."""
    return _SHOWN.repr(value)


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Returns the object that a JSON file of a checkpoint holds. Of equal keys the last counts, as
    everywhere.

    Raises CheckpointError, naming the file.
    """
    try:
        text = read_text(path, most_bytes)
        value = json.loads(text)
        if _HALF_PAIR.search(text):  # of surrogates: it can be read but neither sent nor printed
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{path.name} cannot be read as JSON: {reason} (in {path.parent})"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object (in {path.parent})")
    return value


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Returns the text of an ordinary file in UTF-8. A pipe or a device is refused: the one could
    be waited for, and the other read, for ever.

    Raises OSError and ValueError.
    """
    return read_bytes(path, most_bytes).decode("utf-8")


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Returns what is in an ordinary file. Raises OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is no file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(0, f"it has {found.st_size} bytes, more than {most_bytes}")
    return data


class Keys:
    """One JSON object of a file, whose keys are read by type.

    A key that is absent, or null, has the default; without a default it is required. `where` is
    what error messages begin with. The methods that read a key raise CheckpointError for another
    type.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self._where = where

    def states(self, key: str) -> bool:
        """Returns whether the key is there and not null."""
        return self.raw.get(key) is not None

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        """Returns the error to raise where the key is not what is `wanted`."""
        found = f"got {shown(self.raw[key])}" if key in self.raw else "and is missing"
        return CheckpointError(f"{self._where}: {key} {wanted}, {found}")

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """Returns a whole number from `least` to `most`."""
        value = self._value(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"must be a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, *, least: float, most: float) -> float:
        """Returns a number from `least` to `most`."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not least <= value <= most:  # NaN neither
            raise self.wrong(key, f"must be a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Returns true or false."""
        value = self._value(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "must be true or false")
        return value

    def word(self, key: str, default: str, known: Collection[str] = ()) -> str:
        """Returns a text: one of `known`, where those are given."""
        value = self._value(key, default)
        if type(value) is not str or (known and value not in known):
            wanted = f"is not supported ({', '.join(known)})" if known else "must be a text"
            raise self.wrong(key, wanted)
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """Returns a list of texts; an empty one by default."""
        value = self._value(key, [])
        if type(value) is not list or not all(type(each) is str for each in value):
            raise self.wrong(key, "must be a list of texts")
        return tuple(value)

    def ids(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Returns token ids, for a key that holds one or a list of them."""
        value = self._value(key, list(default))
        ids = value if type(value) is list else [value]
        if not all(type(each) is int and 0 <= each <= MOST for each in ids):
            raise self.wrong(key, "must be a token id or a list of them")
        return tuple(ids)

    def table(self, key: str) -> Keys:
        """Returns an object in this one; an empty one by default."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "must be an object")
        return Keys(value, f"{self._where}: {key}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        return default if value is None else value
