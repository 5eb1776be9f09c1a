"""What metrics said each second of the last minutes: the memory of the status page.

It holds samples of the very registry that /metrics exposes, so that the two never disagree. Values
are plain numbers in columns, one for each sample's name and labels. Counters never fall here: what
one loses when the process that counts is replaced by another is made up for.
"""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

Labels = Mapping[str, str]
Columns = dict[str, list[tuple[Labels, int]]]  # by name: labels and column of each

KEPT = 600  # samples, one a second
_COUNTED = ("_total", "_sum", "_count")


class Sample(NamedTuple):
    """One value of a metric at one moment."""

    name: str
    labels: Labels
    value: float


class Row(NamedTuple):
    """The values at one instant (seconds, of any clock), by column; NaN where there was none. A
    column that came later is not in it.
    """

    at: float
    values: Sequence[float]

    def value(self, column: int) -> float:
        """Returns the value of a column, NaN where there was none."""
        return self.values[column] if column < len(self.values) else math.nan


class History:
    """The last samples. Several threads may use it at once."""

    def __init__(self, most: int = KEPT) -> None:
        self._numbers: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
        self._columns: Columns = {}
        self._is_counted: list[bool] = []  # by column
        self._made_up: dict[int, float] = {}  # by column: what it had before it fell
        self._rows: deque[Row] = deque(maxlen=most)
        self._lock = threading.Lock()

    def add(self, at: float, samples: Iterable[Sample]) -> None:
        """Adds what is sampled at an instant, which is not before the last one."""
        with self._lock:
            found = {self._column(name, labels): value for name, labels, value in samples}
            values = array("d", [math.nan]) * len(self._is_counted)
            for column, is_counted in enumerate(self._is_counted):
                value = found.get(column, math.nan)
                values[column] = self._counted(column, value) if is_counted else value
            self._rows.append(Row(at, values))

    def window(self) -> Window:
        """Returns what is known now; it stays as it is."""
        with self._lock:
            columns = {name: list(each) for name, each in self._columns.items()}
            return Window(columns, list(self._rows))

    def _column(self, name: str, labels: Labels) -> int:
        key = name, tuple(sorted(labels.items()))
        column = self._numbers.get(key)
        if column is None:
            column = self._numbers[key] = len(self._is_counted)
            self._is_counted.append(name.endswith(_COUNTED))
            self._columns.setdefault(name, []).append((dict(labels), column))
        return column

    def _counted(self, column: int, value: float) -> float:
        """Returns the value of a counter as if it went on where it was left."""
        last = self._rows[-1].value(column) if self._rows else math.nan
        if math.isnan(value):
            return last
        told = value + self._made_up.get(column, 0.0)
        if told < last:
            self._made_up[column] = last
            told = value + last
        return told


class Window:
    """What a history held at one moment. Where labels are given, only series with these count, and
    what is left is added up.
    """

    def __init__(self, columns: Columns, rows: list[Row]) -> None:
        self._columns = columns
        self.rows = rows  # the oldest first

    def value(self, name: str, **labels: str) -> float | None:
        """Returns the newest value; None where there is none."""
        return _sum(self._now(column) for _, column in self._of(name, labels))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Returns the newest values by the value of a label."""
        return _by(((own, self._now(c)) for own, c in self._of(name, labels)), label)

    def each(self, name: str) -> Iterator[tuple[Labels, float]]:
        """Yields the newest value of each series that has one."""
        for own, column in self._of(name, {}):
            if not math.isnan(value := self._now(column)):
                yield own, value

    def gained(self, name: str, seconds: float, **labels: str) -> float:
        """Returns how much counters have gained in the last seconds."""
        return sum(gain for _, gain in self.each_gained(name, seconds, **labels))

    def gained_by(self, name: str, seconds: float, label: str, **labels: str) -> dict[str, float]:
        """Returns how much counters have gained in the last seconds, by the value of a label."""
        return _by(self.each_gained(name, seconds, **labels), label)

    def each_gained(
        self, name: str, seconds: float, **labels: str
    ) -> Iterator[tuple[Labels, float]]:
        """Yields how much each counter has gained in the last seconds."""
        if not self.rows:
            return
        before = self.rows[self._before(seconds)]
        for own, column in self._of(name, labels):
            now, then = self._now(column), before.value(column)
            if not math.isnan(now):
                yield own, now - (0.0 if math.isnan(then) else then)

    def rate(self, name: str, seconds: float, **labels: str) -> float | None:
        """Returns what counters gain in a second, over the last seconds; None where nothing is
        known.
        """
        if len(self.rows) < 2 or name not in self._columns:
            return None
        elapsed_s = self.rows[-1].at - self.rows[self._before(seconds)].at
        return self.gained(name, seconds, **labels) / elapsed_s if elapsed_s > 0 else None

    def series(self, name: str, rows: Sequence[Row], **labels: str) -> list[float | None]:
        """Returns the value at each of some rows."""
        columns = [column for _, column in self._of(name, labels)]
        return [_sum(row.value(column) for column in columns) for row in rows]

    def spread(self, most: int) -> list[Row]:
        """Returns at most so many rows, evenly spread, the newest among them."""
        step = max(1, math.ceil(len(self.rows) / most))
        return self.rows[::-1][::step][::-1]

    def _of(self, name: str, labels: Labels) -> Iterator[tuple[Labels, int]]:
        for own, column in self._columns.get(name, ()):
            if all(own.get(key) == value for key, value in labels.items()):
                yield own, column

    def _now(self, column: int) -> float:
        return self.rows[-1].value(column) if self.rows else math.nan

    def _before(self, seconds: float) -> int:
        """Returns the index of the newest row that is so old, or of the oldest."""
        until = self.rows[-1].at - seconds
        return max(0, bisect_right(self.rows, until, key=lambda row: row.at) - 1)


def _sum(values: Iterable[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) if known else None


def _by(values: Iterable[tuple[Labels, float]], label: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for labels, value in values:
        if not math.isnan(value):
            found[labels.get(label, "")] = found.get(labels.get(label, ""), 0.0) + value
    return found
