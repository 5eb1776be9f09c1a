"""What the report says first: one sentence, and a few figures large enough to be read from afar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from loadgen.capacity import Capacity
from loadgen.html.curves import late_shares
from loadgen.html.runs import contender, contenders
from loadgen.html.tables import duration, share
from loadgen.modes import Measurement


class Tile(NamedTuple):
    """One figure, and what it is. `colour`: of the contender it belongs to."""

    value: str
    what: str
    detail: str = ""
    colour: str = ""


def headline(
    runs: Sequence[Measurement], capacities: Mapping[str, Capacity], max_misses: float
) -> str:
    """One sentence."""
    limit = f"at most {max_misses * 100:g} % late"
    names = contenders(runs)
    if capacities:
        found = {name: each.passed for name, each in capacities.items()}
        return f"Capacity with {limit}: {_rates(found)}"
    if has_loads(runs):
        found = {name: sustained(runs, name, max_misses) for name in names}
        if not any(found.values()):
            return f"More than {max_misses * 100:g} % late at every load"
        return f"{limit.capitalize()} up to {_rates(found)}"
    if len(names) > 1:
        ordered = sorted(runs, key=lambda run: -(run.summary.total.attainment or 0.0))
        shares = (f"{contender(r)} {share(r.summary.total.attainment)}" for r in ordered)
        return "On time: " + ", ".join(shares)
    total = runs[0].summary.total
    if total.attainment is None:
        return "Nothing was sent"
    return f"{share(total.attainment)} of {total.num_sent:,} requests were on time"


def has_loads(runs: Sequence[Measurement]) -> bool:
    """Whether there is more than one load."""
    return len({run.rate for run in runs}) > 1


def _rates(found: Mapping[str, float]) -> str:
    """The largest first; a single one without its name."""
    if len(found) == 1:
        return f"{next(iter(found.values())):.4g} requests/s"
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {rate:.4g}" if rate else f"{name} none" for name, rate in ordered) + (
        " requests/s"
    )


def sustained(runs: Sequence[Measurement], name: str, max_misses: float) -> float:
    """The largest load up to which at most that share was late; 0 where none was."""
    scores = [(r.summary.requested_rps, r.summary.total) for r in runs if contender(r) == name]
    largest = 0.0
    for load, late in late_shares(scores):
        if late > max_misses:
            break
        largest = load
    return largest


def tiles(
    runs: Sequence[Measurement], capacities: Mapping[str, Capacity], max_misses: float
) -> list[Tile]:
    """Of one run its main figures; of several one tile per contender."""
    if len(runs) == 1:
        return list(_of_run(runs[0]))
    names = contenders(runs)
    shades = {name: f"c{i % 8}" if len(names) > 1 else "" for i, name in enumerate(names)}
    if capacities:
        return [
            Tile(f"{each.passed:.4g} /s", name or names[0], _range(each), shades.get(name, ""))
            for name, each in capacities.items()
        ]
    if has_loads(runs):
        limit = f"served with at most {max_misses * 100:g} % late"
        return [
            Tile(f"{rate:.4g} /s" if rate else "none", name, limit, shades[name])
            for name in names
            for rate in [sustained(runs, name, max_misses)]
        ]
    return [
        Tile(
            share(run.summary.total.attainment),
            contender(run),
            f"on time; goodput {run.summary.total.goodput_rps:.2f} /s",
            shades[contender(run)],
        )
        for run in runs
    ]


def _range(capacity: Capacity) -> str:
    if not capacity.is_bracketed:
        return "no rate was found that is too much" if capacity.passed else "no rate was served"
    return f"{capacity.failed:.4g} /s is too much"


def _of_run(run: Measurement) -> Iterator[Tile]:
    summary, total = run.summary, run.summary.total
    num_failed = total.num_rejected + total.num_failed + total.num_unfinished
    yield Tile(share(total.attainment), "on time", f"{total.num_on_time:,} of {total.num_sent:,}")
    yield Tile(share(total.pace_attainment), "on pace", "no gap longer than its target")
    yield Tile(
        f"{total.goodput_rps:.2f} /s",
        "goodput",
        f"of {summary.requested_rps:.2f} requests/s; {total.goodput_tokens_per_s:,.0f} tokens/s",
    )
    tier = summary.by_tier[0]
    median = f"{tier.group}; p50 {duration(tier.ttft.p50)}"
    yield Tile(duration(tier.ttft.p99), "TTFT p99", median)
    yield Tile(f"{num_failed:,}", "failed", f"{total.num_relegated:,} relegated")
    yield Tile(
        duration(summary.lag.p99_s), "schedule lag p99", f"max {duration(summary.lag.max_s)}"
    )
