"""The histories of all sites, within bounds: nobody's calls cost another tenant its history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.inferring.calls import CallSite, Ended
from engine.inferring.habit import Habit, Need
from engine.inferring.sites import Sites

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

    Of sites that are too many those are forgotten that have sent nothing for the longest time, as
    `Sites` has it.
    """

    def __init__(self, most_sites: int = MOST_SITES) -> None:
        self._habits: Sites[Habit] = Sites(most_sites)

    def __len__(self) -> int:
        return len(self._habits)

    def observe(self, observed: Observed) -> list[Learnt]:
        """Takes note of a call; returns what is to be known that was not."""
        site, ended = observed
        learnt = []
        habit = self._habits.use(site)
        if habit is None:
            habit = Habit(site.is_stream)
            if (forgotten := self._habits.add(site, habit)) is not None:
                learnt.append(Learnt(forgotten, None))
        if habit.observe(ended):
            learnt.append(Learnt(site, habit.need))
        return learnt

    def known(self) -> Iterator[tuple[CallSite, Habit]]:
        """Yields the sites of which something is known."""
        return ((site, habit) for site, habit in self._habits.items() if habit.need is not None)
