"""The decision log on disk: one JSON object per line, appended.

    {"request_id": ..., "unix_s": ..., "at": ..., "kind": ..., "detail": ..., "predicted_at": ...}

and the entry's values by name. `at` and `predicted_at` are seconds on the engine's clock, `unix_s`
is `at` in Unix time. A value that is not finite is null. A disk that is full ends the log, not the
engine.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any


class DecisionFile:
    """`write` is a scheduler's decision sink; `flush` once per iteration. Raises ValueError where
    the file cannot be opened.
    """

    def __init__(self, path: Path, unix_offset_s: float) -> None:
        """`unix_offset_s`: Unix time minus the engine's clock."""
        self._path = path
        self._offset_s = unix_offset_s
        self._lines: list[str] = []
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--decision-log {path}: {error.strerror}") from error
        self._is_open = True

    def write(self, entry: dict[str, Any]) -> None:
        if not self._is_open:
            return
        entry = entry | {"unix_s": round(entry["at"] + self._offset_s, 6)}
        finite = {k: v if _is_writable(v) else None for k, v in entry.items()}
        self._lines.append(json.dumps(finite))

    def flush(self) -> str:
        """Writes what has gathered. Returns why the log ends here, the one time it does."""
        if not self._lines:
            return ""
        text = "\n".join(self._lines) + "\n"
        self._lines.clear()
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            self.close()
            return f"decision log {self._path} ends: {error.strerror}"
        return ""

    def close(self) -> None:
        """Nothing is written from here on."""
        self._is_open = False
        with contextlib.suppress(OSError):  # what it could not write is lost, and has been told
            self._file.close()


def _is_writable(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
