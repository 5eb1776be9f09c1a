"""How requests like this one have fared lately: the chance that a request will be late.

Why not computed. The queue says what lies ahead of a request now (forecast.py). What becomes of the
request depends on those who come after it: some will overtake it, and when not everybody can be on
time some policies give it up for others. Under a sustained overload the requests with the most work
go, and how much is too much is the load's to say. None of that is in the queue yet. But a load goes
on for longer than a request, and so those who have just been through it tell.

What they tell. A request is described by what decides its fate, in any policy:

    margin      log(the time that it has / the time that the plain forecast says it takes), which is
                positive where it would be on time if nobody came after it
    work        log(the seconds that the engine needs for it)
    importance  what the request counts as (`Sequence.importance`)

The chance is the share of the late among recent requests nearby in margin and work, of the same
importance. Nearby is said by tiles (CMAC: Albus, 1975): TILINGS grids of square cells lie over the
plane, each shifted against the others, and two points are the nearer the more cells they have in
common. A cell knows how many it has seen, and the share of the late among the last MEMORY or so:

    chance = sum over the cells of a point (number * share)  +  TILINGS * (1 if margin < 0 else 0)
             -------------------------------------------------------------------------------------
                          sum over the cells of a point (number)  +  TILINGS

so without experience the plain forecast speaks, and it has the weight of one request ever after.
An answer and an outcome cost TILINGS cells each. Their number is bounded, as both values are.

An outcome counts as soon as it is as good as certain: when a request is relegated, when its
deadline passes, or when it ends. Waiting for the end alone would learn from those who are on time
at once, and from the late ones late. Whose caller leaves with nothing overdue teaches nothing.

How slow. Work ahead is counted as if the engine did nothing else, in its largest chunks. What the
streams and their pace take of its time is the load's to say, too: work takes `slowdown` times as
long, such that half of the first tokens come earlier than told, half later. That is followed in
factors of STEP: up with each that is later, down with each that is earlier, and within a factor of
MOST_SLOWDOWN both ways. Whose first token is later counts when the instant told has passed, whether
or not its deadline has.

A request's caller is told "on time" where the chance of lateness is below MOST_RISK.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from sortedcontainers import SortedList

from engine.deciding.request import TargetKind
from engine.deciding.sequence import Sequence

MOST_RISK: Final = 1 / 12  # chance of lateness from which on a request is not called on time
TILINGS: Final = 4
MEMORY: Final = 64  # outcomes in a cell after which the oldest begin to fade
STEP: Final = 1.01  # the slowdown follows in steps of this factor
MOST_SLOWDOWN: Final = 32.0  # time for each second of work ahead; and its least, inverted
MOST_MARGIN: Final = 3.0  # 20 times the time that it takes: more makes no difference
MOST_WORK: Final = 9.0  # log of seconds; and its least, negated

_Cell = tuple[int, int, int, int]  # importance, tiling, and its place in the two directions


class Likeness(NamedTuple):
    """What a request is compared by, as the module says."""

    importance: int  # what it counts as
    margin: float  # log of a ratio of durations
    work: float  # log of seconds

    @classmethod
    def of(cls, importance: int, ratio: float, work_s: float) -> Likeness:
        """Returns that of a request which has `ratio` times the time that it is forecast to take,
        and which keeps the engine busy for `work_s` seconds.
        """
        margin = math.log(max(ratio, 1e-9))
        work = math.log(max(work_s, 1e-9))
        return cls(
            importance,
            max(-MOST_MARGIN, min(MOST_MARGIN, margin)),
            max(-MOST_WORK, min(MOST_WORK, work)),
        )

    def cells(self) -> Iterator[_Cell]:
        """Yields the cell of each tiling in which it lies. Cells are 1 wide: a factor of e. The
        tilings are shifted by odd multiples of 1 / TILINGS, so that no direction is favoured.
        """
        margin, work = math.floor(TILINGS * self.margin), math.floor(TILINGS * self.work)
        for tiling in range(TILINGS):
            across, along = (margin + tiling) // TILINGS, (work + 3 * tiling) // TILINGS
            yield (self.importance, tiling, across, along)


class _Told(NamedTuple):
    """What was told of a request. Instants are in seconds."""

    like: Likeness
    due_at: float  # the first token, or with a TTLT the last


class Experience:
    """What became of the requests that were told what to expect. Instants are in seconds."""

    def __init__(self) -> None:
        self.slowdown = 1.0  # time that passes for each second of work ahead
        self._cells: dict[_Cell, tuple[int, float]] = {}  # outcomes (MEMORY at most), late share
        # Of those whose outcome is open:
        self._told: dict[str, _Told] = {}  # by id
        self._due: SortedList[tuple[float, str]] = SortedList()  # deadlines that have not passed
        # When the first token was told to come, of those of whom it is not known whether it did:
        self._first_at: dict[str, float] = {}  # by id
        self._awaited: SortedList[tuple[float, str]] = SortedList()  # the same
        self._none_before = math.inf  # nothing in either list is earlier

    def __len__(self) -> int:
        """Returns of how many requests the outcome is open."""
        return len(self._told)

    def late_chance(self, like: Likeness) -> float:
        """Returns the chance, in [0, 1], that a request like that will be late."""
        total, late = float(TILINGS), float(TILINGS) if like.margin < 0 else 0.0
        for cell in like.cells():
            number, share = self._cells.get(cell, (0, 0.0))
            total += number
            late += number * share
        return late / total

    def told(self, sequence: Sequence, like: Likeness, first_at: float) -> None:
        """The caller of a request, which is like that, has been told what to expect, the first
        token at `first_at`.
        """
        self._told[sequence.id] = _Told(like, sequence.due_at)
        self._due.add((sequence.due_at, sequence.id))
        self._first_at[sequence.id] = first_at
        self._awaited.add((first_at, sequence.id))
        self._none_before = min(self._none_before, first_at, sequence.due_at)

    def began(self, request_id: str, now: float) -> None:
        """The first token of a request has come. That of one which was given up says nothing of
        how slow the others are served.
        """
        first_at = self._forget_first(request_id)
        if first_at is not None:
            self._follow(is_later=now > first_at)

    def _follow(self, is_later: bool) -> None:
        slowdown = self.slowdown * (STEP if is_later else 1 / STEP)
        self.slowdown = min(max(slowdown, 1 / MOST_SLOWDOWN), MOST_SLOWDOWN)

    def learn(self, request_id: str, is_late: bool) -> None:
        """The request is late, or on time, for good; what is learnt of it later counts no more."""
        self._forget_first(request_id)
        self._learn(request_id, is_late)

    def _learn(self, request_id: str, is_late: bool) -> None:
        told = self._forget_outcome(request_id)
        if told is None:
            return
        for cell in told.like.cells():
            number, share = self._cells.get(cell, (0, 0.0))
            number = min(number + 1, MEMORY)
            self._cells[cell] = (number, share + (is_late - share) / number)

    def forget(self, request_id: str) -> None:
        """Nobody will know whether the request would have been late."""
        self._forget_first(request_id)
        self._forget_outcome(request_id)

    def _forget_first(self, request_id: str) -> float | None:
        first_at = self._first_at.pop(request_id, None)
        if first_at is not None:
            self._awaited.remove((first_at, request_id))
        return first_at

    def _forget_outcome(self, request_id: str) -> _Told | None:
        told = self._told.pop(request_id, None)
        if told is not None:
            self._due.discard((told.due_at, request_id))
        return told

    def pass_time(self, sequences: Mapping[str, Sequence], now: float) -> None:
        """Learns of those whose deadline has passed: that of the first token, or with a TTLT that
        of the last; and of those whose first token is later than told. `sequences` are those in
        flight, by id.
        """
        if now <= self._none_before:
            return  # as mostly
        while self._awaited and self._awaited[0][0] < now:
            _, request_id = self._awaited.pop(0)
            del self._first_at[request_id]
            self._follow(is_later=True)
        while self._due and self._due[0][0] < now:
            _, request_id = self._due.pop(0)
            sequence = sequences[request_id]
            interactive = sequence.request.targets.kind is TargetKind.INTERACTIVE
            if not interactive or not sequence.output:
                self._learn(request_id, is_late=True)
        next_first = self._awaited[0][0] if self._awaited else math.inf
        next_due = self._due[0][0] if self._due else math.inf
        self._none_before = min(next_first, next_due)
