"""What an engine reports of itself: what it has done, how full it is, how near to its limits."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from engine.deciding.latency import LatencyErrors
from engine.deciding.memory import Memory
from engine.deciding.queued_work import NOTHING, Amount, Group
from engine.deciding.request import Importance, Targets

# Upper ends of the ranges in which iterations are counted, by their seconds and by actual over
# predicted.
ITERATION_BOUNDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0),
)
ERROR_BOUNDS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0, 10.0)


class Counts(NamedTuple):
    """How many values there were in each range, and their sum. `numbers` has one more than `bounds`
    (upper ends, which belong to their ranges): of those beyond.
    """

    bounds: tuple[float, ...]
    numbers: tuple[int, ...]
    total: float


class Distribution:
    """Counts values by ranges."""

    __slots__ = ("_bounds", "_numbers", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._numbers = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Counts one more value."""
        self._numbers[bisect_left(self._bounds, value)] += 1
        self._total += value

    def counts(self) -> Counts:
        """Returns what has been counted until now."""
        return Counts(self._bounds, tuple(self._numbers), self._total)


@dataclass(slots=True)
class Totals:
    """What a scheduler has counted since it began."""

    num_iterations: int = 0
    predicted_s: float = 0.0  # of the iterations: what they were planned to take
    num_submitted: int = 0
    num_finished: int = 0  # for whatever reason
    num_failed: int = 0  # of the finished: the model's logits were not finite
    num_preemptions: int = 0
    num_relegations: int = 0
    num_holds: int = 0  # of running sequences, each for an iteration
    num_chunks: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    lost_tokens: int = 0  # computed, and to be computed again: their pages were taken
    prompt_tokens: int = 0  # of those submitted
    cached_tokens: int = 0  # of prompts: taken from the prefix index


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """The state of a scheduler at one moment, and its totals until then (a copy)."""

    num_waiting: int  # prefill not complete
    num_running: int  # decoding
    num_relegated: int  # of the waiting
    num_held: int  # of the running: sat the last iteration out
    pages_total: int
    pages_free: int  # free or reclaimable
    pages_idle: int  # reclaimable: nobody reads them, and the prefix index knows what they hold
    alpha: float  # weight of work against deadline in the order of prefills
    latency_errors: LatencyErrors | None  # None before the first iteration
    speed: float | None  # of late, 1: as the profile says; None before the first iteration
    iterations: Counts  # by their seconds
    errors: Counts  # iterations by actual over predicted
    relegations: Mapping[tuple[str, str], int]  # of num_relegations, by tier ("": explicit), cause
    asked_s: Mapping[tuple[str, str], float]  # engine time that submitted ones need, by share, tier
    totals: Totals


class TierAsked(NamedTuple):
    """A tier, as far as the fate of its requests goes by it."""

    name: str
    targets: Targets
    importance: Importance


class Outlook(NamedTuple):
    """What a typical request of a tier has to expect now, of a tenant within its part."""

    headroom_s: float  # work that could come before it and it would be called on time still
    late_chance: float  # in [0, 1]
    ttft_s: float = 0.0  # after which its first token is expected
    ahead: Amount = NOTHING  # what waits and is served before it
    target_s: float = math.inf  # its TTFT or TTLT
    prompt_len: int = 0  # what is typical


class Speeds(NamedTuple):
    """How fast an engine is of late, with what it has to do."""

    iteration_s: float  # between two tokens of a stream
    prefill_tokens_per_s: float  # where it does nothing else, in its largest chunks
    decode_s: float  # of engine time, that one more token of an output takes
    slowdown: float  # time that passes for each second of work ahead of a request


@dataclass(frozen=True, slots=True)
class Saturation:
    """How near to its limits an engine is at one moment."""

    amounts: Mapping[Group, Amount]  # what waits and runs
    demand: float  # engine time that is needed, per second, of late (flow.py)
    # By the name of the tier, of those that have targets; none before the first request of any.
    outlooks: Mapping[str, Outlook]
    speeds: Speeds
    memory: Memory


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the scheduler, the executor and the loop of an engine report together."""

    scheduler: SchedulerStats
    saturation: Saturation
    num_compilations: int  # by the executor, since it began to serve: none is expected
    busy_s: float  # for which the engine has had work, since it began to serve
