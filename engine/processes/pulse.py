"""Signs of life that a process and its parent give each other, in memory that both share.

Each side counts up its own number and looks at the other's, and the child says which turn of work
it is at, if any. Nothing here waits and nothing fills up, as a socket does that nobody reads:
neither a beat is held up by who does not look, nor a look by who does not beat. Every number is
written by one side only, in one aligned word.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from enum import IntEnum

BEATS_PER_PATIENCE = 4  # beats, and looks, in the time without one after which a process is silent
NO_TURN = 0

_COUNT = struct.Struct("@Q")
_TURN_AT = 16  # behind both counts
_SIZE = 24


class Side(IntEnum):
    """A side is the parent or the child; its value is where in the page its count stands."""

    PARENT = 0
    CHILD = 8


class Pulse:
    """A pulse is one side's view of the page that both share."""

    def __init__(self, fd: int, side: Side) -> None:
        """Maps the page of the descriptor, which is left open."""
        self._page = mmap.mmap(fd, _SIZE)
        self._side = side
        self._count = 0
        self._turns = NO_TURN

    def beat(self) -> None:
        self._count += 1
        _COUNT.pack_into(self._page, self._side, self._count)

    @property
    def others_beats(self) -> int:
        other = Side.CHILD if self._side is Side.PARENT else Side.PARENT
        return int(_COUNT.unpack_from(self._page, other)[0])

    def work(self, is_at_work: bool) -> None:
        """Shows that the child sets to another turn, or that it waits for others."""
        self._turns += is_at_work
        _COUNT.pack_into(self._page, _TURN_AT, self._turns if is_at_work else NO_TURN)

    @property
    def turn(self) -> int:
        """Returns the turn that the child is at, counted from 1; NO_TURN while it waits."""
        return int(_COUNT.unpack_from(self._page, _TURN_AT)[0])

    def close(self) -> None:
        self._page.close()


def shared_page() -> int:
    """Returns a descriptor of a new page to make a `Pulse` on. Raises OSError."""
    fd = os.memfd_create("niyama-pulse")
    os.ftruncate(fd, _SIZE)
    return fd


def keep_beating(pulse: Pulse, heartbeat_s: float) -> None:
    """Beats from a thread of its own, whatever the others of this process do, until it ends."""

    def beat() -> None:
        while True:
            pulse.beat()
            time.sleep(heartbeat_s / BEATS_PER_PATIENCE)

    threading.Thread(target=beat, name="pulse", daemon=True).start()
