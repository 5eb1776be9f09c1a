"""What one piece of work may take of a process of its own: CPU time and memory.

Work that is Python, a chat template, is interrupted; what stays in foreign code for longer (a power
with a million digits) is ended by the kernel, and the process with it. It is CPU time and not the
clock's, so that a busy machine refuses nothing.
"""

from __future__ import annotations

import ctypes
import math
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_S = 0.05  # an interruption may be lost where Python ignores exceptions (in a destructor)
GRACE_S = 1.0  # beyond the limit, before the kernel ends the process


class TooLong(BaseException):
    """The work took longer than it may. No `except Exception` of a template's engine stops it."""


class CpuLimit:
    """Of this process's main thread; `cpu_s` for each piece of work."""

    def __init__(self, cpu_s: float) -> None:
        self.cpu_s = cpu_s
        self._is_working = False
        signal.signal(signal.SIGPROF, self._interrupt)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    @contextmanager
    def work(self) -> Iterator[None]:
        """Raises TooLong within the block."""
        _set_soft(resource.RLIMIT_CPU, math.ceil(time.process_time() + self.cpu_s + GRACE_S))
        self._is_working = True
        signal.setitimer(signal.ITIMER_PROF, self.cpu_s, AGAIN_S)
        try:
            try:
                yield
            finally:
                self._is_working = False
        finally:  # also where the interruption came in the line before
            self._is_working = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            _set_soft(resource.RLIMIT_CPU, resource.RLIM_INFINITY)

    def _interrupt(self, *_: object) -> None:
        if self._is_working:
            raise TooLong


def limit_memory(more_bytes: int) -> None:
    """Lets this process map so much more than it has, then Python raises MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    _set_soft(resource.RLIMIT_AS, pages * resource.getpagesize() + more_bytes)


def give_back_memory() -> None:
    """What was freed in small pieces goes back to the system too, where the C library is glibc: a
    tokenizer makes millions of them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set_soft(limit: int, most: int) -> None:
    """No further than the operator allows."""
    _, hard = resource.getrlimit(limit)
    bounds = [bound for bound in (most, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(limit, (min(bounds, default=resource.RLIM_INFINITY), hard))
