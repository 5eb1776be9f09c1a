"""Whose work the engine did, and when: its wall time, divided among groups of requests.

A log tells each chunk of a prompt with the iteration that computed it, and of each stream when it
began to decode and when it ended. So the time between two iterations with chunks is that of the
streams that decoded meanwhile, or idle where there were none; that of an iteration with chunks is
divided among them and the streams. What is divided is divided by what each part costs by the log's
own latency profile. All of the time is somebody's or idle, once. Instants and durations in seconds.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from engine.deciding.latency import LatencyProfile, Segment
from engine.decision_lines import Computed

_LEAST_WEIGHT = 1e-9  # seconds: a published profile may have a decode cost nothing, or less


@dataclass(eq=False, slots=True)
class Mark:
    """An instant at which somebody wants to know what each group has had. `served` is known as soon
    as the time around it is divided.
    """

    at: float
    served: array[float] | None = None


def between(start: Mark, end: Mark) -> array[float]:
    """Returns what each group had between two marks that are known."""
    assert start.served is not None
    assert end.served is not None
    before = start.served
    return array(
        "d",
        (
            max(0.0, after - (before[group] if group < len(before) else 0.0))
            for group, after in enumerate(end.served)
        ),
    )


@dataclass(slots=True)
class _Streams:
    """Those of one group that decode: how many, and the positions they read in an iteration."""

    count: int = 0
    context: int = 0


@dataclass(slots=True)
class Meter:
    """The engine's time by group (a small number), told in order of time."""

    profile: LatencyProfile
    now: float  # up to which the time is divided
    served: array[float] = field(default_factory=lambda: array("d"))
    idle_s: float = 0.0
    _streams: dict[int, _Streams] = field(default_factory=dict)
    _chunks: list[tuple[int, Computed]] = field(
        default_factory=list
    )  # of one iteration, which ended at:
    _chunks_at: float = 0.0
    _beginning: list[tuple[int, int]] = field(
        default_factory=list
    )  # with the end of that iteration
    _open: list[Mark] = field(default_factory=list)

    def chunk(self, at: float, group: int, chunk: Computed) -> None:
        """An iteration that ended at `at` had this chunk."""
        if self._chunks and at != self._chunks_at:
            self.settle()
        self._chunks.append((group, chunk))
        self._chunks_at = at

    def begin_stream(self, at: float, group: int, context: int) -> None:
        """A request that has `context` tokens decodes from now on: after the iteration that ends
        now, where one does.
        """
        if self._chunks and at == self._chunks_at:
            self._beginning.append((group, context))
            return
        self.pass_time(at)
        self._begin(group, context)

    def _begin(self, group: int, context: int) -> None:
        streams = self._streams.setdefault(group, _Streams())
        streams.count += 1
        streams.context += context

    def end_stream(self, at: float, group: int, context: int) -> None:
        """One that decoded with that context no longer does."""
        self.pass_time(at)
        streams = self._streams[group]
        streams.count -= 1
        streams.context -= context
        if not streams.count:
            del self._streams[group]

    def restart(self, profile: LatencyProfile, at: float) -> None:
        """Another engine process goes on: nobody decodes, and the time between is idle."""
        self.settle()
        self._streams.clear()
        self.pass_time(at)
        self.profile = profile

    def mark(self, at: float) -> Mark:
        """Notes an instant. What was served by then is known once time has passed it."""
        self.settle_before(at)
        mark = Mark(at, self.served[:] if at <= self.now else None)
        if mark.served is None:
            self._open.append(mark)
        return mark

    def settle_before(self, at: float) -> None:
        """Divides an iteration that has ended by an instant."""
        if self._chunks and at >= self._chunks_at:
            self.settle()

    def settle(self) -> None:
        """Divides the time up to the end of the iteration that was told last."""
        if not self._chunks:
            return
        chunks, self._chunks = self._chunks, []
        at, (_, first) = self._chunks_at, chunks[0]
        segment = _segment(self.profile, first.batch_tokens)
        parts = [(group, _weight_of_chunk(segment, chunk)) for group, chunk in chunks]
        decodes = self._weights(segment)
        self._divide(at - first.took_s, decodes)
        self._divide(at, parts + decodes)
        beginning, self._beginning = self._beginning, []
        for group, context in beginning:
            self._begin(group, context)

    def pass_time(self, at: float) -> None:
        """Time passes in which nothing but the streams was computed, after what was told before."""
        self.settle_before(at)
        num = sum(streams.count for streams in self._streams.values())
        self._divide(at, self._weights(_segment(self.profile, num)))

    def _weights(self, segment: Segment) -> list[tuple[int, float]]:
        """Returns what the streams of each group add to an iteration."""
        return [
            (
                group,
                max(
                    _LEAST_WEIGHT * each.count,
                    segment.decode * each.count + segment.decode_context * each.context,
                ),
            )
            for group, each in self._streams.items()
        ]

    def _divide(self, at: float, parts: list[tuple[int, float]]) -> None:
        """Gives the time until `at` to groups by weight; it is idle where there are none."""
        passed_s = at - self.now
        if passed_s <= 0:
            return
        before = self.served[:] if self._open else None
        total = sum(weight for _, weight in parts)
        for group, weight in parts:
            if group >= len(self.served):
                self.served.extend([0.0] * (group + 1 - len(self.served)))
            self.served[group] += passed_s * weight / total
        if not parts:
            self.idle_s += passed_s
        if before is not None:
            self._fill(before, at)
        self.now = at

    def _fill(self, before: array[float], at: float) -> None:
        """Tells the marks up to `at` what was served by then, evenly within the time."""
        known = [mark for mark in self._open if mark.at <= at]
        self._open = [mark for mark in self._open if mark.at > at]
        before.extend([0.0] * (len(self.served) - len(before)))
        for mark in known:
            part = (mark.at - self.now) / (at - self.now)
            mark.served = array(
                "d", (b + part * (a - b) for b, a in zip(before, self.served, strict=True))
            )


def _segment(profile: LatencyProfile, num_tokens: int) -> Segment:
    return next(each for each in profile.segments if num_tokens <= each.up_to)


def _weight_of_chunk(segment: Segment, chunk: Computed) -> float:
    """Returns what a chunk adds to an iteration."""
    start, length = chunk.start, chunk.length
    pairs = length * start + length * (length + 1) // 2
    cost = segment.prefill * length + segment.prefill_context * (start + length)
    return max(_LEAST_WEIGHT, cost + segment.prefill_pairs * pairs + segment.chunk)
