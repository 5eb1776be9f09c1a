"""The decision log on disk: one JSON object per line, appended.

    {"request_id": ..., "unix_s": ..., "at": ..., "kind": ..., "detail": ..., "predicted_at": ...}

An object also has the entry's values by name. `at` and `predicted_at` are seconds on the engine's
clock, `unix_s` is `at` in Unix time, and a value that is not finite is null. What cannot be written
at once, since the disk is full or a pipe's reader stalls, is lost, counted and reported; the engine
goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any


class DecisionFile:
    """The open decision log. `write` takes an entry, as a scheduler's decision sink; `flush` writes
    what has gathered, once per iteration.
    """

    def __init__(self, path: Path, unix_offset_s: float) -> None:
        """Opens the file; raises ValueError, naming the flag, where it cannot be opened.

        `unix_offset_s` is Unix time minus the engine's clock, in seconds.
        """
        self._path = path
        self._offset_s = unix_offset_s
        self._lines: list[str] = []
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise ValueError(f"--decision-log {path}: {error.strerror}") from error
        self._is_open = True
        self._is_torn = False  # it was left in the middle of a line
        self._num_lost = 0  # entries, since it last took some

    def write(self, entry: dict[str, Any]) -> None:
        """Keeps an entry of the decision log until the next `flush`."""
        if not self._is_open:
            return
        entry = entry | {"unix_s": round(entry["at"] + self._offset_s, 6)}
        finite = {k: v if _is_writable(v) else None for k, v in entry.items()}
        self._lines.append(json.dumps(finite))

    def flush(self) -> str:
        """Writes what has gathered. Returns a line for the operator, or "": when entries begin to
        be lost, why; when the file takes entries again, how many were lost.
        """
        if not self._lines:
            return ""
        rest = "\n" * self._is_torn + "\n".join(self._lines) + "\n"
        num_entries = len(self._lines)
        self._lines.clear()
        data = memoryview(rest.encode())
        try:
            while data:
                num_written = os.write(self._fd, data)
                self._is_torn = data[num_written - 1] != ord("\n")
                data = data[num_written:]
        except OSError as error:
            return self._lost(min(num_entries, bytes(data).count(b"\n")), error)
        return self._took()

    def close(self) -> None:
        """Closes the file; entries that still come are dropped."""
        self._is_open = False
        with contextlib.suppress(OSError):  # what it could not write is lost, and has been told
            os.close(self._fd)

    def _lost(self, num_entries: int, error: OSError) -> str:
        is_first, self._num_lost = not self._num_lost, self._num_lost + num_entries
        return f"decision log {self._path} loses entries: {error.strerror}" if is_first else ""

    def _took(self) -> str:
        num_lost, self._num_lost = self._num_lost, 0
        return f"decision log {self._path} goes on, without {num_lost} entries" if num_lost else ""


def _is_writable(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
