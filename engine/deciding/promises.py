"""The waiting requests whose deadlines are to be kept, and who gives way when not all can be.

Served in order of deadline from now on, they are all on time or they are not (backlog.py). When
they are not, Moore and Hodgson (1968) lose the fewest: at the first request that would be late,
give up the one with the most work among those due no later. Here the choice is first narrowed to
the lowest importance, then to shares that hold more than their part of the waiting work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from engine.deciding.backlog import Backlog
from engine.deciding.request import Importance, Share
from engine.deciding.sequence import Sequence

# A share is over its part with more than this many times the mean waiting work for its weight.
OVER_SHARE = 1.5


class Promises:
    """A Backlog of everybody, and one for each importance and share."""

    def __init__(self) -> None:
        self.all = Backlog()
        self._groups: dict[Importance, dict[str, Backlog]] = {}  # by the share's name
        self._shares: dict[str, Share] = {}  # by name, as the latest request has them

    def __len__(self) -> int:
        return len(self.all)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self.all

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.all)

    def add(self, sequence: Sequence, work_s: float) -> None:
        due, share = sequence.prefill_due_at, sequence.request.share
        self._shares[share.name] = share
        self.all.add(sequence, due, work_s)
        self._group(sequence).add(sequence, due, work_s)

    def set_work(self, sequence: Sequence, work_s: float) -> None:
        self.all.set_work(sequence, work_s)
        self._group(sequence).set_work(sequence, work_s)

    def remove(self, sequence: Sequence) -> None:
        self.all.remove(sequence)
        group = self._group(sequence)
        group.remove(sequence)
        if not group:
            del self._groups[sequence.request.importance][sequence.request.share.name]

    def _group(self, sequence: Sequence) -> Backlog:
        shares = self._groups.setdefault(sequence.request.importance, {})
        name = sequence.request.share.name
        group = shares.get(name)
        if group is None:
            group = shares[name] = Backlog()
        return group

    def load(self, now: float) -> float:
        """Returns the waiting work over the smallest slack that serving it in order of deadline
        from `now` on leaves; 0 if nobody waits, inf if not all can be on time."""
        slack_s = -(now + self.all.lateness)
        return self.all.total / slack_s if slack_s > 0 else math.inf

    def has_time(self, due: float, work_s: float, start: float) -> bool:
        """Whether one more request with that deadline and work would be on time, and all that are
        due later too, with work beginning at `start`."""
        own_s = start + self.all.work_until(due) + work_s - due
        others_s = start + self.all.lateness_after(due) + work_s
        return max(own_s, others_s) <= 0

    def victim(self, start: float, margin_s: float = 0.0) -> tuple[Sequence, Sequence] | None:
        """With work beginning at `start`: who should give way, and for whom; None if all are on
        time. The two may be the same. Who is less important than somebody else who waits gives way
        already when that would happen with a start `margin_s` later.
        """
        present = sorted(importance for importance, group in self._groups.items() if group)
        return self._victim(start, present) or self._victim(start + margin_s, present[:-1])

    def _victim(
        self, start: float, candidates: list[Importance]
    ) -> tuple[Sequence, Sequence] | None:
        late = self.all.first_late(start) if candidates else None
        if late is None:
            return None
        for importance in candidates:
            victim = self._largest(self._groups[importance], late.prefill_due_at)
            if victim is not None:
                return victim, late
        return None

    def _largest(self, shares: dict[str, Backlog], due: float) -> Sequence | None:
        """Most work among those due by then, of shares over their part if any has one."""
        weights = sum(self._shares[name].weight for name in shares)
        mean = sum(group.total for group in shares.values()) / weights if shares else 0.0
        best: tuple[bool, float] | None = None
        found = None
        for name, group in shares.items():
            sequence = group.largest_until(due)
            if sequence is not None:
                is_over = group.total > OVER_SHARE * self._shares[name].weight * mean
                rank = (is_over, group.work(sequence))
                if best is None or rank > best:
                    best, found = rank, sequence
        return found
