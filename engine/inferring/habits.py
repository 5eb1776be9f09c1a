"""The histories of all sites, within bounds: nobody's calls cost another tenant its history."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from engine.inferring.calls import CallSite, Ended
from engine.inferring.habit import Habit, Need

MOST_SITES = 4096  # of some kilobytes each


class Observed(NamedTuple):
    """A call of a site is over."""

    site: CallSite
    ended: Ended


class Learnt(NamedTuple):
    """What a site's calls need is another than before; None: nobody knows any more."""

    site: CallSite
    need: Need | None


class Habits:
    """Knows the habit of each site. Synchronous, and the same for the same calls in the same order.

    Each share of the engine has room for as many sites as any other. Where there are too many, the
    site is forgotten that has sent nothing for the longest time, of the share whose call it is
    where that has more than its part, and else of the share with the most.
    """

    def __init__(self, most_sites: int = MOST_SITES) -> None:
        self._most = most_sites
        self._num = 0
        self._shares: dict[str, OrderedDict[CallSite, Habit]] = {}

    def __len__(self) -> int:
        return self._num

    def observe(self, observed: Observed) -> list[Learnt]:
        """Takes note of a call; returns what is to be known that was not."""
        site, ended = observed
        own = self._shares.setdefault(site.share, OrderedDict())
        habit = own.pop(site, None)
        learnt = []
        if habit is None:
            habit = Habit(site.is_stream)
            self._num += 1
        own[site] = habit
        if self._num > self._most:
            learnt.append(Learnt(self._forget(site.share), None))
        if habit.observe(ended):
            learnt.append(Learnt(site, habit.need))
        return learnt

    def known(self) -> Iterator[tuple[CallSite, Habit]]:
        """Yields the sites of which something is known."""
        for own in self._shares.values():
            for site, habit in own.items():
                if habit.need is not None:
                    yield site, habit

    def _forget(self, share: str) -> CallSite:
        """Forgets a site, and returns which; never that of the call which has just ended, the
        newest of its share.
        """
        own = self._shares[share]
        if len(own) < 2 or len(own) * len(self._shares) <= self._most:
            share, own = max(self._shares.items(), key=lambda each: len(each[1]))
        site, _ = own.popitem(last=False)
        self._num -= 1
        return site
