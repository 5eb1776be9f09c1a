"""How long an iteration takes, judged by counts alone, and the reverse: how much fits a budget.

The cost of an iteration is linear in its `Work` (see plan.py) within each range of total tokens,
as in the artifact of Niyama (arXiv 2503.22562), which fits two ranges split at 512 tokens:

    seconds = base + prefill * P + decode * D + decode_context * Cd
              + prefill_context * Cp + prefill_pairs * A + chunk * K

where P is the number of prefill tokens, D that of decodes, Cd and Cp the positions that decodes and
chunks read, A the pairs of a prefill token and a position that it attends to, and K the number of
chunks.

Two corrections are learnt from every iteration. A slow one for each range makes up for what the
profile has wrong. A quick one for all of them follows the machine's present state (other processes,
clock rates), in which neighbouring iterations are alike: it counts for the next iteration, not for
what is planned seconds ahead. Neither leaves [1 / MOST_CORRECTION, MOST_CORRECTION], whatever the
clock says: a profile that is farther off is none. The distribution of actual / predicted is kept,
whose quantile is the margin with which the scheduler plans. All durations are in seconds.

What is learnt hides a machine that has become slow: predictions follow it. So `speed` compares with
the profile itself, as it was measured: what its segments say, without any correction, over what
iterations took, in the last SPEED_S seconds of computing. A model that goes on with what another
has learnt (an engine that takes a lost one's place) has the same profile, so it says the same.

What fits a budget. A chunk of n tokens from position s on adds n to P, s + n to Cp, 1 to K, and to
A the pairs n s + n (n + 1) / 2. So within a range the cost is a parabola in n, a n^2 + b n + c. It
does not fall, as a profile that has more tokens for less is refused. Its root gives the largest n
at once; rounding may put it off by one or two, so it is checked and moved to where it is exact.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from engine.deciding.plan import Work

UNBOUNDED = 1 << 60  # the last segment's up_to
DEFAULT_MAX_CHUNK = 8192
MOST_CORRECTION = 100.0  # factor by which either correction moves a prediction at most
_DEAREST_S = 1e6  # above any cost of an iteration; a profile that says so is none


class Segment(NamedTuple):
    """Cost coefficients, in seconds per unit, for iterations of at most `up_to` tokens."""

    up_to: int
    base: float
    prefill: float = 0.0  # per prefill token
    decode: float = 0.0  # per decode
    decode_context: float = 0.0  # per position read by decodes
    prefill_context: float = 0.0  # per position of context of a chunk
    prefill_pairs: float = 0.0  # per (prefill token, position it attends to)
    chunk: float = 0.0  # per chunk

    def seconds(self, work: Work) -> float:
        """Returns what an iteration of this work costs."""
        _, base, prefill, decode, decode_context, prefill_context, prefill_pairs, chunk = self
        num_decodes, decode_positions, num_prefill, prefill_positions, pairs, num_chunks = work
        return (
            base
            + prefill * num_prefill
            + decode * num_decodes
            + decode_context * decode_positions
            + prefill_context * prefill_positions
            + prefill_pairs * pairs
            + chunk * num_chunks
        )


_ONE_DECODE = Work(num_decodes=1, decode_context=1)
_ONE_TOKEN = Work(num_prefill=1, prefill_context=1, prefill_pairs=1, num_chunks=1)
_NO_WORK = Work()


# Called several times for each iteration: `Work(...)` takes twice as long.
_make_work: Callable[[type[Work], tuple[int, ...]], Work] = tuple.__new__


def add_chunk(work: Work, start: int, length: int) -> Work:
    """Returns the work with one more prefill chunk, of positions [start, start + length)."""
    num_decodes, decode_context, num_prefill, prefill_context, pairs, num_chunks = work
    return _make_work(
        Work,
        (
            num_decodes,
            decode_context,
            num_prefill + length,
            prefill_context + start + length,
            pairs + length * start + length * (length + 1) // 2,
            num_chunks + 1,
        ),
    )


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """The coefficients of one model on one device: what calibration finds, and a simulator needs.

    Raises ValueError for coefficients that are no cost of an iteration, or whose largest chunk
    could not be found.
    """

    name: str
    segments: tuple[Segment, ...]
    max_chunk: int = DEFAULT_MAX_CHUNK  # the largest measured: none larger is ever planned

    def __post_init__(self) -> None:
        bounds = [s.up_to for s in self.segments]
        if not bounds or bounds != sorted(set(bounds)) or bounds[-1] != UNBOUNDED:
            raise ValueError("segments must rise in up_to and end with UNBOUNDED")
        if any(not math.isfinite(x) for s in self.segments for x in s[1:]):
            raise ValueError("coefficients must be finite")
        if not all(_takes_time(s) for s in self.segments):
            raise ValueError("an iteration must take time")
        if any(min(s.prefill + s.prefill_context, s.prefill_pairs) < 0 for s in self.segments):
            raise ValueError("more prefill tokens must not cost less")
        if self.max_chunk < 1:
            raise ValueError(f"max_chunk must be at least 1, got {self.max_chunk}")

    def seconds(self, work: Work) -> float:
        """Returns what an iteration is expected to take, before anything has been learnt."""
        return next(s for s in self.segments if work.num_tokens <= s.up_to).seconds(work)

    def to_dict(self) -> dict[str, Any]:
        """Returns what stands in a profile's JSON file:
        {"name": ..., "max_chunk": ..., "segments": [{"up_to": ..., "base": ..., ...}]}.
        """
        segments = [s._asdict() for s in self.segments]
        return {"name": self.name, "max_chunk": self.max_chunk, "segments": segments}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LatencyProfile:
        """Returns the profile of such a dict. Raises KeyError, TypeError or ValueError if it is
        none.
        """
        segments = tuple(_segment(**s) for s in data["segments"])
        return cls(str(data["name"]), segments, _whole(data.get("max_chunk", DEFAULT_MAX_CHUNK)))


def _takes_time(segment: Segment) -> bool:
    """Whether a decode or a prefill token costs time, and neither less than none. A segment beyond
    the first may have no cost for a lone decode, as it is never asked for one.
    """
    costs = segment.seconds(_ONE_DECODE), segment.seconds(_ONE_TOKEN)
    return min(costs) >= 0 and max(costs) > 0


def _segment(up_to: Any, base: Any, **coefficients: Any) -> Segment:
    numbers = {name: _number(x) for name, x in coefficients.items()}
    return Segment(_whole(up_to), _number(base), **numbers)


def _whole(x: Any) -> int:
    if type(x) is not int:
        raise TypeError(f"not a whole number: {x!r:.40}")
    return x


def _number(x: Any) -> float:
    if type(x) not in (int, float):
        raise TypeError(f"not a number: {x!r:.40}")
    if not abs(x) < _DEAREST_S:  # also of nan
        raise ValueError(f"a coefficient must be finite and below {_DEAREST_S:g} s, got {x!r:.40}")
    return float(x)


def _published(
    up_to: int, base: float, t: float, p: float, d: float, cd: float, cp: float
) -> Segment:
    """Returns the segment of a row in the artifact, where the features are T = P + D (all tokens),
    P, D, Cd and Cp.
    """
    return Segment(up_to, base, t + p, t + d, cd, cp)


# Llama-3-8B on one A100-80GB, as published with Niyama / QoServe (their measured iteration times).
A100_LLAMA3_8B = LatencyProfile(
    "a100-llama3-8b",
    (
        _published(512, 0.014936, 5.882e-5, 2.248e-5, 3.635e-5, 1.111e-7, 7.555e-7),
        _published(UNBOUNDED, 0.005004, 2.719e-5, 6.863e-5, -4.144e-5, 1.663e-7, 2.727e-6),
    ),
)


@dataclass(frozen=True, slots=True)
class LatencyErrors:
    """Quantiles of actual / predicted over the recent iterations, and of its distance from 1."""

    count: int
    ratio_p50: float
    ratio_p95: float
    error_p50: float
    error_p95: float

    def to_dict(self) -> dict[str, float]:
        """Returns the fields by name."""
        return asdict(self)


class LatencyModel:
    """Predicts iterations with a profile, corrected by what was observed."""

    SLOW, QUICK = 0.03, 0.25  # weight of one iteration in the corrections
    WINDOW = 512  # iterations over which the error quantiles are taken
    SPEED_S = 20.0  # of computing, over which the speed is told
    MARGIN_QUANTILE = 0.9
    MAX_MARGIN = 1.5  # a rare stall must not shrink every chunk; the streams' reserve covers it

    def __init__(
        self, profile: LatencyProfile, learns: bool = True, learnt: Sequence[float] = ()
    ) -> None:
        """Goes on with what another model has `learnt` with the same profile. Raises ValueError for
        what was learnt with another one. Where it does not learn, it keeps the errors only.
        """
        if learnt and len(learnt) != len(profile.segments):
            raise ValueError(f"learnt must be one for each segment, got {len(learnt)}")
        self.profile = profile
        self._learns = learns
        self._segments = profile.segments
        self._bounds = [s.up_to for s in profile.segments]
        self._scales = list(learnt) or [1.0] * len(profile.segments)  # the slow corrections
        self._present = 1.0  # the quick one
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []  # the same; it is so short that a list is quickest
        self._margin = 1.0
        self._profiled_s = self._actual_s = 0.0  # sums over iterations, the older weighing less

    def _index(self, num_tokens: int) -> int:
        return bisect_left(self._bounds, num_tokens)

    def predict(self, work: Work) -> float:
        """Returns the seconds that the next iteration is expected to take."""
        return self._present * self.usual(work)

    def usual(self, work: Work) -> float:
        """Returns the seconds that such an iteration takes in the machine's usual state."""
        i = bisect_left(self._bounds, work.num_decodes + work.num_prefill)
        return self._scales[i] * self._segments[i].seconds(work)

    @property
    def learnt(self) -> tuple[float, ...]:
        """The slow corrections, which hold for the machine whatever its present state."""
        return tuple(self._scales)

    @property
    def speed(self) -> float | None:
        """How fast iterations are of late against the profile, before anything was learnt: 1 as it
        says, 0.5 half as fast. None before the first.
        """
        return self._profiled_s / self._actual_s if self._actual_s else None

    @property
    def margin(self) -> float:
        """Factor on a prediction that covers most errors: a high quantile of actual / predicted,
        at least 1.
        """
        return self._margin

    def largest_chunk(self, work: Work, start: int, limit: int, budget_s: float) -> int:
        """Returns the largest n <= limit such that an iteration of `work` and a chunk of positions
        [start, start + n) is predicted, margin included, to take at most `budget_s`; 0 if there is
        none. It is exact.
        """
        tokens = work.num_decodes + work.num_prefill
        within_s = budget_s / self._margin / self._present
        for i in range(len(self._segments) - 1, -1, -1):
            low = 1 if i == 0 else max(1, self._bounds[i - 1] + 1 - tokens)
            high = min(limit, self._bounds[i] - tokens)
            if low <= high:
                n = self._largest_in(i, work, start, low, high, within_s)
                if n >= low:
                    return n
        return 0

    def _largest_in(
        self, i: int, work: Work, start: int, low: int, high: int, budget_s: float
    ) -> int:
        """Returns the largest n in [low, high] that costs at most `budget_s` by segment i, as the
        module says; any number below `low` if there is none.
        """
        segment, scale = self._segments[i], self._scales[i]
        _, _, prefill, _, _, prefill_context, prefill_pairs, chunk = segment
        fixed = scale * (segment.seconds(work) + prefill_context * start + chunk)
        b, a = prefill + prefill_context + prefill_pairs * (start + 0.5), prefill_pairs / 2
        b, a, left = scale * b, scale * a, budget_s - fixed
        if (a * high + b) * high <= left:
            n = high
        elif left <= 0:
            n = 0
        else:  # stable form of the root of a n^2 + b n = left
            n = int(2 * left / (b + math.sqrt(b * b + 4 * a * left)))
        if n < low - 2:
            return 0
        while n < high and scale * segment.seconds(add_chunk(work, start, n + 1)) <= budget_s:
            n += 1
        while n > 0 and scale * segment.seconds(add_chunk(work, start, n)) > budget_s:
            n -= 1
        return n

    def chunk_steps(self, work: Work, most: int) -> list[int]:
        """Returns, of the chunk sizes up to `most` that may join the work, those at which the cost
        per token can jump: the first of each segment, and `most`.
        """
        tokens = work.num_decodes + work.num_prefill
        steps = [bound + 1 - tokens for bound in self._bounds[:-1]]
        return [n for n in steps if 0 < n < most] + [most]

    def observe(self, work: Work, actual_s: float) -> None:
        """Learns from an iteration of that work, which took `actual_s`."""
        i = bisect_left(self._bounds, work.num_decodes + work.num_prefill)
        profiled = self._segments[i].seconds(work)
        usual = self._scales[i] * profiled
        predicted = self._present * usual
        if not (predicted > 0 and 0 < actual_s < math.inf):  # also of nan
            return
        rest = max(0.0, 1 - actual_s / self.SPEED_S)
        self._profiled_s = rest * self._profiled_s + profiled
        self._actual_s = rest * self._actual_s + actual_s
        ratio = actual_s / predicted
        if len(self._recent) == self.WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(ratio)
        insort(self._sorted, ratio)
        if self._learns:
            self._scales[i] = _bounded(self._scales[i] * _step(actual_s / usual) ** self.SLOW)
            self._present = _bounded(self._present * _step(ratio) ** self.QUICK)
        self._margin = min(max(1.0, self._quantile(self.MARGIN_QUANTILE)), self.MAX_MARGIN)

    def _quantile(self, q: float) -> float:
        return self._sorted[min(len(self._sorted) - 1, int(q * len(self._sorted)))]

    def errors(self) -> LatencyErrors | None:
        """Returns the quantiles of the recent errors; None before the first observation."""
        if not self._sorted:
            return None
        distance = sorted(abs(r - 1) for r in self._sorted)
        return LatencyErrors(
            len(distance),
            self._quantile(0.5),
            self._quantile(0.95),
            distance[len(distance) // 2],
            distance[min(len(distance) - 1, int(0.95 * len(distance)))],
        )

    def prefill_seconds(self, start: int, stop: int, chunk: int) -> float:
        """Returns the usual time in which positions [start, stop) are prefilled, with nobody else
        there, in chunks of `chunk` tokens.
        """
        num_full, rest = divmod(stop - start, chunk)
        seconds = self.usual(add_chunk(_NO_WORK, stop - rest, rest)) if rest else 0.0
        if num_full:
            i, positions = self._index(chunk), num_full * chunk
            starts = num_full * start + chunk * (num_full * (num_full - 1) // 2)
            pairs = chunk * starts + positions * (chunk + 1) // 2
            segment, work = self._segments[i], Work(0, 0, positions, starts + positions, pairs)
            others = (num_full - 1) * segment.base + num_full * segment.chunk
            seconds += self._scales[i] * (segment.seconds(work) + others)
        return seconds

    def prefill_share_seconds(self, start: int, stop: int, chunk: int) -> float:
        """Returns what `prefill_seconds` does where others are there: the last chunk, if it is not
        full, shares its iteration with theirs, and has its part of what any iteration costs.
        """
        rest = (stop - start) % chunk
        full = stop - rest  # where the last chunk begins, if it is not full
        seconds = self.prefill_seconds(start, full, chunk) if full != start else 0.0
        if rest:
            i = self._index(chunk)
            segment, work = self._segments[i], add_chunk(_NO_WORK, full, rest)
            shared_s = segment.base * (1 - rest / chunk)
            seconds += self._scales[i] * (segment.seconds(work) - shared_s)
        return seconds

    def decode_seconds(self, context: int, num_tokens: int) -> float:
        """Returns the usual time that one more decode, which reads `context` positions, adds to an
        iteration of `num_tokens`.
        """
        i = self._index(num_tokens)
        segment = self._segments[i]
        return max(0.0, self._scales[i] * (segment.decode + segment.decode_context * context))

    def saturating_chunk(self, share: float = 0.99, most: int = DEFAULT_MAX_CHUNK) -> int:
        """Returns the smallest chunk whose tokens per second reach `share` of the best among sizes
        up to `most`. Larger ones only delay everybody else.
        """
        most = min(most, self.profile.max_chunk)
        rates = {n: n / self.usual(add_chunk(Work(), 0, n)) for n in _chunk_sizes(most)}
        best = max(rates.values())
        return min(n for n, rate in rates.items() if rate >= share * best)


def _step(ratio: float) -> float:
    """Returns the ratio within bounds, so that one stall moves the model little."""
    return min(max(ratio, 0.5), 2.0)


def _bounded(correction: float) -> float:
    return min(max(correction, 1 / MOST_CORRECTION), MOST_CORRECTION)


def _chunk_sizes(most: int) -> Iterable[int]:
    return range(min(64, most), most + 1, 64)
