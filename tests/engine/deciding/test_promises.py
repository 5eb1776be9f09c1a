"""Who gives way: the fewest, the least important, and first of all whoever takes too much."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.promises import Promises
from engine.deciding.request import BEYOND, Importance
from engine.deciding.sequence import Sequence
from tests.engine.deciding.parts import deadline, make_sequence

LOW, NORMAL, HIGH = Importance.LOW, Importance.NORMAL, Importance.HIGH
Job = tuple[int, int]  # due, work
JOB = st.tuples(st.integers(1, 12), st.integers(1, 6))


def add(
    promises: Promises,
    name: str,
    due: float,
    work: float,
    importance: Importance,
    counts_as: int | None = None,
) -> Sequence:
    sequence = make_sequence(name, targets=deadline(due), importance=importance)
    sequence.count_as(importance if counts_as is None else counts_as)
    promises.add(sequence, work)
    return sequence


def give_up(promises: Promises, start: float = 0.0) -> list[Sequence]:
    """All victims, in order, until the rest is on time."""
    victims = []
    while (pair := promises.victim(start)) is not None:
        promises.remove(pair[0])
        victims.append(pair[0])
    return victims


def on_time(jobs: tuple[Job, ...]) -> bool:
    """In order of deadline from 0, which is best for all of a set to be on time (Jackson, 1955)."""
    at = 0
    for due, work in sorted(jobs):
        at += work
        if at > due:
            return False
    return True


def fewest_late(jobs: list[Job]) -> int:
    return next(
        lost
        for lost in range(len(jobs) + 1)
        if any(on_time(kept) for kept in combinations(jobs, len(jobs) - lost))
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(JOB, max_size=8))
def test_among_equals_the_fewest_are_given_up(jobs: list[Job]) -> None:
    promises = Promises()
    for i, (due, work) in enumerate(jobs):
        add(promises, f"r{i}", due, work, NORMAL)
    assert len(give_up(promises)) == fewest_late(jobs)
    assert promises.all.lateness <= 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(JOB, st.sampled_from(Importance)), max_size=8))
def test_nobody_gives_way_while_a_less_important_request_could(
    jobs: list[tuple[Job, Importance]],
) -> None:
    """But for whom nobody could save."""
    promises = Promises()
    waiting = {
        add(promises, f"r{i}", due, work, importance): due
        for i, ((due, work), importance) in enumerate(jobs)
    }
    while (pair := promises.victim(0.0)) is not None:
        victim, late = pair
        if promises.all.work(late) > waiting[late]:
            assert victim is late
            promises.remove(late)
            del waiting[late]
            continue
        candidates = [s for s, due in waiting.items() if due <= waiting[late]]
        assert victim in candidates, "whoever is due later cannot save it"
        assert victim.request.importance == min(s.request.importance for s in candidates)
        promises.remove(victim)
        del waiting[victim]


def test_moore_and_hodgson_by_hand() -> None:
    """Due 4, 5 and 6 with 3, 1 and 3 s: the third would end at 7. Giving up either 3 s saves it;
    the second, which ends at 1 + 3 = 4 then, stays.
    """
    promises = Promises()
    add(promises, "a", 4, 3, NORMAL)
    b = add(promises, "b", 5, 1, NORMAL)
    c = add(promises, "c", 6, 3, NORMAL)
    pair = promises.victim(0.0)
    assert pair is not None
    assert pair[1] is c
    promises.remove(pair[0])
    assert pair[0] is not b
    assert promises.victim(0.0) is None
    assert promises.victim(2.0) is None or pair[0] is c
    later = promises.victim(3.5)
    assert later is not None


@pytest.mark.parametrize("importance", Importance)
def test_the_less_important_give_way_early_and_equals_do_not(importance: Importance) -> None:
    """3 s and 6 s due at 10: on time from 0, not from 2."""
    promises = Promises()
    other = add(promises, "other", 9, 3, importance)
    add(promises, "normal", 10, 6, NORMAL)
    assert promises.victim(0.0) is None
    assert promises.victim(0.0, margin_s=0.5) is None
    pair = promises.victim(0.0, margin_s=2.0)
    assert (pair is not None) == (importance is not NORMAL)
    if pair is not None:
        assert pair[0].request.importance is min(importance, NORMAL)
    assert promises.victim(2.0) is not None
    promises.remove(other)
    assert promises.victim(0.0, margin_s=9.0) is None, "nobody is left to give way to"


def test_nobody_gives_way_for_who_would_be_late_alone() -> None:
    """Due at 5 with 6 s of work, beside three of 1 s that are less important and due before."""
    promises = Promises()
    for i in range(3):
        add(promises, f"low{i}", 2 + i, 1, LOW)
    lost = add(promises, "lost", 5, 6, HIGH)
    assert give_up(promises) == [lost]


def test_low_importance_goes_first_even_when_more_of_it_must_go() -> None:
    """The high one alone needs 9 of 10 s: three low ones of 1 s leave 7, so two of them go."""
    promises = Promises()
    low = [add(promises, f"low{i}", 5 + i, 1, LOW) for i in range(3)]
    add(promises, "high", 10, 9, HIGH)
    victims = give_up(promises)
    assert len(victims) == 2
    assert set(victims) < set(low)


def test_whoever_asked_for_more_than_its_part_gives_way_before_low_importance() -> None:
    """Either saves the other; the larger one, and the one that states low importance, stay."""
    promises = Promises()
    add(promises, "low", 9, 6, LOW)
    beyond = add(promises, "beyond", 9, 4, HIGH, counts_as=BEYOND)
    assert give_up(promises) == [beyond]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), JOB, st.sampled_from([BEYOND, *Importance])),
        max_size=25,
    )
)
def test_who_is_counted_by_importance_is_in_here(
    operations: list[tuple[int, Job, int]],
) -> None:
    promises, waiting = Promises(), dict[int, Sequence]()
    for number, (due, work), counts_as in operations:
        if number not in waiting:
            waiting[number] = add(promises, f"r{number}", due, work, HIGH, counts_as)
        elif work < 4:
            promises.set_work(waiting[number], work)
        else:
            promises.remove(waiting.pop(number))
        promises.check()
        assert set(promises) == set(waiting.values())


def test_the_load_is_the_work_over_the_slack() -> None:
    """4 s of work by 10 s, and 7 s by 12: the second could begin a second later. At 0.5 s there is
    half a second for 11 s of work.
    """
    promises = Promises()
    assert promises.load(0.0) == 0.0
    add(promises, "a", 10, 4, NORMAL)
    add(promises, "b", 12, 7, NORMAL)
    assert promises.load(0.0) == 11.0
    assert promises.load(0.5) == 22.0
    assert promises.load(1.0) == math.inf


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(JOB, max_size=8), JOB)
def test_there_is_time_for_one_more_if_all_that_are_due_no_earlier_are_on_time_with_it(
    jobs: list[Job], one_more: Job
) -> None:
    promises = Promises()
    for i, (due, work) in enumerate(jobs):
        add(promises, f"r{i}", due, work, NORMAL)
    due, work = one_more
    at, is_late = 0, False
    for each_due, each_work in sorted([*jobs, one_more]):
        at += each_work
        is_late |= each_due >= due and at > each_due
    assert promises.has_time(due, work, 0.0) == (not is_late)
