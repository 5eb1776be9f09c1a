"""The environment that a process is started with which computes on its CPU.

It sets two libraries, which read it when the process begins:

* GNU's OpenMP. A thread that waits for work first spins, as long as the pauses within an iteration
  last, and sleeps after that. To wake one that sleeps takes as long as a small matrix; one that
  spins for ever holds up whoever shares its core.
* glibc. It keeps freed memory, where by default it would return each large block to the system and
  ask for it anew, which costs a page fault for each 4 KiB of every activation; and it asks for huge
  pages where the system grants them. It keeps many small blocks at hand (tcache) and none in fast
  bins, which it empties at every large block: oneDNN allocates many small ones for each product.
  Other C libraries ignore these settings.
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
