"""Distributions and load curves from records and scores. Seconds in, the unit of an axis out."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from loadgen.reports.html.chart import Axis, Curves, Draw, Line, Mark, Point
from loadgen.scoring.score import Percentiles, Score
from loadgen.targets.record import Record
from niyama.client.values import Targets

MOST_POINTS = 160  # of a distribution: more cannot be told apart on a screen
MOST_GAPS = 200_000  # of a tier, sorted for one; of more, those of every k-th request
_SECONDS_FROM = 2.0  # values this large are written in seconds


class Metric(NamedTuple):
    """One latency, and how a record, its targets and a score say it."""

    name: str
    of_record: Callable[[Record], Sequence[float]]  # every value; none where it never came
    target: Callable[[Targets], float | None]
    of_score: Callable[[Score], Percentiles]
    is_per_request: bool  # at most one value each: a share is of all requests, else of the values


def _one(value: float | None) -> Sequence[float]:
    return () if value is None else (value,)


TTFT = Metric("TTFT", lambda r: _one(r.ttft_s), lambda t: t.ttft, lambda s: s.ttft, True)
TBT = Metric("TBT", lambda r: r.gaps_s, lambda t: t.tbt, lambda s: s.tbt, False)
TTLT = Metric("TTLT", lambda r: _one(r.ttlt_s), lambda t: t.ttlt, lambda s: s.ttlt, True)
METRICS = (TTFT, TBT, TTLT)


class Unit(NamedTuple):
    """How durations are written on an axis."""

    name: str
    per_second: float


def unit_for(longest_s: float) -> Unit:
    """Returns the unit for an axis whose longest duration is that many seconds."""
    return Unit("ms", 1e3) if longest_s < _SECONDS_FROM else Unit("s", 1.0)


def values_of(metric: Metric, records: Sequence[Record]) -> array[float]:
    """Returns all values of a latency among the records, in seconds and ascending."""
    every = 1
    if not metric.is_per_request:
        every = max(1, sum(len(r.token_at) for r in records) // MOST_GAPS)
    values = array("d")
    for record in records[::every]:
        values.extend(metric.of_record(record))
    return array("d", sorted(values))


def cumulative(ordered: Sequence[float], out_of: int, most: int = MOST_POINTS) -> list[Point]:
    """Returns points (value, share of `out_of` at or below it) for at most `most` of the ascending
    values, the first and the last among them. The line begins at share 0.
    """
    if not ordered:
        return []
    last, num = len(ordered) - 1, min(most, len(ordered))
    ranks = sorted({round(i * last / max(1, num - 1)) for i in range(num)})
    return [(ordered[0], 0.0), *((ordered[rank], (rank + 1) / out_of) for rank in ranks)]


class Sample(NamedTuple):
    """One line of a distribution: its name, its records and the target that they have, in
    seconds.
    """

    name: str
    colour: str
    records: Sequence[Record]
    target_s: float | None


def distribution(title: str, metric: Metric, samples: Sequence[Sample]) -> Curves | None:
    """Returns a chart of how many had a latency within a time; None where nobody had any."""
    every = [(sample, values_of(metric, sample.records)) for sample in samples]
    found = [(sample, values) for sample, values in every if values]
    if not found:
        return None
    targets = [s.target_s for s, _ in found if s.target_s is not None]
    unit = unit_for(max([values[-1] for _, values in found] + targets))
    what = "requests" if metric.is_per_request else "gaps"
    return Curves(
        title,
        Axis(f"{metric.name} ({unit.name})", is_log=True),
        Axis(f"share of {what} (%)", is_share=True),
        [_line(metric, sample, values, unit) for sample, values in found],
        target_marks([sample for sample, _ in found], unit),
        Draw.STEP,
    )


def _line(metric: Metric, sample: Sample, values: Sequence[float], unit: Unit) -> Line:
    """Returns the line of one sample. A request that never had the latency stays in the
    denominator, so that its line ends below 100 %.
    """
    out_of = len(sample.records) if metric.is_per_request else len(values)
    points = [(x * unit.per_second, y) for x, y in cumulative(values, out_of)]
    return Line(sample.name, points, sample.colour)


def target_marks(samples: Sequence[Sample], unit: Unit) -> list[Mark]:
    """Returns a mark per target, in the colour of the line that has it, or in ink where several
    have it.
    """
    owners: dict[float, list[str]] = {}
    for sample in samples:
        if sample.target_s is not None:
            owners.setdefault(sample.target_s, []).append(sample.colour)
    return [
        Mark(
            f"target {in_unit(target, unit)}",
            colours[0] if len(colours) == 1 else "ink",
            x=target * unit.per_second,
        )
        for target, colours in owners.items()
    ]


def in_unit(seconds: float, unit: Unit) -> str:
    """Writes seconds in a unit."""
    return f"{seconds * unit.per_second:,.4g} {unit.name}"


def late_shares(scores: Iterable[tuple[float, Score]]) -> list[Point]:
    """Returns points (load, share that was not on time) in order of load. Loads at which nothing
    was sent are left out.
    """
    return sorted(
        (load, 1 - score.attainment) for load, score in scores if score.attainment is not None
    )


def latencies(scores: Iterable[tuple[float, Score]], metric: Metric, quantile: str) -> list[Point]:
    """Returns points (load, seconds) in order of load; `quantile` is p50, p90 or p99."""
    found = ((load, getattr(metric.of_score(score), quantile)) for load, score in scores)
    return sorted((load, value) for load, value in found if value is not None)
