"""What is remembered of one request: what it asked for, each decision that changed its fate, and
how it ended. Instants and durations are in seconds; story.py puts it in words.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.deciding.budget import Budget
from engine.deciding.outcome import Fate
from engine.deciding.request import BEYOND, Request
from engine.deciding.sequence import Sequence

MOST_AHEAD = 5  # whose work is told apart


class Ahead(NamedTuple):
    """Predicted seconds of work before a request, of one tier and one share. `beyond_s` of them are
    of requests that came while their share had asked for more than its part.
    """

    tier: str
    share: str
    seconds: float
    beyond_s: float = 0.0


def whose(
    sequences: Iterable[Sequence], work_s: Callable[[Sequence], float], ahead_s: float
) -> tuple[Ahead, ...]:
    """Returns whose work is ahead, the most first and MOST_AHEAD at most: `sequences` are all that
    are served before, or a sample of them, and `ahead_s` is the work of all of them.
    """
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    beyond: defaultdict[tuple[str, str], float] = defaultdict(float)
    for sequence in sequences:
        request = sequence.request
        who = request.tier, request.share.name
        own_s = work_s(sequence)
        sums[who] += own_s
        if sequence.importance == BEYOND:
            beyond[who] += own_s
    total_s = math.fsum(sums.values())
    if not total_s > 0 or not ahead_s > 0:
        return ()
    scale = ahead_s / total_s
    largest = sorted(sums, key=lambda who: (-sums[who], who))[:MOST_AHEAD]
    return tuple(Ahead(*who, sums[who] * scale, beyond[who] * scale) for who in largest)


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry. `predicted_at` is the instant that the scheduler then expected, if any, and
    `ahead` whose work was then to be served before, where that was told.
    """

    at: float
    kind: str
    detail: str
    values: Mapping[str, float]
    predicted_at: float | None = None
    ahead: tuple[Ahead, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended. None stands where there is no such token, or too few."""

    at: float
    result: Fate
    reason: str  # as FinishReason, or why it never came to the engine
    detail: str  # of one that failed or was refused: what happened
    output_tokens: int
    budget: Budget
    queue_s: float | None = None  # arrival to the first iteration that computed any of it
    ttft_s: float | None = None
    worst_tbt_s: float | None = None
    ttlt_s: float | None = None
    tbt_needed_s: float | None = None  # as `Sequence` has it
    preemptions: int = 0
    holds: int = 0


@dataclass(slots=True)
class Timeline:
    """What is remembered of one request; of its prompt that is only the length.

    Of one in flight `budget` says where its time went until it was asked about. `note` says why no
    end is known, where that is not because it is in flight.
    """

    request: Request
    decisions: list[Decision] = field(default_factory=list)
    end: End | None = None
    budget: Budget | None = None
    note: str = ""
