"""Charts of one load over time, one below the other, with a common axis of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from loadgen.reports.html.chart import Absent, Axis, Chart, Curves, Draw, Line, Mark, colour
from loadgen.reports.html.runs import View, contender
from loadgen.reports.html.steps import (
    Steps,
    in_flight,
    last_instant,
    mean_present,
    per_second,
    steps_for,
    waiting,
)
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import is_on_time
from loadgen.targets.record import Record
from loadgen.targets.target import Series

NOT_TOLD = "The target does not tell them."


class _Clock(NamedTuple):
    """The axis of time that all charts of a view have in common."""

    steps: Steps
    unit: str
    unit_s: float
    group: str  # of the view, so that one pointer serves all charts

    def line(self, name: str, values: Sequence[float], shade: str) -> Line:
        """Returns a line of one value per step."""
        points = [(at / self.unit_s, value) for at, value in self.steps.points(values)]
        return Line(name, points, shade)

    def chart(
        self,
        title: str,
        y: str,
        lines: Sequence[Line],
        draw: Draw = Draw.STEP,
        marks: Sequence[Mark] = (),
    ) -> Curves:
        """Returns a chart of lines over this axis; `y` names their quantity and unit."""
        axis = Axis(f"time ({self.unit})")
        return Curves(title, axis, Axis(y), lines, marks, draw, self.group, is_wide=True)


def over_time(view: View, why_no_series: str = NOT_TOLD) -> Iterator[Chart]:
    """Yields charts of arrivals and what became of them, of requests in flight and relegations; and
    of what the target says of itself, or `why_no_series` where nothing is known of that.
    """
    clock = _clock(view)
    if len(view.runs) == 1:
        yield _fates(view.runs[0], clock)
        yield _presence(view.runs[0].records, clock)
    else:
        yield _late(view, clock)
        yield _present_by_contender(view, clock, "In flight", in_flight)
        yield _present_by_contender(view, clock, "Waiting for the first token", waiting)
    yield _relegations(view, clock)
    yield from _own_series(view, clock, why_no_series)


def _clock(view: View) -> _Clock:
    end_s = max(last_instant(run.records) for run in view.runs)
    unit, unit_s = next(u for u in (("h", 3600.0), ("min", 60.0), ("s", 0.0)) if end_s >= 3 * u[1])
    return _Clock(steps_for(end_s), unit, unit_s or 1.0, f"time at {view.load}")


def _fates(run: Measurement, clock: _Clock) -> Chart:
    """Draws every arrival by which of three things became of it."""
    title = "Arrivals, by what became of them"
    if not run.records:
        return Absent(title, "Nothing was sent.")
    fates: dict[str, list[float]] = {"on time": [], "late": [], "failed": []}
    for record in run.records:
        fates[_fate(record)].append(record.request.at)
    shades = {"on time": "good", "late": "bad", "failed": "ink"}
    lines = [
        clock.line(name, per_second(instants, clock.steps), shades[name])
        for name, instants in fates.items()
        if instants
    ]
    return clock.chart(title, "requests/s", lines, Draw.STACK, _window_marks(run, clock))


def _fate(record: Record) -> str:
    if record.outcome.is_incomplete:
        return "failed"
    return "on time" if is_on_time(record) else "late"


def _window_marks(run: Measurement, clock: _Clock) -> list[Mark]:
    """Marks where the measured part begins, if not at once."""
    start_s = run.summary.window.start_s
    return [Mark("measured from here", x=start_s / clock.unit_s)] if start_s > 0 else []


def _late(view: View, clock: _Clock) -> Curves:
    """Draws late requests per second of arrival; the arrivals themselves, the same for all, for
    comparison.
    """
    arrivals = [record.request.at for record in view.runs[0].records]
    lines = [clock.line("arrivals", per_second(arrivals, clock.steps), "muted")]
    for i, run in enumerate(view.runs):
        late = [r.request.at for r in run.records if _fate(r) != "on time"]
        lines.append(clock.line(contender(run), per_second(late, clock.steps), colour(i)))
    return clock.chart("Late, by the time of arrival", "requests/s", lines)


def _presence(records: Sequence[Record], clock: _Clock) -> Curves:
    steps = clock.steps
    present = mean_present(in_flight(records, steps.end_s), steps)
    queued = mean_present(waiting(records, steps.end_s), steps)
    lines = [
        clock.line("in flight", present, "c0"),
        clock.line("waiting for the first token", queued, "c1"),
    ]
    return clock.chart("In flight", "requests", lines)


Present = Callable[[Sequence[Record], float], Iterable[tuple[float, float]]]


def _present_by_contender(view: View, clock: _Clock, title: str, present: Present) -> Curves:
    lines = [
        clock.line(
            contender(run),
            mean_present(present(run.records, clock.steps.end_s), clock.steps),
            colour(i),
        )
        for i, run in enumerate(view.runs)
    ]
    return clock.chart(title, "requests", lines)


def _relegations(view: View, clock: _Clock) -> Chart:
    title = "Relegated, by the time of arrival"
    lines = []
    for i, run in enumerate(view.runs):
        instants = [record.request.at for record in run.records if record.relegated]
        if instants:
            lines.append(clock.line(contender(run), per_second(instants, clock.steps), colour(i)))
    if not lines:
        return Absent(title, "No request was relegated.")
    return clock.chart(title, "requests/s", lines)


def _own_series(view: View, clock: _Clock, why_no_series: str) -> Iterator[Chart]:
    """Draws chunk size and queue length, which only a simulated target keeps."""
    known = [(i, run, run.series) for i, run in enumerate(view.runs) if run.series is not None]
    if not any(series.chunk_len for _, _, series in known):
        reason = "No iteration was needed." if known else why_no_series
        yield Absent("Chunk size and queue length", reason)
        return

    def lines(values: Callable[[Series], Sequence[float]]) -> list[Line]:
        return [
            Line(contender(run), points, colour(i))
            for i, run, series in known
            if (points := _points(series, values(series), clock))
        ]

    silent = [contender(run) for run in view.runs if run.series is None]
    note = f"{', '.join(silent)} does not tell." if silent else ""
    for title, y, values in (
        ("Chunk size", "prompt tokens/iteration", lambda s: s.chunk_len),
        ("Queue length", "requests/replica", lambda s: s.num_waiting),
    ):
        yield replace(clock.chart(title, y, lines(values)), note=note)


def _points(series: Series, values: Sequence[float], clock: _Clock) -> list[tuple[float, float]]:
    step = series.step_s / clock.unit_s
    points = [(i * step, value) for i, value in enumerate(values)]
    return [*points, (len(values) * step, values[-1])] if points else []
