"""The largest rate that is served, the fewest replicas that serve one, and who is late at a rate.

Served is what `loadgen.scoring.criterion` says, at most 1 % late and no growing backlog; of that,
in a short run, half of what chance brings is allowed here. Rates are tried in steps of 1 % of the
compute bound. Every contender sees the same requests (the same random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from engine.deciding.latency import LatencyProfile
from loadgen.paper.ceiling import least_seconds
from loadgen.paper.contender import Contender
from loadgen.paper.load import Load, compute_bound, pure_seconds
from loadgen.scoring.criterion import SIMULATED, Criterion
from loadgen.scoring.score import percentiles
from loadgen.silos import CHUNKS, is_served
from loadgen.targets.record import Record
from loadgen.targets.simulated import records
from loadgen.workload.plan import plan
from niyama.client.values import Importance

_STEPS = 100  # rates tried per compute bound

ENVELOPE = SIMULATED._replace(deviations=0.5)
PACE = ENVELOPE._replace(pace=True)
NONE_LATE = ENVELOPE._replace(max_misses=0.0)


class ServedRate(NamedTuple):
    """The largest rate that a contender serves, in requests/s; `share` is of the compute bound. In
    half an hour chance brings a few percent more or less work than the rate promises (see
    `done`).
    """

    rps: float
    share: float
    chunk: int


def capacity(load: Load, contender: Contender, criterion: Criterion, guess: int = 85) -> ServedRate:
    """Searches the largest rate that all replicas of a contender serve together, on the grid of
    rates; `guess` is the step to begin with.
    """
    bound = compute_bound(contender.setup().profile.latency, load) * contender.replicas

    def serves(step: int) -> bool:
        requests = list(plan(load.workload(bound * step / _STEPS)))
        return is_served(contender.setup(), requests, criterion)

    step = largest(serves, guess, _STEPS + 5)
    return ServedRate(bound * step / _STEPS, step / _STEPS, contender.chunk)


def done(load: Load, contender: Contender, criterion: Criterion) -> float:
    """Returns the share of a run's time that went into requests that ended on time within it, at
    the load's own rate, by the pure seconds of the bound. It is low where requests take minutes,
    since some are in flight at its end.
    """
    ended = list(records(contender.setup(), plan(load.workload())))
    return share_done(contender.setup().profile.latency, ended, load.hours * 3600, criterion)


def share_done(
    profile: LatencyProfile, ended: Sequence[Record], duration_s: float, criterion: Criterion
) -> float:
    """Returns the pure seconds of those requests among the ended that were on time within the run,
    over its duration.
    """
    in_time = (
        r.request
        for r in ended
        if r.ended_at is not None and r.ended_at <= duration_s and not criterion.is_late(r)
    )
    return sum(pure_seconds(profile, r.prompt_len, r.output_len) for r in in_time) / duration_s


def ceiling(load: Load, contender: Contender, criterion: Criterion) -> float:
    """Returns the largest share of the compute bound, on the grid, at which a policy could be late
    with nobody (ceiling.py). The contender's profile and nothing else of it counts.
    """
    profile = contender.setup().profile.latency
    bound = compute_bound(profile, load)

    def fits(step: int) -> bool:
        requests = list(plan(load.workload(bound * step / _STEPS)))
        return least_seconds(profile, requests) <= load.hours * 3600

    return largest(fits, 92, _STEPS + 5) / _STEPS


def largest(serves: Callable[[int], bool], guess: int, most: int) -> int:
    """Returns the largest step up to `most` that serves, 0 where none does; the search starts at a
    guess and widens from there.
    """
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


def best_chunk(
    load: Load, contender: Contender, criterion: Criterion
) -> tuple[ServedRate, ServedRate]:
    """Searches the rate served with the contender's own chunk, as the papers run it, and with the
    best of CHUNKS. Another chunk is searched only where it serves more than the best so far.
    """
    first = best = capacity(load, contender, criterion, guess=60)
    for chunk in CHUNKS:
        if chunk == contender.chunk:
            continue
        other = replace(contender, chunk=chunk)
        if not best.rps:
            best = capacity(load, other, criterion, guess=30)
            continue
        step = round(best.share * _STEPS) + 1
        requests = list(plan(load.workload(best.rps / (step - 1) * step)))
        if is_served(other.setup(), requests, criterion):
            best = capacity(load, other, criterion, guess=step + 2)
    return first, best


class Lateness(NamedTuple):
    """Who was late: shares of the requests, and latencies in seconds (TTFT of the interactive, TTLT
    of the others).
    """

    num_requests: int
    late: float
    late_important: float  # of those above low importance
    ttft_p99_s: float
    ttlt_p99_s: float
    slowest_relegated_s: float
    goodput_tokens_per_s: float  # prompt and output tokens of requests on time, while they arrive


def lateness(load: Load, contender: Contender, criterion: Criterion, tier: str = "") -> Lateness:
    """Measures who is late at the load's own rate, over all its requests (or one tier's), waited
    for to the end.
    """
    requests = [r for r in plan(load.workload()) if not tier or r.tier == tier]
    ended = list(records(contender.setup(), requests))
    on_time = [r.request for r in ended if not criterion.is_late(r)]
    important = [r for r in ended if r.request.importance is not Importance.LOW]
    ttft = [value for r in ended if (value := r.ttft_s) is not None and _is_paced(r)]
    ttlt = [value for r in ended if (value := r.ttlt_s) is not None and not _is_paced(r)]
    return Lateness(
        len(ended),
        (len(ended) - len(on_time)) / len(ended),
        sum(map(criterion.is_late, important)) / max(1, len(important)),
        percentiles(ttft).p99 or 0.0,
        percentiles(ttlt).p99 or 0.0,
        max((r.ttlt_s or 0.0 for r in ended if r.relegated), default=0.0),
        sum(r.prompt_len + r.output_len for r in on_time) / (load.hours * 3600),
    )


def _is_paced(record: Record) -> bool:
    return record.request.targets.tbt is not None


def replicas(load: Load, contender: Contender, criterion: Criterion, tier: str = "") -> int:
    """Returns the fewest replicas that serve the load together; or, of one tier, in a silo of its
    own. 0 says that not even four times as many do as the work alone needs, as where a prompt by
    itself takes too long.
    """
    requests = [r for r in plan(load.workload()) if not tier or r.tier == tier]
    bound = compute_bound(contender.setup().profile.latency, load)
    least = max(1, math.ceil(len(requests) / (load.hours * 3600) / bound))
    for count in range(least, 4 * least + 1):
        if is_served(replace(contender, replicas=count).setup(), requests, criterion):
            return count
    return 0


class Size(NamedTuple):
    """How many replicas a silo needs, and the chunk that they have; 0: no number is enough."""

    replicas: int
    chunk: int


def silo(load: Load, contender: Contender, criterion: Criterion, tier: str) -> tuple[Size, Size]:
    """Returns the fewest replicas of a tier's silo, with the contender's own chunk, as published,
    and with the best of CHUNKS; where another needs as many, it is the published one.
    """
    first = best = Size(replicas(load, contender, criterion, tier), contender.chunk)
    requests = [r for r in plan(load.workload()) if r.tier == tier]
    for chunk in CHUNKS:
        if chunk == contender.chunk:
            continue
        other = replace(contender, chunk=chunk)
        if not best.replicas:
            best = Size(replicas(load, other, criterion, tier), chunk)
        while best.replicas > 1:
            fewer = replace(other, replicas=best.replicas - 1)
            if not is_served(fewer.setup(), requests, criterion):
                break
            best = Size(fewer.replicas, chunk)
    return first, best
