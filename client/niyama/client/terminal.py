"""Copes with standard streams as they may be found.

Perhaps nobody reads any more (`niyama info | head -2`), the disk is full, the terminal is gone, or
there are no streams.
"""

from __future__ import annotations

import io
import os
import sys


def have_streams() -> bool:
    """Returns whether there is a standard output. Call it first of all.

    A stream that was closed goes nowhere from then on. Its file descriptor would otherwise become
    that of the next socket, into which everything would be printed.
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
    """Has characters that the terminal's encoding lacks written as escapes. They would end the
    output.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Returns the text with escapes for what is no character: an argument, such as a file's name,
    may hold bytes that are no UTF-8.
    """
    return text.encode(errors="backslashreplace").decode()


def discard_output() -> None:
    """Drops what is still buffered for standard output, at exit too. For use after an OSError."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
