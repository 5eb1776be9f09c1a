"""Finds the latency profile whose coefficients explain measured iterations best.

An iteration costs a non-negative combination of the counts in `Work` (see latency.py). There are
other coefficients for other ranges of total tokens (a `Segment` each), since the cost steps where
the kernels change. Where the segments end is found by dynamic programming over BOUNDS: the best
split up to a bound is a best split up to an earlier one, and one segment more.

Errors are relative: 10 % of a small iteration count as much as 10 % of a large one. Outliers are
kept from ruling by weights that fall with the residual (iteratively reweighted least squares,
towards the least absolute deviation).

The non-negative solution is found by the active-set method of Lawson and Hanson (Solving Least
Squares Problems, 1974, chapter 23): a column after the other is let in, the one that lowers the
error fastest, and leaves again when its coefficient would be negative. It is written out here
since torch has no such solver (scipy has, and is not needed for anything else), for the seven
columns of a few hundred rows. All durations are in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.deciding.plan import Work

BOUNDS = (4, 8, 16, 32, 64, 128, 256, 512)  # total tokens at which a segment may end
MAX_SEGMENTS = 4
MIN_SAMPLES = 14  # of a segment: twice as many as it has coefficients
GAIN = 0.85  # a further segment must bring the mean relative error to this share of what it was
LEAST_GAIN = 0.002  # and lower it by at least this
ROUNDS = 4  # of reweighting
SMALL = 0.02  # relative residuals below this weigh alike

Row = Sequence[float]


class Sample(NamedTuple):
    """An iteration of `work` took `seconds`."""

    work: Work
    seconds: float


def fit(name: str, samples: Sequence[Sample], max_chunk: int) -> LatencyProfile:
    """Returns the profile that explains the samples best. `max_chunk` is their largest chunk.

    Raises ValueError with fewer than MIN_SAMPLES samples.
    """
    if len(samples) < MIN_SAMPLES:
        raise ValueError(f"samples must be at least {MIN_SAMPLES}, got {len(samples)}")
    ordered = sorted(samples, key=lambda s: s.work.num_tokens)
    segments, error = _split(ordered, 1)
    for count in range(2, MAX_SEGMENTS + 1):
        more, less_error = _split(ordered, count)
        if less_error < min(GAIN * error, error - LEAST_GAIN):
            segments, error = more, less_error
    return LatencyProfile(name, tuple(segments), max_chunk)


def median_error(profile: LatencyProfile, samples: Sequence[Sample]) -> float:
    """Returns the median of |actual / predicted - 1| over the samples."""
    errors = sorted(abs(s.seconds / profile.seconds(s.work) - 1) for s in samples)
    return errors[len(errors) // 2]


def _split(samples: Sequence[Sample], count: int) -> tuple[list[Segment], float]:
    """Finds the split into at most `count` segments with the least mean relative error; returns
    both.
    """
    bounds = [*BOUNDS, UNBOUNDED]
    starts = [sum(s.work.num_tokens <= b for s in samples) for b in (0, *bounds)]
    fits: dict[tuple[int, int], tuple[Segment, float] | None] = {}

    def fitted(i: int, j: int) -> tuple[Segment, float] | None:
        """Fits one segment to the samples in (bound i - 1, bound j - 1], with its error."""
        if (i, j) not in fits:
            part = samples[starts[i] : starts[j]]
            fits[i, j] = _segment(bounds[j - 1], part) if len(part) >= MIN_SAMPLES else None
        return fits[i, j]

    best: list[tuple[float, list[Segment]] | None] = [(0.0, [])] + [None] * len(bounds)
    for _ in range(count):
        step: list[tuple[float, list[Segment]] | None] = list(best)
        for i, before in enumerate(best):
            for j in range(i + 1, len(best)) if before is not None else ():
                found = fitted(i, j)
                if before is None or found is None:
                    continue
                total = before[0] + found[1]
                known = step[j]
                if known is None or total < known[0]:
                    step[j] = (total, [*before[1], found[0]])
        best = step
    whole = best[-1]
    assert whole is not None  # one segment for all samples is always among them
    return whole[1], whole[0] / len(samples)


def _segment(up_to: int, samples: Sequence[Sample]) -> tuple[Segment, float]:
    """Fits one segment to the samples; returns it and the sum of absolute relative errors."""
    rows = [[x / s.seconds for x in _features(s.work)] for s in samples]
    weights = [1.0] * len(rows)
    coefficients: list[float] = []
    for _ in range(ROUNDS):
        scaled = [[w * x for x in row] for w, row in zip(weights, rows, strict=True)]
        coefficients = non_negative_least_squares(scaled, weights)
        residuals = [abs(_dot(row, coefficients) - 1) for row in rows]
        weights = [1 / math.sqrt(max(r, SMALL)) for r in residuals]
    return Segment(up_to, *coefficients), sum(residuals)


def _features(work: Work) -> Row:
    """Returns the counts of `work` in the order of the coefficients of `Segment`."""
    return (
        1.0,
        work.num_prefill,
        work.num_decodes,
        work.decode_context,
        work.prefill_context,
        work.prefill_pairs,
        work.num_chunks,
    )


def _dot(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def non_negative_least_squares(rows: Sequence[Row], values: Row) -> list[float]:
    """Finds the x >= 0 with the least sum over all rows of (row . x - value)^2.

    Every row has as many numbers as x, and there is one value for each row.
    """
    columns = list(zip(*rows, strict=True))
    norms = [math.sqrt(_dot(c, c)) or 1.0 for c in columns]
    scaled = [[x / n for x in column] for column, n in zip(columns, norms, strict=True)]
    gram = [[_dot(a, b) for b in scaled] for a in scaled]
    target = [_dot(column, values) for column in scaled]
    size = len(columns)
    x, active = [0.0] * size, [False] * size
    for _ in range(10 * size):  # more than it ever takes; it may cycle on rounding errors only
        gradient = [target[i] - _dot(gram[i], x) for i in range(size)]
        candidates = [i for i in range(size) if not active[i] and gradient[i] > 1e-9]
        if not candidates:
            break
        active[max(candidates, key=gradient.__getitem__)] = True
        x = _step(gram, target, x, active)
    return [value / norm for value, norm in zip(x, norms, strict=True)]


def _step(gram: list[list[float]], target: Row, x: list[float], active: list[bool]) -> list[float]:
    """Moves x to the least-squares solution over the active columns. A column whose coefficient
    would become negative leaves them on the way: it is 0 from then on.
    """
    while True:
        chosen = [i for i, is_active in enumerate(active) if is_active]
        solved = _solve([[gram[i][j] for j in chosen] for i in chosen], [target[i] for i in chosen])
        z = [0.0] * len(x)
        for i, value in zip(chosen, solved, strict=True):
            z[i] = value
        leaving = [i for i in chosen if z[i] <= 0]
        if not leaving:
            return z
        share = min(x[i] / (x[i] - z[i]) if x[i] > z[i] else 0.0 for i in leaving)
        x = [a + share * (b - a) for a, b in zip(x, z, strict=True)]
        for i in leaving:
            if x[i] <= 1e-12:
                x[i], active[i] = 0.0, False


def _solve(matrix: list[list[float]], values: list[float]) -> list[float]:
    """Solves matrix . x = values by Gaussian elimination with pivoting. An unknown that the others
    determine becomes 0.
    """
    size = len(values)
    rows = [[*row, value] for row, value in zip(matrix, values, strict=True)]
    for k in range(size):
        pivot = max(range(k, size), key=lambda i: abs(rows[i][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        if abs(rows[k][k]) < 1e-12:
            continue
        for i in range(size):
            if i != k:
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [r[size] / r[k] if abs(r[k]) >= 1e-12 else 0.0 for k, r in enumerate(rows)]
