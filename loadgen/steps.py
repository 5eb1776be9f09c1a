"""Says on standard error what is being done, and for how long: a line that is drawn in place where
a terminal reads, else a few lines, ever more rarely.

Of the standard library alone, as what installs the others shows its steps by it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

PERIOD_S = 0.5  # between two drawings
FIRST_LINE_S = 15.0  # after which a reader that is no terminal is told again; then twice as long
_CLEAR = "\r\x1b[K"


@contextlib.contextmanager
def step(
    text: str, note: Callable[[], str] = lambda: "", out: TextIO | None = None
) -> Iterator[None]:
    """Says `text` while the block lasts, with what `note()` tells of the moment, and in the end how
    long it took; `out` is standard error where none is given.

    Nothing is raised where nobody reads any more.
    """
    line = _Line(text, note, sys.stderr if out is None else out)
    ended = threading.Event()
    thread = threading.Thread(target=line.draw_until, args=(ended,), daemon=True)
    is_done = False
    try:
        line.begin()
        thread.start()
        yield
        is_done = True
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()
        line.end(is_done)


class _Line:
    """What is said of one step."""

    def __init__(self, text: str, note: Callable[[], str], out: TextIO) -> None:
        self._text, self._note, self._out = text, note, out
        self._began_at = time.monotonic()
        self._is_drawn = out.isatty()
        self._told_at_s = FIRST_LINE_S  # when the next line is due where no terminal reads

    def begin(self) -> None:
        self._write(self._now() if self._is_drawn else f"{self._text} ...\n")

    def draw_until(self, ended: threading.Event) -> None:
        """Tells how far it is, again and again; `note` is called from this thread."""
        while not ended.wait(PERIOD_S):
            if self._is_drawn:
                self._write(_CLEAR + self._now())
            elif self._elapsed_s >= self._told_at_s:
                self._told_at_s *= 2
                self._write(f"  {self._now()}\n")

    def end(self, is_done: bool) -> None:
        """Says how long it took, or that it was not done."""
        took = f"{self._elapsed_s:.0f} s"
        how = took if is_done else f"not done, after {took}"
        self._write(f"{_CLEAR if self._is_drawn else ''}{self._text}: {how}\n")

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_at

    def _now(self) -> str:
        """Returns the line of the moment, which fits the terminal."""
        note = self._note()
        line = f"{self._text} ... {self._elapsed_s:.0f} s{note and f', {note}'}"
        return line[: shutil.get_terminal_size().columns - 1] if self._is_drawn else line

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone, or the stream closed
            self._out.write(text)
            self._out.flush()
