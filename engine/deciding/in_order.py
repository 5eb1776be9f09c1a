"""Policies that compute prefills in one order that they can state beforehand.

Such a policy gives each waiting sequence a place, a number that changes only when more or less of
its prompt is computed; the smallest is first. Everything else follows: the keys, and how much work
lies ahead of whom.

Where it relegates, it does so by a sequence's own work: one that could not be on time though it was
served alone, from now on, waits behind all others. That looks at nobody else, so it is known
beforehand at which instant it will be: the deadline less the work. Sequences are kept in order of
that instant.
"""

from __future__ import annotations

import math
from abc import abstractmethod

from engine.deciding.backlog import Backlog
from engine.deciding.demand import Demand
from engine.deciding.policy import KEPT_RANK, RELEGATED_RANK, Cause, Move, MoveKind, Policy
from engine.deciding.queue import Key, Place, SequenceQueue
from engine.deciding.sequence import Sequence


class InOrder(Policy):
    """An order by `place`. The size of chunks is left to derived classes."""

    relegates = False  # whoever could not be on time by itself, once and for all

    def __init__(self, demand: Demand) -> None:
        super().__init__(demand)
        self._waiting = Backlog()  # by place; the relegated come last
        self._latest = Backlog()  # by the latest start, without work: those not relegated

    @abstractmethod
    def place(self, sequence: Sequence) -> float:
        """Returns where the sequence stands: the smallest is first, and ties go by arrival."""

    def enter(self, sequence: Sequence, now: float) -> Key:
        return self._add(sequence)

    def progress(self, sequence: Sequence) -> Key:
        self._remove(sequence)
        return self._add(sequence)

    def leave(self, sequence: Sequence) -> None:
        self._remove(sequence)

    def work_s(self, sequence: Sequence) -> float:
        """Returns the seconds that serving the sequence is expected to take."""
        return self.demand.seconds(sequence)

    def _add(self, sequence: Sequence) -> Key:
        place, work_s = self.place(sequence), self.work_s(sequence)
        if sequence.relegated:
            self._waiting.add(sequence, math.inf, work_s)
            return (RELEGATED_RANK, place)
        self._waiting.add(sequence, place, work_s)
        if self.relegates:
            self._latest.add(sequence, self.latest_start(sequence), 0.0)
        return (KEPT_RANK, place)

    def _remove(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        if sequence in self._latest:
            self._latest.remove(sequence)

    def latest_start(self, sequence: Sequence) -> float:
        """Returns the last instant at which a sequence that is served alone from then on can be on
        time; inf for best effort.
        """
        own_s = self.demand.prefill_s(sequence)
        if sequence.request.targets.ttlt_s is not None:
            own_s += (self.demand.output_left(sequence) - 1) * self.demand.iteration_s
        return sequence.due_at - own_s

    def review(self, now: float) -> list[Move]:
        moves = []
        while (late := self._latest.first_late(now)) is not None:
            moves.append(self._relegate(late, "it would end late by itself", Cause.LATE_ALONE))
        return moves

    def _relegate(self, sequence: Sequence, why: str, cause: Cause) -> Move:
        work_s = self._waiting.work(sequence)
        self._remove(sequence)
        self._waiting.add(sequence, math.inf, work_s)
        key = (RELEGATED_RANK, self.place(sequence))
        return Move(sequence, key, MoveKind.RELEGATE, why, cause=cause)

    def known_work_s(self, sequence: Sequence) -> float:
        return self._waiting.work(sequence)

    def ahead_s(self, sequence: Sequence, waiting: SequenceQueue, now: float) -> float:
        own_s = self._waiting.work(sequence) if sequence in self._waiting else 0.0
        place = math.inf if sequence.relegated else self.place(sequence)
        return max(0.0, self._waiting.work_until(place) - own_s)

    def place_of_new(self, sequence: Sequence, now: float) -> Place:
        return (KEPT_RANK, self.place(sequence)), math.inf

    def check(self, waiting: SequenceQueue) -> None:
        assert set(self._waiting) == set(waiting), (
            "work that nobody waits for, or none for somebody"
        )
        assert set(self._latest) <= set(waiting.of_rank(KEPT_RANK))
