"""How calls come, beside the others of their site, at one front end. Seconds."""

from __future__ import annotations

import math

from engine.inferring.calls import CallSite, Coming
from engine.inferring.sites import Sites

MOST_SITES = 4096  # of which one front end remembers when a call came last
RATE_CALLS = 256  # of late, by which their rate is known
IDLE_S = 10.0  # of a pause, as far as it counts in that
AT_ONCE_S = 0.02  # between two arrivals that one program sent at the same time
# From the end of one call to the arrival of the next, where a program waited for it: people need
# 0.2 s and more to react to anything.
REACTION_S = 0.05


class Rhythm:
    """Sees how calls come, beside the others of their site, at one front end. A connection stays
    with its front end, and so mostly does a program that sends one call after the other.
    """

    def __init__(self, most_sites: int = MOST_SITES) -> None:
        self._last: Sites[_Last] = Sites(most_sites)

    def arrive(self, site: CallSite, now: float) -> Coming:
        """Notes an arrival; returns how it came."""
        last = self._last.use(site)
        if last is None:
            self._last.add(site, _Last(now))
            return Coming()
        return last.arrive(now)

    def served(self, site: CallSite, now: float) -> None:
        """Notes that a call has been served. Who leaves and comes again at once has not waited for
        an end, as whoever types on does.
        """
        last = self._last.look(site)
        if last is not None:
            last.served_at = now


class _Last:
    """When a call of a site last came and was last served, and how often they come."""

    __slots__ = ("_arrived_at", "_num", "_span_s", "served_at")

    def __init__(self, now: float) -> None:
        self._arrived_at = now
        self.served_at = -math.inf
        self._num, self._span_s = 0.0, 0.0

    def arrive(self, now: float) -> Coming:
        gap_s, self._arrived_at = max(0.0, now - self._arrived_at), now
        self._num += 1
        self._span_s += min(gap_s, IDLE_S)
        rate = self._num / self._span_s if self._span_s else math.inf
        if self._num >= RATE_CALLS:
            self._num, self._span_s = self._num / 2, self._span_s / 2
        return Coming(gap_s <= AT_ONCE_S, 0 <= now - self.served_at <= REACTION_S, rate)
