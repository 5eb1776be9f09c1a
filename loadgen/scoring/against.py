"""What really became of replayed requests, beside which a run of them is laid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.deciding.outcome import Fate
from loadgen.scoring.score import ALL
from loadgen.scoring.summary import Window
from loadgen.workload.logged import Guesses, Log
from loadgen.workload.plan import Workload

# As `score` judges: who left with nothing overdue had what it wanted.
_ON_TIME = (Fate.ON_TIME, Fate.BEST_EFFORT, Fate.CANCELLED)


@dataclass(frozen=True, slots=True)
class Happened:
    """What became of one group of requests, as far as the log says it. `relegated` is not in it:
    only what callers saw.
    """

    group: str
    fates: Mapping[Fate, int]

    @property
    def num_ended(self) -> int:
        """Counts the requests of which the log says how they ended."""
        return sum(self.fates.values())

    @property
    def attainment(self) -> float | None:
        """Returns the share of them that were on time."""
        num_on_time = sum(self.fates.get(fate, 0) for fate in _ON_TIME)
        return num_on_time / self.num_ended if self.num_ended else None


@dataclass(frozen=True, slots=True)
class Replayed:
    """A log that was replayed: what happened then by tier, and at last all together; how many
    requests came for each of the log's; and what had to be guessed.
    """

    files: tuple[str, ...]
    happened: tuple[Happened, ...]
    factor: float
    guesses: Guesses


def replayed(workload: Workload, window: Window) -> Replayed | None:
    """Returns what a workload replays in the measured part of a run; None where it is no log."""
    log = workload.recorded
    if not isinstance(log, Log):
        return None
    fates: dict[str, dict[Fate, int]] = {load.tier: {} for load in workload.tiers}
    all_: dict[Fate, int] = {}
    for request, fate in zip(log.requests, log.fates, strict=True):
        if fate is None or not window.start_s <= request.at < window.end_s:
            continue
        if request.tenant in workload.tenants:
            for counts in (fates[request.tier], all_):
                counts[fate] = counts.get(fate, 0) + 1
    rate, own = workload.arrivals.rate, len(log.within(workload)) / workload.duration_s
    assert rate is not None
    return Replayed(
        tuple(map(str, log.paths)),
        (*(Happened(tier, counts) for tier, counts in fates.items()), Happened(ALL, all_)),
        rate.high / own if own else 1.0,
        log.guesses,
    )
