"""The generator's place among the processes of its machine.

A load test of a server on the same machine shares its cores with what it measures; requests that
leave late because of that are the instrument's error. Where the system permits it (root, or an
RLIMIT_NICE), the sender goes before the others while it runs. On 2 cores shared with the server
and more, this took the schedule lag's p99 from 25 to 90 ms to 13 to 16 ms.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_STEPS = 10  # of niceness; the range is -20 to 19
_THREADS = Path("/proc/self/task")


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raises the priority of this process's threads, and of those that they start, while the block
    lasts. It does nothing where that is not permitted, or where threads cannot be listed.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    _set(before - _STEPS)
    try:
        yield
    finally:
        _set(before)


def _set(niceness: int) -> None:
    """Sets the niceness of all threads: on Linux it belongs to a thread, not to a process."""
    threads = [int(entry.name) for entry in _THREADS.iterdir()] if _THREADS.is_dir() else []
    for thread in threads:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
