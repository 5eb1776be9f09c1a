"""Runs put in order for the report: who was compared, at which loads, with which targets.

A *view* is what was measured at one load: one run, or one of each contender. With one contender,
lines are tiers; with several, lines are contenders, and each tier has a chart of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from loadgen.scoring.capacity import Capacity
from loadgen.scoring.modes import Measurement
from niyama.client.values import Targets

MOST_VIEWS = 8


@dataclass(frozen=True, slots=True)
class View:
    """The runs at one load, in the order of their contenders."""

    load: str
    runs: tuple[Measurement, ...]


def contender(run: Measurement) -> str:
    """Returns whom a run measured: the contender of a comparison, or else the target's policy."""
    return run.contender or run.summary.target.policy


def load_rps(run: Measurement) -> float:
    """Returns the requests/s that were asked for; of a trace at its own pace, what came of it."""
    return run.summary.requested_rps if run.rate is None else run.rate


def contenders(runs: Iterable[Measurement]) -> list[str]:
    """Returns everybody who was measured, in order of first appearance."""
    return list(dict.fromkeys(contender(run) for run in runs))


def has_loads(runs: Iterable[Measurement]) -> bool:
    """Says whether the runs were at more than one load."""
    return len({run.rate for run in runs}) > 1


def tier_targets(runs: Iterable[Measurement]) -> dict[str, Targets]:
    """Returns what each tier's requests were judged by, in the order of the mix; tiers that nothing
    was sent to are left out.
    """
    found: dict[str, Targets] = {}
    order: dict[str, None] = {}
    for run in runs:
        order.update(dict.fromkeys(score.group for score in run.summary.by_tier))
        for record in run.records:
            found.setdefault(record.request.tier, record.request.targets)
    return {name: found[name] for name in order if name in found}


def views(runs: Iterable[Measurement], capacities: Iterable[Capacity] = ()) -> list[View]:
    """Returns the runs by load, ascending. Of a search only the rates remain between which a
    capacity lies, and of repeats only the first.
    """
    wanted = [rate for each in capacities for rate in (each.passed, each.failed)]
    runs = list(runs)
    by_load: dict[str, dict[str, Measurement]] = {}
    for run in runs:
        if not wanted or any(math.isclose(load_rps(run), rate) for rate in wanted):
            by_load.setdefault(f"{load_rps(run):.4g}/s", {}).setdefault(contender(run), run)
    num_contenders = len(contenders(runs))
    found = []
    for load, by_name in by_load.items():
        who = "" if len(by_name) == num_contenders else f" {', '.join(by_name)}"
        found.append(View(load + who, tuple(by_name.values())))
    found.sort(key=lambda view: load_rps(view.runs[0]))
    return [found[i] for i in evenly(len(found), MOST_VIEWS)]


def evenly(num: int, most: int) -> list[int]:
    """Returns at most `most` of the indices below `num`, evenly spread, the first and last among
    them.
    """
    if num <= most:
        return list(range(num))
    return [i * (num - 1) // (most - 1) for i in range(most)]
