"""The environment that a process which computes on its CPU should be started with.

Waiting OpenMP threads spin for a moment, as long as the pauses within an iteration, then sleep: to
wake one takes as long as a small matrix, and one that spins for ever holds up whoever shares its
core. glibc keeps freed memory instead of asking the system for each large block anew, which costs a
page fault per 4 KiB of every activation, and asks for huge pages where the system grants them. It
keeps many small blocks at hand and none in fast bins, which it empties at every large block: oneDNN
allocates many small ones for each product. Other C libraries ignore these settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_DEFAULTS = {
    "GOMP_SPINCOUNT": "200000",
    # https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
    "GLIBC_TUNABLES": (
        "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=9223372036854775807"
        ":glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=127:glibc.malloc.mxfast=0"
    ),
}


def environment() -> Mapping[str, str]:
    """Returns this process's environment, and beside it what that does not say for itself."""
    return {**_DEFAULTS, **os.environ}
