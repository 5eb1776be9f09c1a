"""The waiting requests whose deadlines are to be kept, and who gives way when not all can be.

Either all of them are on time when they are served in order of deadline, or no order has them all
on time (backlog.py). In the latter case somebody must give way, and the rule of Moore and Hodgson
(1968) loses the fewest: go through the requests in order of deadline, and at the first that would
be late give up the one with the most work among those due no later, itself included. Giving up
anybody who is due later would not save it, and whoever has the most work makes the most room.

Here the choice among those due no later is first narrowed to the lowest importance: the one that
counts (`Sequence.importance`), which is below all others where a tenant has asked for more than its
part. But who would be late with nobody before it gives way itself: nothing is won for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sortedcontainers import SortedKeyList

from engine.deciding.backlog import Backlog
from engine.deciding.request import BEYOND, Importance
from engine.deciding.sequence import Sequence


class Promises:
    """Holds the promised requests in a Backlog, counts them by importance, and knows who has begun.

    Each is due at its sequence's `prefill_due_at`, which must not change while it is in here, nor
    must its importance. Work is in seconds.
    """

    def __init__(self) -> None:
        self.all = Backlog()
        self.begun: dict[Sequence, None] = {}  # partly prefilled
        # Those with a TBT that have not begun, in order of deadline.
        self.new_streams: SortedKeyList[Sequence, float] = SortedKeyList(
            key=lambda s: s.prefill_due_at
        )
        self._present: Counter[int] = Counter()  # by importance

    def __len__(self) -> int:
        return len(self.all)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self.all

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.all)

    def add(self, sequence: Sequence, work_s: float) -> None:
        """Adds a sequence that is not in here."""
        self.all.add(sequence, sequence.prefill_due_at, work_s)
        self._present[sequence.importance] += 1
        self._note_progress(sequence)

    def set_work(self, sequence: Sequence, work_s: float) -> None:
        """Replaces the work that a sequence has left, which has come further or was set back."""
        self.all.set_work(sequence, work_s)
        self._note_progress(sequence)

    def _note_progress(self, sequence: Sequence) -> None:
        if sequence.num_computed:
            self.begun[sequence] = None
            self.new_streams.discard(sequence)
        else:
            self.begun.pop(sequence, None)
            if sequence.request.targets.tbt_s is not None and sequence not in self.new_streams:
                self.new_streams.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence, whatever becomes of it."""
        self.all.remove(sequence)
        self.begun.pop(sequence, None)
        self.new_streams.discard(sequence)
        self._present[sequence.importance] -= 1

    def has(self, importance: int) -> bool:
        """Says whether anybody is promised who counts as that important."""
        return self._present.get(importance, 0) > 0

    @property
    def highest(self) -> int:
        """The highest importance in here, which is not empty."""
        return max(importance for importance, number in self._present.items() if number)

    def load(self, now: float) -> float:
        """Returns the waiting work over the smallest slack that serving it in order of deadline
        from `now` on leaves; 0 if nobody waits, inf if not all can be on time.
        """
        return self.all.load(now)

    def has_time(self, due: float, work_s: float, start: float) -> bool:
        """Whether one more request with that deadline and work would be on time, and all that are
        due later too, with work beginning at `start`.
        """
        if start + work_s > due or start + self.all.work_until(due) + work_s > due:
            return False
        return start + self.all.lateness_after(due) + work_s <= 0

    def victim(self, start: float, margin_s: float = 0.0) -> tuple[Sequence, Sequence] | None:
        """Returns who should give way with work beginning at `start`, and for whom: the first that
        would be late, which may be the same. Returns None if all are on time. Whoever is less
        important than somebody else who waits gives way earlier, when somebody would be late with
        a start `margin_s` later.
        """
        if start + margin_s + self.all.lateness <= 0:
            return None  # as nearly always: nobody would be late
        certain = self.all.first_late(start)
        late = certain or self.all.first_late(start + margin_s)
        victim = None if late is None else self.all.least_until(late.prefill_due_at)
        if late is None or victim is None:
            return None  # only rounding could lead here
        if start + self.all.work(late) > late.prefill_due_at:
            return late, late
        return (victim, late) if certain or victim.importance < self.highest else None

    def is_spared_as_high(self, victim: Sequence, late: Sequence) -> bool:
        """Whether another would have given way for the late one if the victim, which has and is in
        here no more, were of high importance.
        """
        if not BEYOND < victim.importance < Importance.HIGH:
            return False
        other = self.all.least_until(late.prefill_due_at)
        return other is not None and other.importance < Importance.HIGH

    def check(self) -> None:
        """Asserts that the tree is sound, and that who is counted is in it."""
        assert +self._present == Counter(s.importance for s in self.all)
        assert all(s in self.all and s.num_computed for s in self.begun)
        assert all(s in self.begun for s in self.all if s.num_computed > s.num_cached)
        streams = {s for s in self.all if s.request.targets.tbt_s is not None}
        assert set(self.new_streams) == streams - set(self.begun)
        self.all.check()
