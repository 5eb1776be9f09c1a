"""What became of a call that generates: one word for each that arrived, and nowhere else is it said
which. Seconds throughout, from the arrival of the call's message.

A call has arrived once its message has come, or once it was refused while that came, or once its
deadline has passed before. So a caller that leaves or stalls before its message is whole is no
arrival; neither is a request that breaks the rules of the API, or has the id of one in flight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from engine.deciding.outcome import Fate
from engine.deciding.request import Targets

# A client's deadline is earlier than the server knows it: clocks apart and the way take some time,
# and gRPC rounds a timeout up to two or three digits, at most by 1 %.
SKEW_S = 0.1
SKEW_SHARE = 0.02


class End(Enum):
    """How a call came to its end."""

    COMPLETE = "complete"  # every completion ended by itself
    EXPIRED = "expired"
    REFUSED = "refused"
    LEFT = "left"  # the caller left, or took nothing of what it was sent
    BROKEN = "broken"  # anything else


_FATES = {End.EXPIRED: Fate.EXPIRED, End.REFUSED: Fate.REFUSED, End.BROKEN: Fate.FAILED}


def fate(end: End, has_targets: bool, is_late: bool) -> Fate:
    """Returns what became of a call. `is_late`: a target was missed, as far as the call came."""
    if end in _FATES:
        return _FATES[end]
    if is_late and has_targets:
        return Fate.LATE
    if end is End.LEFT:
        return Fate.CANCELLED
    return Fate.ON_TIME if has_targets else Fate.BEST_EFFORT


def is_expired(allowed_s: float, remaining_s: float) -> bool:
    """Says whether a call that was cancelled with so much left of the time that it was allowed has
    come to its deadline, by its client's clock.

    Nobody else has a client's clock, so this is a guess: a caller may also have left just before.
    Before half of the time is over it is always that.
    """
    return remaining_s <= max(0.0, min(max(SKEW_S, SKEW_SHARE * allowed_s), allowed_s / 2))


@dataclass(slots=True)
class Progress:
    """How far one completion has come, by what was handed out of it. Its next token is due at
    `due_s`, each later one `tbt_s` after; inf where nothing is.
    """

    due_s: float
    tbt_s: float = 0.0
    num_tokens: int = 0
    first_s: float = math.inf
    last_s: float = 0.0
    worst_gap_s: float = 0.0
    is_late: bool = False  # a token came after it was due
    has_ended: bool = False  # by itself

    def add(self, num_tokens: int, now_s: float, is_awaited: bool = True) -> None:
        """Notes that so many more tokens, at least one, were handed out. Those that had to wait for
        the caller to take what came before (not `is_awaited`) are not late by that.
        """
        if not self.num_tokens:
            self.first_s = now_s
        elif now_s - self.last_s > self.worst_gap_s:
            self.worst_gap_s = now_s - self.last_s
        self.last_s = now_s
        if is_awaited and now_s > self.due_s:
            self.is_late = True
        self.num_tokens += num_tokens
        self.due_s += num_tokens * self.tbt_s

    def is_overdue(self, now_s: float) -> bool:
        """Says whether a token came late, or the next one is already."""
        return self.is_late or (not self.has_ended and now_s > self.due_s)


def progress(targets: Targets) -> Progress:
    """Returns the progress of a completion of which nothing has come yet."""
    if targets.ttft_s is not None and targets.tbt_s is not None:
        return Progress(targets.ttft_s, targets.tbt_s)
    return Progress(math.inf if targets.ttlt_s is None else targets.ttlt_s)
