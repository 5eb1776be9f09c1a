"""Charts of one load: who was on time, and how the latencies are distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loadgen.reports.html.chart import Absent, Axis, Bars, BarSeries, Chart, colour
from loadgen.reports.html.curves import METRICS, TBT, TTFT, TTLT, Metric, Sample, distribution
from loadgen.reports.html.runs import View, contender, tier_targets
from loadgen.reports.tables import longest_gaps
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import ALL, Score, counted
from loadgen.scoring.summary import Summary
from loadgen.targets.record import Record
from niyama.client.values import Targets

_ON_TIME = Axis("on time (% of requests)", is_share=True)
_PACE_NOTE = "On pace: on time, and no gap between two tokens longer than the TBT target."


def attainment(view: View) -> list[Chart]:
    """Returns charts of who was on time by tier; by importance, tenant, replica and prompt
    length where there are several.
    """
    first = view.runs[0].summary
    if not first.total.num_sent:
        return [Absent("On time", "Nothing was sent.")]
    others = [
        _bars(view, title, _groups(scores))
        for title, scores in (
            ("importance", first.by_importance),
            ("tenant", first.by_tenant),
            ("replica", first.by_replica),
            ("prompt length", first.by_prompt),
        )
        if len(scores) > 1
    ]
    tiers = _bars(view, "tier", [ALL, *_groups(first.by_tier)])
    return [replace(tiers, is_wide=len(others) != 1), *others]


def _groups(scores: Sequence[Score]) -> list[str]:
    return [score.group for score in scores]


def _bars(view: View, title: str, groups: Sequence[str]) -> Bars:
    """Returns a chart of one contender's on time beside its on pace, or of several contenders' on
    time.
    """
    by_run = [_scores(run.summary, title) for run in view.runs]
    name = f"On time by {title}"
    shown = [group or "(none)" for group in groups]
    if len(view.runs) > 1:
        series = [
            BarSeries(contender(run), [_attainment(scores, g) for g in groups], colour(i))
            for i, (run, scores) in enumerate(zip(view.runs, by_run, strict=True))
        ]
        return Bars(name, _ON_TIME, shown, series)
    (scores,) = by_run
    series = [
        BarSeries("on time", [_attainment(scores, g) for g in groups], "good"),
        BarSeries("on pace", [scores[g].pace_attainment for g in groups], "c5"),
    ]
    gaps = longest_gaps(view.runs[0].summary)
    note = f"{_PACE_NOTE} {gaps[0].upper()}{gaps[1:]}." if gaps else _PACE_NOTE
    return Bars(name, _ON_TIME, shown, series, note)


def _scores(summary: Summary, title: str) -> dict[str, Score]:
    scores = {
        "tier": (summary.total, *summary.by_tier),
        "importance": summary.by_importance,
        "tenant": summary.by_tenant,
        "replica": summary.by_replica,
        "prompt length": summary.by_prompt,
    }[title]
    return {score.group: score for score in scores}


def _attainment(scores: Mapping[str, Score], group: str) -> float | None:
    return scores[group].attainment if group in scores else None


def measured(run: Measurement) -> list[Record]:
    """Returns the records that the scores of a run are over."""
    window = run.summary.window
    return counted(run.records, window.start_s, window.end_s)


def distributions(view: View) -> list[Chart]:
    """Returns charts of how latencies are distributed: with one contender a chart per latency and a
    line per tier, with several a chart per tier and latency it has a target for, and a line per
    contender.
    """
    tiers = tier_targets(view.runs)
    records = {contender(run): _by_tier(measured(run), tiers) for run in view.runs}
    if len(view.runs) == 1:
        (by_tier,) = records.values()
        return [_of_tiers(metric, tiers, by_tier) for metric in METRICS]
    return [
        _of_contenders(metric, tier, targets, records)
        for tier, targets in tiers.items()
        for metric in _judged(targets)
    ]


def _judged(targets: Targets) -> Sequence[Metric]:
    """Returns the latencies that a tier is judged by; of best effort, how long it takes."""
    return (TTFT, TBT) if targets.ttft is not None else (TTLT,)


def _by_tier(records: Sequence[Record], tiers: Mapping[str, Targets]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {tier: [] for tier in tiers}
    for record in records:
        found[record.request.tier].append(record)
    return found


def _of_tiers(
    metric: Metric, tiers: Mapping[str, Targets], by_tier: Mapping[str, Sequence[Record]]
) -> Chart:
    samples = [
        Sample(tier, colour(i), by_tier[tier], metric.target(targets))
        for i, (tier, targets) in enumerate(tiers.items())
    ]
    return _or_absent(f"{metric.name} by tier", metric, samples)


def _of_contenders(
    metric: Metric,
    tier: str,
    targets: Targets,
    records: Mapping[str, Mapping[str, Sequence[Record]]],
) -> Chart:
    samples = [
        Sample(name, colour(i), by_tier[tier], metric.target(targets))
        for i, (name, by_tier) in enumerate(records.items())
    ]
    return _or_absent(f"{metric.name} of {tier}", metric, samples)


def _or_absent(title: str, metric: Metric, samples: Sequence[Sample]) -> Chart:
    return distribution(title, metric, samples) or Absent(title, f"No request has a {metric.name}.")
