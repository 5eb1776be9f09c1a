"""Standard output that nobody reads any more, as in `niyama info | head -2`."""

from __future__ import annotations

import os
import sys


def discard_output() -> None:
    """After a BrokenPipeError: what is still buffered goes nowhere, at exit too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
