"""What became of requests, counted by who sent them. Every arrival has one fate, and one cell.

A cell is of one tier, importance, tenant and application. Callers choose the names of tenants and
applications, so only so many have cells of their own; those of tenants that the operator has named
always do, all others are counted together as OTHERS. Durations are in seconds.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from engine.deciding.outcome import MISSES, Fate

OTHERS = "(others)"
NAMELESS = "(no name)"
MOST_NAMES = 30  # of tenants and of applications that have rows of their own
MOST_NAMED = 1000  # tenants of the operator
MOST_EXAMPLES = 10  # requests of a row that are told by their ids


FATES = (*Fate, None)  # None: the log ends, or its engine was lost, before the request ended
UNTOLD = "untold"
JUDGED = (Fate.ON_TIME, *MISSES)  # what attainment is a share of


class Harm(StrEnum):
    """What somebody may have to answer for. A request may have come to several of these."""

    LATE = "late"
    EXPIRED = "expired"
    REFUSED = "refused"
    RELEGATED = "relegated"
    PREEMPTED = "preempted"
    ANY = "any"  # of them


class Who(NamedTuple):
    """Whose a request is, as the dimensions by which it is counted."""

    tier: str
    importance: str
    tenant: str
    application: str


DIMENSIONS = Who._fields


class Example(NamedTuple):
    """A request by which a figure can be traced. The longest wait compares as the largest."""

    waited_s: float
    request_id: str
    tenant: str
    arrived: str  # file and line
    ended: str  # file and line; "" where the log does not say
    num: int = 1  # of a flood that is told as one


@dataclass(slots=True)
class Suffered:
    """Requests that came to one kind of harm, and what the engine did in the time that they were
    there: from their arrival to their end.
    """

    count: int = 0
    num_seen: int = 0  # by the engine: others were refused, or left, before it had them
    waited_s: float = 0.0  # sum of the times that these were there
    served: array[float] = field(default_factory=lambda: array("d"))  # sums of seconds by group
    examples: list[Example] = field(default_factory=list)  # a heap, of those that waited longest

    def add(self, example: Example) -> None:
        """One more came to it, or as many as the example is told of."""
        self.count += example.num
        self._keep(example)

    def wait(self, waited_s: float, served: array[float]) -> None:
        """The engine had seen it, and did this while it was there."""
        self.num_seen += 1
        self.waited_s += waited_s
        self._serve(served)

    def merge(self, other: Suffered) -> None:
        """Adds what others suffered."""
        self.count += other.count
        self.num_seen += other.num_seen
        self.waited_s += other.waited_s
        self._serve(other.served)
        for example in other.examples:
            self._keep(example)

    def _serve(self, served: array[float]) -> None:
        missing = len(served) - len(self.served)
        if missing > 0:
            self.served.extend([0.0] * missing)
        for group, seconds in enumerate(served):
            self.served[group] += seconds

    def _keep(self, example: Example) -> None:
        if len(self.examples) < MOST_EXAMPLES:
            heapq.heappush(self.examples, example)
        else:
            heapq.heappushpop(self.examples, example)


@dataclass(slots=True)
class Cell:
    """The requests of one kind of sender."""

    fates: Counter[Fate | None] = field(default_factory=Counter)
    harms: dict[Harm, Suffered] = field(default_factory=dict)

    @property
    def num_arrived(self) -> int:
        return self.fates.total()

    @property
    def num_judged(self) -> int:
        return sum(self.fates[fate] for fate in JUDGED)

    @property
    def attainment(self) -> float | None:
        """Returns the share that was on time, of those that it is asked of."""
        return self.fates[Fate.ON_TIME] / self.num_judged if self.num_judged else None

    def num(self, harm: Harm) -> int:
        """Returns how many came to a kind of harm."""
        return self.harms[harm].count if harm in self.harms else 0

    def suffered(self, harm: Harm) -> Suffered:
        """Returns what those suffered that came to a kind of harm."""
        return self.harms.setdefault(harm, Suffered())

    def merge(self, other: Cell) -> None:
        """Adds the requests of others."""
        self.fates.update(other.fates)
        for harm, each in other.harms.items():
            self.suffered(harm).merge(each)


class Names:
    """Names that have rows of their own: the first that come, and those `kept` in any case."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._own: set[str] = set()
        self._kept: set[str] = set()

    def keep(self, names: Iterable[str]) -> None:
        """The operator has named these."""
        for name in names:
            if len(self._kept) < MOST_NAMED:
                self._kept.add(name)

    def of(self, name: str) -> str:
        """Returns the name, or OTHERS."""
        if name in self._kept or name in self._own:
            return name
        if len(self._own) < self._most:
            self._own.add(name)
            return name
        return OTHERS


def result_of(fate: Fate | None) -> str:
    """Returns what became of an arrival in a word, UNTOLD where nobody knows."""
    return UNTOLD if fate is None else fate.value


def rolled_up(cells: dict[Who, Cell], by: Collection[str]) -> Iterator[tuple[Who, Cell]]:
    """Yields the cells added up by some of the dimensions, in the order of their names; the others
    are "".
    """
    sums: dict[Who, Cell] = {}
    for who, cell in cells.items():
        fields = {name: getattr(who, name) if name in by else "" for name in DIMENSIONS}
        sums.setdefault(Who(**fields), Cell()).merge(cell)
    yield from sorted(sums.items(), key=lambda item: item[0])
