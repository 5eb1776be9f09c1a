"""The treap against a list that is sorted and summed anew for every question."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.backlog import Backlog
from engine.deciding.request import Importance
from engine.deciding.sequence import Sequence
from tests.engine.deciding.parts import make_sequence

SEQUENCES = [
    make_sequence(f"r{i}", importance=list(Importance)[i % len(Importance)]) for i in range(12)
]


class Model:
    """Entries in a list. Work and instants are small integers, so that all sums are exact."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, float, Sequence]] = []
        self.num_added = 0

    def __contains__(self, sequence: Sequence) -> bool:
        return any(e[3] is sequence for e in self.entries)

    def add(self, sequence: Sequence, due: float, work: float) -> None:
        self.num_added += 1
        self.entries.append((due, self.num_added, work, sequence))
        self.entries.sort(key=lambda e: e[:2])

    def remove(self, sequence: Sequence) -> None:
        self.entries = [e for e in self.entries if e[3] is not sequence]

    def set_work(self, sequence: Sequence, work: float) -> None:
        self.entries = [(d, n, work if s is sequence else w, s) for d, n, w, s in self.entries]

    def ends(self) -> list[tuple[float, float, Sequence]]:
        """(instant its work ends when all begins at 0, due, sequence), in order."""
        at, found = 0.0, []
        for due, _, work, sequence in self.entries:
            at += work
            found.append((at, due, sequence))
        return found

    def lateness(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Of the entries with low < due < high."""
        late = [end - due for end, due, _ in self.ends() if low < due < high]
        return max(late, default=-math.inf)

    def first_late(self, start: float) -> Sequence | None:
        return next((s for end, due, s in self.ends() if start + end > due), None)

    def largest(self) -> float | None:
        return max((w for _, _, w, _ in self.entries), default=None)

    def least_until(self, until: float) -> tuple[int, float] | None:
        """The importance and work of the entry, negated."""
        found = ((s.importance, -w) for due, _, w, s in self.entries if due <= until)
        return min(found, default=None)


WORK = st.integers(0, 4).map(float)
INSTANT = st.integers(-6, 12).map(float)
OPERATION = st.tuples(st.sampled_from(SEQUENCES), INSTANT, WORK)


def apply(side: Backlog | Model, sequence: Sequence, due: float, work: float) -> None:
    """Adds who is absent; changes the work of who is present, or removes them (no work)."""
    if sequence not in side:
        side.add(sequence, due, work)
    elif work:
        side.set_work(sequence, work)
    else:
        side.remove(sequence)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(OPERATION, max_size=40), INSTANT)
def test_every_answer_equals_that_of_a_sorted_list(
    operations: list[tuple[Sequence, float, float]], instant: float
) -> None:
    backlog, model = Backlog(), Model()
    for operation in operations:
        apply(backlog, *operation)
        apply(model, *operation)
        backlog.check()
        assert list(backlog) == [e[3] for e in model.entries]
        assert backlog.total == sum(e[2] for e in model.entries)
        assert backlog.lateness == model.lateness()
        assert backlog.first_late(instant) is model.first_late(instant)
    assert len(backlog) == len(model.entries)
    for due in (instant, *(e[0] for e in model.entries)):
        assert backlog.work_until(due) == sum(e[2] for e in model.entries if e[0] <= due)
        assert backlog.lateness_after(due) == model.lateness(low=due)
        assert backlog.lateness_before(due) == model.lateness(high=due)
        least = backlog.least_until(due)
        assert (
            None if least is None else (least.importance, -backlog.work(least))
        ) == model.least_until(due)
        assert least is None or next(e[0] for e in model.entries if e[3] is least) <= due


def test_lateness_by_hand() -> None:
    """Due 10 with 4 s and due 12 with 7 s: 4 - 10 = -6 and 4 + 7 - 12 = -1. So the start may be
    put off by 1 s, and at 2 s the second entry is the first to be late.
    """
    backlog = Backlog()
    first, second = SEQUENCES[:2]
    backlog.add(second, 12.0, 7.0)
    backlog.add(first, 10.0, 4.0)
    assert backlog.lateness == -1.0
    assert backlog.first_late(1.0) is None
    assert backlog.first_late(2.0) is second
    assert backlog.first_late(7.0) is first


def test_the_tree_stays_shallow_when_entries_come_in_order_of_deadline() -> None:
    """O(log n) needs balance also for the commonest order of arrival. A random tree of 4,096
    is about 2.99 log2 n = 36 deep at most on average; a list would be 4,096 deep.
    """
    backlog = Backlog()
    for i in range(4096):
        backlog.add(make_sequence(f"s{i}"), float(i), 1.0)
    assert backlog.depth < 50
