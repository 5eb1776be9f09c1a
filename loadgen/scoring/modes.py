"""What can be done with a workload and a target: one run, a sweep over rates, the search for
capacity, a comparison. Every mode is a sequence of measurements; reports come after.

Whoever asks for a measurement may watch it: `Showing` makes a watch of a run's duration (seconds)
and name, and is left when the run is over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from loadgen import interrupts
from loadgen.scoring import fairness
from loadgen.scoring.against import Replayed, replayed
from loadgen.scoring.capacity import Capacity, find_capacity, majority
from loadgen.scoring.criterion import MEASURED
from loadgen.scoring.summary import WHOLE, Measuring, Summary, summarise
from loadgen.targets.record import Record
from loadgen.targets.target import End, Run, Series, Target, Watch
from loadgen.workload.plan import TierLoad, Workload, plan
from loadgen.workload.served import TargetInfo
from niyama.client.values import Importance

Showing = Callable[[float, str], AbstractContextManager[Watch]]


def unwatched(duration_s: float, name: str) -> AbstractContextManager[Watch]:
    """Shows a run to nobody."""
    return contextlib.nullcontext(lambda progress: None)


class NotMeasured(Exception):
    """A search cannot go on: its last run says nothing about the target."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a mode, and its name among the others. `summary` has the figures of `records` as
    `measuring` says.
    """

    name: str
    summary: Summary
    records: list[Record]
    contender: str = ""  # of a comparison
    rate: float | None = None  # asked for, in requests per second; None: as a trace has it
    series: Series | None = None
    duration_s: float = 0.0  # of the load that was planned
    interrupted_by: int = 0  # the number of the signal that ended it
    measuring: Measuring = WHOLE
    replayed: Replayed | None = None  # a decision log, and what really happened


def measure(
    target: Target,
    info: TargetInfo,
    workload: Workload,
    measuring: Measuring,
    showing: Showing = unwatched,
    name: str = "",
    contender: str = "",
    fair_share: bool = False,
) -> Measurement:
    """Sends the workload once and folds what came of it; with `fair_share` then each of several
    tenants' alone (fairness.py). Raises ValueError where warm-up and cool-down leave nothing of the
    run, and what `Target.run` raises.
    """
    if measuring.warmup_s + measuring.cooldown_s >= workload.duration_s:
        raise ValueError("warm-up and cool-down leave nothing of the run to measure")
    with showing(workload.duration_s, name) as watch:
        run = target.run(plan(workload), watch)
    alone = _alone(target, info, workload, run, measuring, showing) if fair_share else {}
    with interrupts.unheard() if run.interrupted_by else contextlib.nullcontext():
        tiers = [load.tier for load in workload.tiers]
        summary = summarise(tiers, workload.duration_s, info, run, measuring, alone)
    rate = workload.arrivals.rate
    return Measurement(
        name,
        summary,
        run.records,
        contender=contender,
        rate=rate.mean(workload.duration_s) if rate else None,
        series=run.series,
        duration_s=workload.duration_s,
        interrupted_by=run.interrupted_by,
        measuring=measuring,
        replayed=replayed(workload, summary.window),
    )


def _alone(
    target: Target,
    info: TargetInfo,
    workload: Workload,
    run: Run,
    measuring: Measuring,
    showing: Showing,
) -> dict[str, float]:
    """Returns the attainment of each of several tenants with its fair share alone. An interruption
    meanwhile is one of the run.
    """
    found: dict[str, float] = {}
    if len(workload.tenants) < 2:
        return found
    tiers = [load.tier for load in workload.tiers]
    for tenants, load in fairness.alone(workload, info.weights):
        if run.end is not End.COMPLETE:
            break
        with showing(load.duration_s, f"{tenants[0]} alone") as watch:
            own = target.run(plan(load), watch)
        run.end, run.problem, run.interrupted_by = own.end, own.problem, own.interrupted_by
        leaves_some = measuring.warmup_s + measuring.cooldown_s < load.duration_s
        part = measuring if leaves_some else WHOLE  # a replay is shorter at a larger rate
        share = summarise(tiers, load.duration_s, info, own, part).total.attainment
        if own.end is End.COMPLETE and share is not None:
            found |= dict.fromkeys(tenants, share)
    return found


Measure = Callable[[Workload, str], Measurement]


def sweep(measure: Measure, workload: Workload, rates: Sequence[float]) -> list[Measurement]:
    """Sends the same load at each rate, in the order given; stops where a run did not complete."""
    done: list[Measurement] = []
    for rate in rates:
        done.append(measure(workload.at_rate(rate), f"{rate:g}/s"))
        if done[-1].summary.end is not End.COMPLETE:
            break
    return done


@dataclass(frozen=True, slots=True)
class Search:
    """How capacity is searched. A rate passes when most of its `repeats` runs do (`is_passed`)."""

    guess: float
    max_misses: float = MEASURED.max_misses
    precision: float = 0.05  # relative
    repeats: int = 3

    def __post_init__(self) -> None:
        if not (self.guess > 0 and self.precision > 0 and 0 <= self.max_misses < 1):
            raise ValueError("a search needs a positive rate and precision, and misses below 1")
        if self.repeats < 1:
            raise ValueError(f"a rate is tried at least once, got {self.repeats}")

    def is_passed(self, summary: Summary) -> bool:
        """Says whether one run served its load with at most `max_misses` of the requests late."""
        return MEASURED._replace(max_misses=self.max_misses).is_met(summary)


def search_capacity(
    measure: Measure, workload: Workload, search: Search
) -> tuple[Capacity, list[Measurement]]:
    """Returns the largest rate that passes, and every run on the way. Raises NotMeasured."""
    done: list[Measurement] = []

    def passes_once(rate: float, repeat: int) -> bool:
        load = replace(workload.at_rate(rate), seed=workload.seed + repeat)
        done.append(measure(load, f"{rate:.4g}/s #{repeat + 1}"))
        summary = done[-1].summary
        if summary.end is not End.COMPLETE or summary.invalid:
            raise NotMeasured(summary.problem or summary.invalid)
        return search.is_passed(summary)

    def passes(rate: float) -> bool:
        return majority(lambda repeat: passes_once(rate, repeat), search.repeats)

    return find_capacity(passes, search.guess, search.precision), done


def compare(
    opened: Callable[[str], AbstractContextManager[Target]],
    contenders: Sequence[str],
    build: Callable[[TargetInfo], Workload],
    send: Callable[[Target, TargetInfo, Workload, str], list[Measurement]],
) -> list[Measurement]:
    """Sends the same requests to each contender, one after the other: one run, a sweep or a search,
    as `send` does it. The first one's tiers say the targets, so that all are judged by the same: a
    contender whose tier of that name has others is sent them explicitly.
    """
    done: list[Measurement] = []
    workload: Workload | None = None
    for contender in contenders:
        with opened(contender) as target:
            info = target.info()
            workload = pinned(build(info), info) if workload is None else workload
            done.extend(send(target, info, stated(workload, info), contender.partition("=")[0]))
        if done[-1].summary.end is not End.COMPLETE:
            break
    return done


def pinned(workload: Workload, info: TargetInfo) -> Workload:
    """Returns the same load with the importance of these tiers sent explicitly."""
    importance = {tier.name: tier.importance for tier in info.tiers}

    def pin(load: TierLoad) -> TierLoad:
        usual = {importance.get(load.tier, Importance.NORMAL): 1.0}
        return replace(load, importance=load.importance or usual)

    return replace(workload, tiers=tuple(pin(load) for load in workload.tiers))


def stated(workload: Workload, info: TargetInfo) -> Workload:
    """Returns the same load with targets sent explicitly where these tiers have others. Else the
    tier is named, as what it says beside its targets (`max_gap`) is to hold, too.
    """
    own = {tier.name: tier.targets for tier in info.tiers}

    def state(load: TierLoad) -> TierLoad:
        return replace(load, explicit=load.explicit or own.get(load.tier) != load.targets)

    return replace(workload, tiers=tuple(state(load) for load in workload.tiers))
