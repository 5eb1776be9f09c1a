"""Standard streams as they may be found: nobody reads any more (`niyama info | head -2`), the disk
is full, the terminal is gone, or there are none.
"""

from __future__ import annotations

import io
import os
import sys


def have_streams() -> bool:
    """To be called first of all: whether there is a standard output. A stream that was closed goes
    nowhere from now on; its file descriptor would be the next socket's, where all would be printed.
    """
    had_output = sys.stdout is not None
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode)  # noqa: SIM115 - as long as the process
            if nowhere.fileno() != fd:
                os.dup2(nowhere.fileno(), fd)
            setattr(sys, name, nowhere)
    return had_output


def write_any_character() -> None:
    """What the terminal's encoding lacks is written as an escape, instead of ending the output."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Arguments whose bytes are no UTF-8 are no text, and may have to be shown: a file's name."""
    return text.encode(errors="backslashreplace").decode()


def discard_output() -> None:
    """After an OSError: what is still buffered goes nowhere, at exit too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
