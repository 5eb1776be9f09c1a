"""How fast the machine is, second by second, for the decision log: what lies between the ends of
two iterations, with what the host does besides, against what the latency profile says of them. A
stall is told by itself, since a stream feels it and the mean of a second does not.

A log can so be simulated on the machine as it was then, whatever was learnt of it meanwhile.
Instants are in seconds, on the scheduler's clock.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.deciding.latency import LatencyProfile
from engine.deciding.plan import Plan

TOLD_EVERY_S = 1.0
STALL_S, STALL_FACTOR = 0.05, 2.0  # an iteration that long, and so much slower than those before it


class Span(NamedTuple):
    """Iterations that ended between `since` and `at`: what they took, and what the profile says."""

    since: float
    at: float
    iterations: int
    actual_s: float
    profile_s: float

    def joined(self, other: Span) -> Span:
        """Returns both as one."""
        num = self.iterations + other.iterations
        actual_s, profile_s = self.actual_s + other.actual_s, self.profile_s + other.profile_s
        return Span(self.since, other.at, num, actual_s, profile_s)

    def has_stalled_in(self, last: Span) -> bool:
        """Says whether `last` was a stall after these."""
        usual = STALL_FACTOR * self.actual_s * last.profile_s
        return last.actual_s >= STALL_S and last.actual_s * self.profile_s > usual


class SpeedNotes:
    """Adds iterations up: `ended` is to be called for each."""

    def __init__(self, profile: LatencyProfile) -> None:
        self._profile = profile
        self._last_at: float | None = None  # when one ended that left something to compute
        self._span: Span | None = None  # not told yet

    def idle(self) -> None:
        """There is nothing to compute: the time until the next iteration is nobody's."""
        self._last_at = None

    def ended(self, plan: Plan, began_at: float, now: float) -> list[Span]:
        """An iteration has ended that began at `began_at`. Returns what is to be told now."""
        since = began_at if self._last_at is None else self._last_at
        self._last_at, before = now, self._span
        if not now > since:
            return []
        last = Span(since, now, 1, now - since, self._profile.seconds(plan.work))
        if before is not None and before.has_stalled_in(last):
            self._span = None
            return [before, last]
        self._span = whole = last if before is None else before.joined(last)
        if now - whole.since < TOLD_EVERY_S:
            return []
        self._span = None
        return [whole]
