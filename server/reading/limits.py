"""Limits what one piece of work may take, in a process that does nothing else: CPU time and memory.

Work in Python code, such as a chat template, is interrupted. Work that stays in foreign code for
longer (a power with a million digits) is ended by the kernel, and the process with it. What counts
is CPU time and not the clock's, so that a busy machine refuses nothing.
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
    """A limit of `cpu_s` seconds for each piece of work, which the process's main thread does."""

    def __init__(self, cpu_s: float) -> None:
        self.cpu_s = cpu_s
        self._is_working = False
        signal.signal(signal.SIGPROF, self._interrupt)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    @contextmanager
    def work(self) -> Iterator[None]:
        """Opens a block that does one piece of work. Raises TooLong in it when the limit is
        reached.
        """
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
    """Lets this process take so much more memory than it has; beyond that, Python raises
    MemoryError.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    _set_soft(resource.RLIMIT_AS, pages * resource.getpagesize() + more_bytes)


def give_back_memory() -> None:
    """Gives the system back what was freed in small pieces, of which a tokenizer makes millions.
    It does nothing where the C library is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set_soft(limit: int, most: int) -> None:
    """Sets a soft limit to `most`, or to the hard limit where that is lower."""
    _, hard = resource.getrlimit(limit)
    bounds = [bound for bound in (most, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(limit, (min(bounds, default=resource.RLIM_INFINITY), hard))
