"""Charts over several loads: late share, latency, capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loadgen.reports.html.chart import (
    Absent,
    Axis,
    Bar,
    Chart,
    Curves,
    Line,
    Mark,
    Point,
    Ranking,
    colour,
)
from loadgen.reports.html.curves import (
    TTFT,
    TTLT,
    Metric,
    in_unit,
    late_shares,
    latencies,
    unit_for,
)
from loadgen.reports.html.runs import contender, contenders, has_loads, load_rps, tier_targets
from loadgen.scoring.capacity import Capacity
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import ALL, Score
from niyama.client.values import Targets

_LOAD = Axis("load (requests/s)")
_LATE = Axis("late (% of requests)", is_share=True)

LoadScore = tuple[float, Score]


def over_loads(runs: Sequence[Measurement], max_misses: float) -> list[Chart]:
    """Returns the charts over several loads; none where there is only one. `max_misses` is
    marked.
    """
    if not has_loads(runs):
        return []
    names, tiers = contenders(runs), tier_targets(runs)
    scores = {
        group: {name: _scores(runs, name, group) for name in names} for group in (ALL, *tiers)
    }
    limit = Mark(f"{max_misses * 100:g} %", y=max_misses)
    if len(names) == 1:
        late = [_late_by_tier({group: each[names[0]] for group, each in scores.items()}, limit)]
    else:
        groups = scores if len(tiers) > 1 else [ALL]
        late = [_late_by_contender(group, scores[group], limit) for group in groups]
    return [*late, *_latencies(tiers, scores)]


def _scores(runs: Sequence[Measurement], name: str, group: str) -> list[LoadScore]:
    return [
        (load_rps(run), score)
        for run in runs
        if contender(run) == name
        for score in (run.summary.total, *run.summary.by_tier)
        if score.group == group
    ]


def _late_by_tier(scores: Mapping[str, Sequence[LoadScore]], limit: Mark) -> Curves:
    colours = [colour(i) for i in range(len(scores) - 1)]
    lines = [
        Line(group, late_shares(each), shade)
        for (group, each), shade in zip(scores.items(), ["ink", *colours], strict=False)
    ]
    return Curves("Late share against load", _LOAD, _LATE, lines, [limit], is_wide=True)


def _late_by_contender(
    group: str, scores: Mapping[str, Sequence[LoadScore]], limit: Mark
) -> Curves:
    title = "Late share against load" + ("" if group == ALL else f": {group}")
    lines = [
        Line(name, late_shares(each), colour(i)) for i, (name, each) in enumerate(scores.items())
    ]
    return Curves(title, _LOAD, _LATE, lines, [limit], is_wide=group == ALL)


def _latencies(
    tiers: Mapping[str, Targets], scores: Mapping[str, Mapping[str, Sequence[LoadScore]]]
) -> list[Chart]:
    """Draws TTFT and TTLT of each tier, whether it has a target or not, since one tier waits for
    the other.
    """
    return [
        _latency(metric, tier, metric.target(targets), scores[tier])
        for tier, targets in tiers.items()
        for metric in (TTFT, TTLT)
    ]


def _latency(
    metric: Metric,
    tier: str,
    target_s: float | None,
    scores: Mapping[str, Sequence[LoadScore]],
) -> Chart:
    """Returns the p50 and p99 of one latency of one tier against load, for each contender."""
    title = f"{metric.name} against load: {tier}"
    found = [
        Line(_quantile_name(name, quantile, len(scores)), points, colour(i), quantile == "p99")
        for i, (name, each) in enumerate(scores.items())
        for quantile in ("p50", "p99")
        if (points := latencies(each, metric, quantile))
    ]
    if not found:
        return Absent(title, f"No request of this tier has a {metric.name}.")
    seconds = [y for line in found for _, y in line.points]
    unit = unit_for(max(seconds + ([target_s] if target_s else [])))

    def scaled(points: Sequence[Point]) -> list[Point]:
        return [(x, y * unit.per_second) for x, y in points]

    return Curves(
        title,
        _LOAD,
        Axis(f"{metric.name} ({unit.name})", is_log=True),
        [replace(line, points=scaled(line.points)) for line in found],
        [Mark(f"target {in_unit(target_s, unit)}", "ink", y=target_s * unit.per_second)]
        if target_s
        else [],
    )


def _quantile_name(name: str, quantile: str, num_names: int) -> str:
    return quantile if num_names == 1 else f"{name} {quantile}"


def ranking(capacities: Mapping[str, Capacity]) -> Chart:
    """Returns a bar per contender for the largest rate that passed, and up to which rate it is
    uncertain.
    """
    found = {name: each for name, each in capacities.items() if each.passed > 0}
    if not found:
        return Absent("Capacity", "No rate was found that is served.")
    bars = [
        Bar(name, each.passed, colour(i), each.failed if each.is_bracketed else None)
        for i, (name, each) in enumerate(found.items())
    ]
    note = "The thin line ends at the smallest rate that failed."
    return Ranking("Capacity", Axis("capacity (requests/s)"), bars, note, is_wide=True)
