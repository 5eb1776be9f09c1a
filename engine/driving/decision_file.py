"""The decision log on disk: one JSON object per line, appended.

    {"kind": ..., "request_id": ..., "tenant": ..., "at": ..., "detail": ..., "unix_s": ..., ...}

An object also has the entry's values by name (`engine.decision_lines` says which).
`at` and `predicted_at` are seconds on the engine's clock, `unix_s` is `at` in Unix time, and a
value that is not finite is null. No prompt is in it.

The first line of each file is of the kind "engine": what the engine is, and how the service is
configured. When that changes it is told again.

A file that is full gets a number (`log` becomes `log.1`, `log.1` becomes `log.2`), which does
nothing to who is reading it, and the oldest beyond `most_files` is deleted. What is no file (a
pipe) is never full. What cannot be written at once, since the disk is full or a pipe's reader
stalls, is lost, counted and reported; the engine goes on. So it does where another engine writes
the same file, which is reported: each would number what the other writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.decision_lines import line_of

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK


class DecisionFile:
    """The open decision log. `write` takes an entry, as a scheduler's decision sink; `flush` writes
    what has gathered, once per iteration.
    """

    def __init__(
        self,
        path: Path,
        unix_offset_s: float,
        engine: Mapping[str, Any] | None = None,
        most_bytes: int = 100 << 20,
        most_files: int = 10,
    ) -> None:
        """Opens the file; raises ValueError, naming the flag, where it cannot be opened.

        `unix_offset_s` is Unix time minus the engine's clock, in seconds. `engine` is what the
        first line of each file says of the engine.
        """
        self._path = path
        self._offset_s = unix_offset_s
        self._header = dict(engine or {})
        self._most_bytes, self._most_files = most_bytes, most_files
        self._lines: list[str] = []
        self._has_header = False  # it has been told, by this engine
        self._began_at = 0.0
        try:
            self._fd = os.open(path, _FLAGS, 0o666)
        except OSError as error:
            raise ValueError(f"--decision-log {path}: {error.strerror}") from error
        opened = os.fstat(self._fd)
        self._is_file = stat.S_ISREG(opened.st_mode)
        self._warning = self._lock() if self._is_file else ""
        self._num_bytes = opened.st_size if self._is_file else 0
        self._is_open = True
        self._is_torn = bool(self._num_bytes) and _ends_torn(path)  # in the middle of a line
        self._num_lost = 0  # entries, since it last took some

    def describe(self, service: Mapping[str, Any], at: float) -> None:
        """Tells how the service is configured, where that is news."""
        header = {**self._header, **service}
        if self._has_header and header == self._header:
            return
        self._header = header
        self._begin(at)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Keeps an entry of the decision log until the next `flush`."""
        if not self._is_open:
            return
        if not self._has_header and self._header:
            self._begin(entry["at"])
        self._lines.append(self._line(entry))

    def flush(self) -> str:
        """Writes what has gathered. Returns a line for the operator, or "": when entries begin to
        be lost, why; when the file takes entries again, how many were lost; once, that the file is
        another's.
        """
        if not self._lines:
            return ""
        data = memoryview("".join(self._lines).encode())
        self._lines.clear()
        try:
            if self._num_bytes and self._num_bytes + len(data) > self._most_bytes:
                self._turn_over()
                if self._header:
                    data = memoryview(self._header_line().encode() + bytes(data))
            if self._is_torn:
                self._put(b"\n")
            while data:
                data = data[self._put(data) :]
        except OSError as error:
            return self._lost(bytes(data).count(b"\n"), error)
        if self._num_lost:
            return self._took()
        warning, self._warning = self._warning, ""
        return warning

    def close(self) -> None:
        """Closes the file; entries that still come are dropped."""
        self._is_open = False
        with contextlib.suppress(OSError):  # what it could not write is lost, and has been told
            os.close(self._fd)

    def _begin(self, at: float) -> None:
        """Has what the engine is told next."""
        self._began_at, self._has_header = at, True
        self._lines.append(self._header_line())

    def _header_line(self) -> str:
        return self._line({"kind": "engine", "at": self._began_at, **self._header})

    def _line(self, entry: Mapping[str, Any]) -> str:
        return line_of(entry, self._offset_s)

    def _put(self, data: bytes | memoryview) -> int:
        """Returns how much of the data the file took. Raises OSError."""
        num_written = os.write(self._fd, data)
        self._is_torn = data[num_written - 1] != ord("\n")
        if self._is_file:
            self._num_bytes += num_written
        return num_written

    def _turn_over(self) -> None:
        """Gives the open file a number, and begins another. Raises OSError; what was done until
        then is not done again by the next try.
        """
        most = self._most_files - 1
        free = next((n for n in range(most) if not self._numbered(n).exists()), most)
        for number in range(free, 0, -1):
            os.replace(self._numbered(number - 1), self._numbered(number))
        fd = os.open(self._path, _FLAGS | os.O_TRUNC, 0o666)
        os.close(self._fd)
        self._fd, self._num_bytes, self._is_torn = fd, 0, False
        self._warning = self._lock()

    def _lock(self) -> str:
        """Takes the lock of the open file. Returns what is to be said where another has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"decision log {self._path} is another engine's too: give each a file of its own"
        except OSError:  # there are no locks: nobody can say
            pass
        return ""

    def _numbered(self, number: int) -> Path:
        return self._path if not number else self._path.with_name(f"{self._path.name}.{number}")

    def _lost(self, num_entries: int, error: OSError) -> str:
        is_first, self._num_lost = not self._num_lost, self._num_lost + num_entries
        return f"decision log {self._path} loses entries: {error.strerror}" if is_first else ""

    def _took(self) -> str:
        num_lost, self._num_lost = self._num_lost, 0
        return f"decision log {self._path} goes on, without {num_lost} entries"


def _ends_torn(path: Path) -> bool:
    """Says whether the file may end in the middle of a line."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # it may be written, and not be read
        return True
