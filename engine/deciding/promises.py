"""The waiting requests whose deadlines are to be kept, and who gives way when not all can be.

Either all of them are on time when they are served in order of deadline, or no order has them all
on time (backlog.py). In the latter case somebody must give way, and the rule of Moore and Hodgson
(1968) loses the fewest: go through the requests in order of deadline, and at the first that would
be late give up the one with the most work among those due no later, itself included. Giving up
anybody who is due later would not save it, and whoever has the most work makes the most room.

Here the choice among those due no later is first narrowed to the lowest importance: the one that
counts (`Sequence.importance`), which is below all others where a tenant has asked for more than its
part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from engine.deciding.backlog import Backlog
from engine.deciding.sequence import Sequence


class Promises:
    """Holds the promised requests in a Backlog of all, and in one for each importance.

    Each is due at its sequence's `prefill_due_at`, which must not change while it is in here. Work
    is in seconds.
    """

    def __init__(self) -> None:
        self.all = Backlog()
        self.groups: dict[int, Backlog] = {}

    def __len__(self) -> int:
        return len(self.all)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self.all

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.all)

    def add(self, sequence: Sequence, work_s: float) -> None:
        """Adds a sequence that is not in here."""
        for backlog in (self.all, self._group(sequence)):
            backlog.add(sequence, sequence.prefill_due_at, work_s)

    def set_work(self, sequence: Sequence, work_s: float) -> None:
        """Replaces the work that a sequence has left."""
        self.all.set_work(sequence, work_s)
        self._group(sequence).set_work(sequence, work_s)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence, whatever becomes of it."""
        self.all.remove(sequence)
        group = self._group(sequence)
        group.remove(sequence)
        if not group:
            del self.groups[sequence.importance]

    def _group(self, sequence: Sequence) -> Backlog:
        return self.groups.setdefault(sequence.importance, Backlog())

    def load(self, now: float) -> float:
        """Returns the waiting work over the smallest slack that serving it in order of deadline
        from `now` on leaves; 0 if nobody waits, inf if not all can be on time.
        """
        slack_s = -(now + self.all.lateness)
        return self.all.total / slack_s if slack_s > 0 else math.inf

    def has_time(self, due: float, work_s: float, start: float) -> bool:
        """Whether one more request with that deadline and work would be on time, and all that are
        due later too, with work beginning at `start`.
        """
        own_s = start + self.all.work_until(due) + work_s - due
        others_s = start + self.all.lateness_after(due) + work_s
        return max(own_s, others_s) <= 0

    def victim(self, start: float, margin_s: float = 0.0) -> tuple[Sequence, Sequence] | None:
        """Returns who should give way with work beginning at `start`, and for whom: the first that
        would be late, which may be the same. Returns None if all are on time. Whoever is less
        important than somebody else who waits gives way earlier, when somebody would be late with
        a start `margin_s` later.
        """
        if start + margin_s + self.all.lateness <= 0:
            return None  # as nearly always: nobody would be late
        present = sorted(importance for importance, group in self.groups.items() if group)
        return self._victim(start, present) or self._victim(start + margin_s, present[:-1])

    def _victim(self, start: float, candidates: list[int]) -> tuple[Sequence, Sequence] | None:
        """Returns what `victim` does, for victims of these importances only, the lowest first."""
        late = self.all.first_late(start) if candidates else None
        if late is None:
            return None
        for importance in candidates:
            victim = self.groups[importance].largest_until(late.prefill_due_at)
            if victim is not None:
                return victim, late
        return None

    def check(self) -> None:
        """Asserts that the groups together hold what the whole holds, and that none is empty."""
        groups = list(self.groups.values())
        assert all(groups), "an empty group stays behind"
        assert {s for group in groups for s in group} == set(self.all)
        assert sum(map(len, groups)) == len(self.all)
        for group in groups:
            assert all(group.work(s) == self.all.work(s) for s in group)
            group.check()
        self.all.check()
