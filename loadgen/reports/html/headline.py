"""What the report says first: one sentence, and a few figures large enough to be read from afar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from loadgen.reports.html.chart import colour
from loadgen.reports.html.runs import contender, contenders, has_loads, load_rps
from loadgen.reports.html.text import duration, share
from loadgen.scoring.capacity import Capacity
from loadgen.scoring.criterion import MEASURED
from loadgen.scoring.modes import Measurement
from loadgen.targets.target import End


class Tile(NamedTuple):
    """One figure, and what it is. `colour` is that of the contender it belongs to."""

    value: str
    what: str
    detail: str = ""
    colour: str = ""


def headline(
    runs: Sequence[Measurement], capacities: Mapping[str, Capacity], max_misses: float
) -> str:
    """Returns the one sentence that says what came of the runs."""
    names = contenders(runs)
    if capacities:
        return _served({name: each.passed for name, each in capacities.items()}, max_misses)
    if has_loads(runs):
        return _served({name: sustained(runs, name, max_misses) for name in names}, max_misses)
    if len(names) > 1:
        ordered = sorted(runs, key=lambda run: -(run.summary.total.attainment or 0.0))
        shares = (f"{contender(r)} {share(r.summary.total.attainment)}" for r in ordered)
        return "On time: " + ", ".join(shares)
    total = runs[0].summary.total
    if total.attainment is None:
        return "Nothing was sent"
    return f"{share(total.attainment)} of {total.num_sent:,} requests were on time"


def _served(rates: Mapping[str, float], max_misses: float) -> str:
    """Returns the sentence on the largest loads served, the largest first; a single one goes
    without its name.
    """
    limit = f"at most {max_misses * 100:g} % late and no growing backlog"
    (best, rate), *others = sorted(rates.items(), key=lambda item: -item[1])
    if not rate:
        return f"No load was served with {limit}"
    who = f"{best} serves" if others else "Serves"
    rest = (f", {name} {rate:.3g}" if rate else f", {name} none" for name, rate in others)
    return f"{who} {rate:.3g} requests/s with {limit}" + "".join(rest)


def sustained(runs: Sequence[Measurement], name: str, max_misses: float) -> float:
    """Returns the largest load up to which all were served (`scoring.criterion`), in requests per
    second; 0 where none was. Of a load that was tried several times, most runs served it. Runs that
    say nothing of the server are left out.
    """
    criterion = MEASURED._replace(max_misses=max_misses)
    tries: dict[float, list[bool]] = {}
    for run in runs:
        if contender(run) == name and not run.summary.invalid:
            is_served = run.summary.end is End.COMPLETE and criterion.is_met(run.summary)
            tries.setdefault(load_rps(run), []).append(is_served)
    largest = 0.0
    for load, served in sorted(tries.items()):
        if sum(served) <= len(served) / 2:
            break
        largest = load
    return largest


def tiles(
    runs: Sequence[Measurement], capacities: Mapping[str, Capacity], max_misses: float
) -> list[Tile]:
    """Returns the large figures: of one run its main ones, of several contenders one tile each."""
    names = contenders(runs)
    if len(names) == 1:
        return list(_of_run(runs[0])) if len(runs) == 1 else []
    shades = {name: colour(i) for i, name in enumerate(names)}
    if capacities:
        return [
            Tile(f"{each.passed:.3g} /s", name, _range(each), shades[name])
            for name, each in capacities.items()
        ]
    if has_loads(runs):
        limit = f"served with at most {max_misses * 100:g} % late and no growing backlog"
        return [
            Tile(f"{rate:.3g} /s" if rate else "none", name, limit, shades[name])
            for name in names
            for rate in [sustained(runs, name, max_misses)]
        ]
    return [
        Tile(share(run.summary.total.attainment), contender(run), _detail(run, runs), shades[name])
        for run in runs
        for name in [contender(run)]
    ]


def _detail(run: Measurement, runs: Sequence[Measurement]) -> str:
    """Returns what stands below a contender's figure; with its target where targets differ, since
    one may have more machines than another.
    """
    names = {each.summary.target.name for each in runs}
    where = f", {run.summary.target.name}" if len(names) > 1 else ""
    return f"on time; goodput {run.summary.total.goodput_rps:.2f} /s{where}"


def _range(capacity: Capacity) -> str:
    if not capacity.is_bracketed:
        return "no rate was found that is too much" if capacity.passed else "no rate was served"
    return f"{capacity.failed:.4g} /s is too much"


def _of_run(run: Measurement) -> Iterator[Tile]:
    summary, total = run.summary, run.summary.total
    yield Tile(share(total.attainment), "on time", f"{total.num_on_time:,} of {total.num_sent:,}")
    yield Tile(share(total.pace_attainment), "on pace", "no gap longer than its target")
    told = total.promises
    if any(told):
        detail = f"of {told.num_told_on_time:,}; {share(told.recall_late)} of the late foretold"
        yield Tile(share(told.broken_share), "promises broken", detail)
    yield Tile(
        f"{total.goodput_rps:.2f} /s",
        "goodput",
        f"of {summary.requested_rps:.2f} requests/s; {total.goodput_tokens_per_s:,.0f} tokens/s",
    )
    tier = summary.by_tier[0]
    median = f"{tier.group}; p50 {duration(tier.ttft.p50)}"
    yield Tile(duration(tier.ttft.p99), "TTFT p99", median)
    yield Tile(f"{total.num_incomplete:,}", "failed", f"{total.num_relegated:,} relegated")
    yield Tile(
        duration(summary.lag.p99_s), "schedule lag p99", f"max {duration(summary.lag.max_s)}"
    )
