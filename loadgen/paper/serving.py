"""Whether a load is served, and the largest that is.

A rate is served when at most 1 % of all requests are late *and* the backlog does not grow: of the
work that arrives, at most 1 % is left behind over the run (in short runs: half of what chance
brings, if that is more). With deadlines of 600 and 1,800 s the first alone would measure how long a
run is, not what an engine can do. Rates are tried in steps of 1 % of the compute bound. Every
contender sees the same requests (the same random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from client.values import Importance
from loadgen import score
from loadgen.paper.contender import Contender
from loadgen.paper.load import Load, compute_bound
from loadgen.record import Record
from loadgen.simulated import records
from loadgen.workload import PlannedRequest, plan

MAX_MISSES = 0.01
MAX_GROWTH = 0.01
CHUNKS = (256, 512, 1024, 2048)
_STEPS = 100  # rates tried per compute bound


class Judge(NamedTuple):
    """How requests are scored, and how many may be late."""

    pace: bool = False  # raw token pace instead of the deadline envelope
    max_misses: float = MAX_MISSES

    def is_late(self, record: Record) -> bool:
        return not (score.is_on_pace if self.pace else score.is_on_time)(record)


def is_served(contender: Contender, requests: Sequence[PlannedRequest], judge: Judge) -> bool:
    """Stops where the answer is known."""
    ended, num_late = [], 0
    for record in records(contender.setup(), requests):
        ended.append(record)
        num_late += judge.is_late(record)
        if num_late > judge.max_misses * len(requests):
            return False
    end_s = math.nextafter(requests[-1].at, math.inf)
    most_growth = max(MAX_GROWTH, score.backlog_noise(ended, 0.0, end_s) / 2)
    return score.backlog_growth(ended, 0.0, end_s) <= most_growth


class Capacity(NamedTuple):
    """Requests/s; `share` is of the compute bound."""

    rps: float
    share: float
    chunk: int


def capacity(load: Load, contender: Contender, judge: Judge, guess: int = 85) -> Capacity:
    """The largest rate that is served, on the grid."""
    bound = compute_bound(contender.setup().profile.latency, load)

    def serves(step: int) -> bool:
        requests = list(plan(load.workload(bound * step / _STEPS)))
        return is_served(contender, requests, judge)

    step = largest(serves, guess, _STEPS + 5)
    return Capacity(bound * step / _STEPS, step / _STEPS, contender.chunk)


def largest(serves: Callable[[int], bool], guess: int, most: int) -> int:
    """The largest step up to `most` that serves, 0 where none does; the search starts at a guess
    and widens from there."""
    low, high, stride = 0, most + 1, 4
    step = guess
    while high - low > 1:
        if serves(step):
            low, step = step, step + stride
        else:
            high, step = step, step - stride
        if not low < step < high:
            step = (low + high) // 2
        stride *= 2
    return low


def best_chunk(load: Load, contender: Contender, judge: Judge) -> tuple[Capacity, Capacity]:
    """With the smallest chunk, as the papers run it, and with the best of CHUNKS. A larger chunk is
    searched only where it serves more than the best so far."""
    first = best = capacity(load, replace(contender, chunk=CHUNKS[0]), judge, guess=60)
    for chunk in CHUNKS[1:]:
        wider = replace(contender, chunk=chunk)
        if not best.rps:
            best = capacity(load, wider, judge, guess=30)
            continue
        step = round(best.share * _STEPS) + 1
        requests = list(plan(load.workload(best.rps / (step - 1) * step)))
        if is_served(wider, requests, judge):
            best = capacity(load, wider, judge, guess=step + 2)
    return first, best


class Lateness(NamedTuple):
    """Shares of the requests; latencies in seconds: TTFT of the interactive, TTLT of the others."""

    num_requests: int
    late: float
    late_important: float  # of those above low importance
    ttft_p99_s: float
    ttlt_p99_s: float
    slowest_relegated_s: float


def lateness(load: Load, contender: Contender, judge: Judge, tier: str = "") -> Lateness:
    """At the load's own rate, over all its requests (or one tier's), waited for to the end."""
    requests = [r for r in plan(load.workload()) if not tier or r.tier == tier]
    ended = list(records(contender.setup(), requests))
    important = [r for r in ended if r.request.importance is not Importance.LOW]
    ttft = [value for r in ended if (value := score.ttft_s(r)) is not None and _is_paced(r)]
    ttlt = [value for r in ended if (value := score.ttlt_s(r)) is not None and not _is_paced(r)]
    return Lateness(
        len(ended),
        sum(map(judge.is_late, ended)) / len(ended),
        sum(map(judge.is_late, important)) / max(1, len(important)),
        score.percentiles(ttft).p99 or 0.0,
        score.percentiles(ttlt).p99 or 0.0,
        max((score.ttlt_s(r) or 0.0 for r in ended if r.relegated), default=0.0),
    )


def _is_paced(record: Record) -> bool:
    return record.request.targets.tbt is not None


def replicas(load: Load, contender: Contender, judge: Judge, tier: str = "") -> int:
    """The fewest that serve the load together; or, of one tier, in a silo of its own. 0: not even
    four times as many as the work alone needs, as where a prompt by itself takes too long."""
    requests = [r for r in plan(load.workload()) if not tier or r.tier == tier]
    bound = compute_bound(contender.setup().profile.latency, load)
    least = max(1, math.ceil(len(requests) / (load.hours * 3600) / bound))
    for count in range(least, 4 * least + 1):
        if is_served(replace(contender, replicas=count), requests, judge):
            return count
    return 0
