"""A run cut into steps of equal length: what arrived, was late, was in flight. Seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from loadgen.reports.html.chart import Point
from loadgen.targets.record import Record

MOST_STEPS = 120
_NICE_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


class Steps(NamedTuple):
    """`num` steps of `length_s` from instant 0."""

    length_s: float
    num: int

    @property
    def end_s(self) -> float:
        """Returns where the last step ends."""
        return self.length_s * self.num

    def at(self, instant: float) -> int:
        """Returns the index of the step that an instant falls into; the last step holds all that is
        later.
        """
        return max(0, min(int(instant / self.length_s), self.num - 1))

    def points(self, values: Sequence[float]) -> list[Point]:
        """Returns a point for each value at the start of its step, and for the last once more at
        its end.
        """
        starts = ((i * self.length_s, value) for i, value in enumerate(values))
        return [*starts, (self.end_s, values[-1])]


def steps_for(duration_s: float) -> Steps:
    """Cuts a duration into at most MOST_STEPS steps, of a length that a person would choose."""
    length = next((s for s in _NICE_S if duration_s <= s * MOST_STEPS), duration_s / MOST_STEPS)
    return Steps(length, max(1, math.ceil(duration_s / length - 1e-9)))


def per_second(instants: Iterable[float], steps: Steps) -> list[float]:
    """Returns how many of the instants fall into each step, per second."""
    counts = [0] * steps.num
    for instant in instants:
        counts[steps.at(instant)] += 1
    return [count / steps.length_s for count in counts]


def mean_present(intervals: Iterable[tuple[float, float]], steps: Steps) -> list[float]:
    """Returns the mean number of intervals that cover each step. It is exact: an interval that
    covers a part of a step counts as that part.
    """
    covered = [0.0] * steps.num  # partly: seconds
    change = [0] * (steps.num + 1)  # wholly: how many more than in the step before
    for start, end in intervals:
        first, last = steps.at(start), steps.at(end)
        if first == last:
            covered[first] += min(end, steps.end_s) - start
            continue
        covered[first] += (first + 1) * steps.length_s - start
        covered[last] += min(end, steps.end_s) - last * steps.length_s
        change[first + 1] += 1
        change[last] -= 1
    whole = accumulate(change[: steps.num])
    return [part / steps.length_s + num for part, num in zip(covered, whole, strict=True)]


def in_flight(records: Iterable[Record], end_s: float) -> Iterable[tuple[float, float]]:
    """Yields for each request the interval from its scheduled instant to its end, or to `end_s`
    where it never came.
    """
    for record in records:
        yield record.request.at, end_s if record.ended_at is None else record.ended_at


def waiting(records: Iterable[Record], end_s: float) -> Iterable[tuple[float, float]]:
    """Yields for each request the interval from its scheduled instant to its first token, or to its
    end without one.
    """
    for record in records:
        ended_at = end_s if record.ended_at is None else record.ended_at
        yield record.request.at, record.token_at[0] if record.token_at else ended_at


def last_instant(records: Iterable[Record]) -> float:
    """Returns the last instant at which anything happened."""
    ends = (record.request.at if r is None else r for record in records for r in [record.ended_at])
    return max(ends, default=0.0)
