"""How many file descriptors there are, and how many of them connections may have.

Every connection takes one. Were all taken, nothing could be accepted, no engine started again and
no metrics read. So some are kept for these, and connections beyond the rest are refused at once.
"""

from __future__ import annotations

import os
import resource

MOST = 1 << 16  # asked of the system: more are of no use to one event loop
# Of a front end, for the engine and the readers and what starting one takes, metrics, the event
# loop's and gRPC's own, and connections on their way to being refused.
RESERVED = 40


def raise_limit() -> None:
    """Raises the process's soft limit of descriptors to the hard one, at most to MOST."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room_for_connections(most: int) -> int:
    """Returns how many connections may be open: at most `most`, and no more than leave the reserve
    free.

    Raises ValueError where not even one does.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return most
    room = limit - len(os.listdir("/proc/self/fd")) - RESERVED
    if room < 1:
        raise ValueError(f"{limit} file descriptors are too few: raise `ulimit -n`")
    return min(most, room)
