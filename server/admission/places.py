"""The places of calls in the queue: how much each uses, and who holds how much of what is limited.

These are books without decisions. `admission.py` decides who may come in, and who gives way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from sortedcontainers import SortedKeyList

from engine.deciding.request import Importance, Share

# How much of both limits is kept for calls of higher importance. Of few places, that is none.
KEPT_PERCENT = {Importance.LOW: 10, Importance.NORMAL: 5, Importance.HIGH: 0}

CallKey = tuple[str, str]  # tenant, and the id that it gave the call


class Entry(NamedTuple):
    """What admission knows of a call. `tokens` is the work of all its completions: estimated from
    the size of its message at first, and exact once its prompt has been tokenized.
    """

    tenant: str
    request_id: str
    share: Share
    tier: str  # "" for targets of its own
    importance: Importance
    n: int  # requests: completions asked for
    tokens: int

    @property
    def key(self) -> CallKey:
        """Returns what tells the call from all others."""
        return self.tenant, self.request_id


class Use(NamedTuple):
    """An amount of each of the two things that are limited."""

    requests: int
    tokens: int

    def or_more(self, other: Use) -> Use:
        """Returns the larger amount of each."""
        return Use(max(self.requests, other.requests), max(self.tokens, other.tokens))

    def less(self, other: Use) -> Use:
        """Returns what is left of it after the other, never less than nothing."""
        return Use(max(0, self.requests - other.requests), max(0, self.tokens - other.tokens))


NOTHING = Use(0, 0)


class State(Enum):
    """How far a call in the queue has come."""

    WAITING = "waiting"  # nothing has been streamed
    STARTED = "started"
    DISPLACED = "displaced"  # and not over yet


@dataclass(eq=False, slots=True)
class Place:
    """A call's place in the queue. A place with a higher `number` is a later one."""

    entry: Entry
    number: int
    state: State = State.WAITING

    @property
    def use(self) -> Use:
        """Returns how much the call uses now of what is limited."""
        if self.state is State.DISPLACED:
            return NOTHING
        return Use(self.entry.n, self.entry.tokens if self.state is State.WAITING else 0)


class Pool:
    """One thing that is limited, and who holds how much of it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self.held: Counter[str] = Counter()  # by the share's name
        self.by_importance: Counter[Importance] = Counter()

    def add(self, entry: Entry, amount: int) -> None:
        """Adds an amount that the call uses; a negative one is taken away."""
        self.total += amount
        self.by_importance[entry.importance] += amount
        name = entry.share.name
        self.held[name] += amount
        if not self.held[name]:
            del self.held[name]

    def missing(self, amount: int, importance: Importance) -> int:
        """Returns how much has to go before so much more fits. Where nothing is used, any amount
        fits.
        """
        room = self.limit - self.limit * KEPT_PERCENT[importance] // 100
        return max(0, self.total + amount - room) if self.total else 0

    def part(self, share: Share, active: float) -> int:
        """Returns how much the share may hold. `active` is the weight of all active shares
        together.
        """
        return max(1, int(self.limit * share.weight / active))

    def beyond(self, share: Share, active: float, amount: int) -> int:
        """Returns how much the share would hold beyond its part with so much more.

        It is nothing while no more than half of the whole is used, for the only active share, and
        for the only call of a share, whatever its size.
        """
        is_alone = share.weight >= active
        held = self.held[share.name]
        if is_alone or 2 * (self.total + amount) <= self.limit or not held:
            return 0
        return max(0, held + amount - self.part(share, active))


class Line:
    """The waiting calls of one importance and share, the largest and latest last."""

    def __init__(self) -> None:
        self.places: SortedKeyList[Place, tuple[int, int]] = SortedKeyList(
            key=lambda place: (place.entry.tokens, place.number)
        )
        self.use = NOTHING

    def add(self, place: Place) -> None:
        """Adds a place that waits."""
        self.places.add(place)
        self.use = Use(self.use.requests + place.entry.n, self.use.tokens + place.entry.tokens)

    def remove(self, place: Place) -> None:
        """Removes a place that waits no more."""
        self.places.remove(place)
        self.use = Use(self.use.requests - place.entry.n, self.use.tokens - place.entry.tokens)


def sum_of(places: Iterable[Place]) -> Use:
    """Returns how much the places use together."""
    uses = [place.use for place in places]
    return Use(sum(use.requests for use in uses), sum(use.tokens for use in uses))
