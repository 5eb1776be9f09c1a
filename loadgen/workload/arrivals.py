"""When requests arrive: a rate over time, and how regular the arrivals are around it.

An arrival process of rate 1 gives the gaps; a rate that changes stretches and squeezes them: the
n-th arrival is where the expected number of arrivals (the integral of the rate) reaches the sum of
the first n gaps. So a Poisson process stays one at any rate, and a burst stays a burst. Instants in
seconds from the start, rates in requests per second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from loadgen.workload.units import parse_duration


class Segment(NamedTuple):
    """A stretch of time in which the rate goes from `first` to `last` in a straight line.

    Instants are seconds from the start of the run, rates requests per second.
    """

    start: float
    end: float
    first: float
    last: float

    @property
    def expected(self) -> float:
        """Returns the number of arrivals that are expected in the segment."""
        return (self.first + self.last) / 2 * (self.end - self.start)

    def instant_of(self, count: float) -> float:
        """Returns the instant by which `count` arrivals are expected since the segment's start.

        It solves first * x + slope / 2 * x^2 = count in the form that also holds for slope 0.
        """
        slope = (self.last - self.first) / (self.end - self.start)
        root = math.sqrt(max(0.0, self.first * self.first + 2 * slope * count))
        return self.start + (2 * count / (self.first + root) if count > 0 else 0.0)


class Shape(Enum):
    """How a rate changes over time, between a low and a high level."""

    CONSTANT = "constant"
    SQUARE = "square"  # low, then high, each for one period, and again
    STEP = "step"  # low for one period, high ever after
    RAMP = "ramp"  # from low to high over one period, high ever after
    SINE = "sine"  # from low to high and back within one period: a day


_SINE_SEGMENTS = 48  # per period; within 0.2 % of the curve


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate over time, in requests per second.

    Without `period_s`, which SQUARE and STEP need, its period is as long as the run. Raises
    ValueError for levels or a period that make no rate.
    """

    low: float
    high: float
    shape: Shape = Shape.CONSTANT
    period_s: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.low < math.inf and 0 < self.high < math.inf):
            raise ValueError(f"rates must be positive, got {self.levels}")
        if self.period_s is not None and not self.period_s > 0:
            raise ValueError(f"the period of a rate must be positive, got {self.period_s:g}")
        if self.period_s is None and self.shape in (Shape.SQUARE, Shape.STEP):
            name = self.shape.value
            raise ValueError(f"a {name} needs a period, such as {name}:{self.levels}/15m")

    @property
    def levels(self) -> str:
        """Writes the lowest and the highest rate, such as "2..5", or one where they are equal."""
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}..{self.high:g}"

    def __str__(self) -> str:
        """Writes the rate as `parse_rate` reads it; periods are in seconds."""
        if self.shape is Shape.CONSTANT:
            return f"{self.high:g}"
        period = "" if self.period_s is None else f"/{self.period_s:g}s"
        return f"{self.shape.value}:{self.low:g}..{self.high:g}{period}"

    def scaled(self, factor: float) -> Rate:
        """Returns the same course at levels that are `factor` times as high."""
        return Rate(self.low * factor, self.high * factor, self.shape, self.period_s)

    def mean(self, duration_s: float) -> float:
        """Returns the mean rate over a run of that many seconds."""
        return sum(segment.expected for segment in self.segments(duration_s)) / duration_s

    def segments(self, duration_s: float) -> Iterator[Segment]:
        """Yields the segments from 0 to `duration_s`, in order of time and without gaps."""
        for segment in self._endless(self.period_s or duration_s):
            if segment.end >= duration_s:
                share = (duration_s - segment.start) / (segment.end - segment.start)
                last = segment.first + share * (segment.last - segment.first)
                yield Segment(segment.start, duration_s, segment.first, last)
                return
            yield segment

    def _endless(self, period: float) -> Iterator[Segment]:
        """Yields the segments of a run that does not end."""
        low, high, start = self.low, self.high, 0.0
        if self.shape in (Shape.STEP, Shape.RAMP):
            yield Segment(0.0, period, low, low if self.shape is Shape.STEP else high)
            start = period
        while True:
            if self.shape is Shape.SQUARE:
                yield Segment(start, start + period, low, low)
                yield Segment(start + period, start + 2 * period, high, high)
                start += 2 * period
            elif self.shape is Shape.SINE:
                yield from self._one_sine(start, period)
                start += period
            else:
                yield Segment(start, start + period, high, high)
                start += period

    def _one_sine(self, start: float, period: float) -> Iterator[Segment]:
        """Yields one period of a sine as many straight lines."""

        def rate(part: int) -> float:
            angle = 2 * math.pi * part / _SINE_SEGMENTS
            return self.low + (self.high - self.low) * (1 - math.cos(angle)) / 2

        step = period / _SINE_SEGMENTS
        for part in range(_SINE_SEGMENTS):
            begin = start + part * step
            yield Segment(begin, begin + step, rate(part), rate(part + 1))


def parse_rate(text: str) -> Rate:
    """Reads a constant rate such as 40, or [SHAPE:]LOW..HIGH[/PERIOD], whose shape is square where
    none is named.

    2..5/15m changes between 2 and 5 every 15 minutes; ramp:2..5 grows over the whole run;
    sine:1..9/24h is a day. Raises ValueError.
    """
    shape_name, colon, rest = text.rpartition(":")
    levels, slash, period = rest.partition("/")
    low, dots, high = levels.partition("..")
    try:
        if not dots:
            if colon or slash:
                raise ValueError
            shape, bounds = Shape.CONSTANT, (float(low), float(low))
        else:
            shape = Shape(shape_name) if colon else Shape.SQUARE
            bounds = float(low), float(high)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a rate such as 40, 2..5/15m (square), step:2..5/15m, ramp:2..5 "
            "or sine:1..9/24h"
        ) from None
    return Rate(*bounds, shape, parse_duration(period) if slash else None)


class Process(Enum):
    """How regular arrivals are around the rate."""

    POISSON = "poisson"
    GAMMA = "gamma"  # bursts: gaps with a coefficient of variation above that of Poisson (1)
    CONSTANT = "constant"


def unit_gaps(process: Process, cv: float, rng: random.Random) -> Iterator[float]:
    """Yields gaps between arrivals, of mean 1, without end.

    `cv` is the coefficient of variation of gamma gaps; the other processes have their own.
    """
    if process is Process.CONSTANT:
        while True:
            yield 1.0
    elif process is Process.POISSON:
        while True:
            yield rng.expovariate(1.0)
    else:
        shape = 1 / (cv * cv)
        while True:
            yield rng.gammavariate(shape, 1 / shape)


def arrival_times(rate: Rate, gaps: Iterator[float], duration_s: float) -> Iterator[float]:
    """Yields the instants of arrivals in [0, duration_s), in order. `gaps` have a mean of 1."""
    due = next(gaps)  # expected arrivals from the segment's start to the next arrival
    for segment in rate.segments(duration_s):
        expected = segment.expected
        while due < expected:
            yield segment.instant_of(due)
            due += next(gaps)
        due -= expected
