"""What the calls of one site show, and that nothing is believed which costs its callers nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inferring.calls import CallSite, Coming, End, Ended
from engine.inferring.habit import ATTENTION_S, EVERY, MIN_CALLS, PATIENT, SAFE, Habit, Shown
from engine.inferring.rhythm import Rhythm
from tests.engine.inferring.parts import STREAM, UNARY, ended, endings, habit_of, need_of

BOTH = pytest.mark.parametrize("site", [UNARY, STREAM], ids=["unary", "stream"])
FOREVER = math.inf


@BOTH
def test_at_first_nothing_is_known(site: CallSite) -> None:
    habit = habit_of(site, (ended() for i in range(MIN_CALLS - 1)))
    assert habit.need is None
    habit.observe(ended())
    assert habit.need is not None


def test_a_stream_is_watched_as_long_as_nobody_was_seen_to_wait() -> None:
    calls = [ended(timeout_s=120.0) for i in range(200)]
    assert need_of(STREAM, calls).shown is Shown.WATCHED


def test_callers_that_were_seen_to_wait_can_wait_and_no_longer() -> None:
    calls = [ended(silence_s=25.0 if i % 4 else 0.1) for i in range(64)]
    for site in (STREAM, UNARY):
        need = need_of(site, calls)
        assert (need.shown, need.by_s) == (Shown.PATIENT, 25.0)
    few = [ended(silence_s=25.0 if i < PATIENT - 1 else 0.1) for i in range(64)]
    assert need_of(STREAM, few).shown is Shown.WATCHED
    assert need_of(UNARY, few).by_s < 0.2


def test_they_stay_known_to_wait_when_the_service_is_quick_again() -> None:
    waited = [ended(silence_s=25.0) for i in range(40)]
    quick = [ended() for i in range(400)]
    assert need_of(UNARY, [*waited, *quick]).by_s == 25.0


def test_once_some_leave_nothing_longer_is_tolerated_than_half_of_what_they_did() -> None:
    waited = [ended(silence_s=25.0) for i in range(40)]
    left = [ended(End.LEFT, silence_s=8.0), ended(End.LEFT, silence_s=9.0)]
    assert need_of(UNARY, [*waited, *left]).by_s == SAFE * 8.0
    gone = need_of(STREAM, [*waited, *left])
    assert gone.shown is Shown.WATCHED
    quick = [ended() for i in range(400)]
    assert need_of(UNARY, [*waited, *left, *quick]).by_s <= SAFE * 8.0  # nor forgotten at once


def test_one_who_leaves_of_many_shows_nothing() -> None:
    calls = [ended(silence_s=25.0) for i in range(40)]
    assert need_of(UNARY, [*calls, ended(End.LEFT, silence_s=1.0)]).by_s == 25.0


@BOTH
def test_a_short_deadline_is_when_all_is_to_be_there(site: CallSite) -> None:
    calls = [ended(timeout_s=1.99, output_len=12) for i in range(40)]
    need = need_of(site, calls)
    assert need.shown is Shown.WHOLE
    assert need.by_s == pytest.approx(SAFE * 2, rel=0.02)
    assert need.output_len == 16


def test_many_unary_calls_at_once_are_a_program_s() -> None:
    """Fifty at once, each five seconds; the first of them might be a flood of people."""

    def bursts(site: CallSite, num: int, timeout_s: float) -> Habit:
        rhythm, habit = Rhythm(), Habit(site.is_stream)
        for start in range(num):
            came = [rhythm.arrive(site, start * 5 + i * 1e-3) for i in range(50)]
            for i, coming in enumerate(came):
                habit.observe(ended(timeout_s=timeout_s, silence_s=i / 10, coming=coming))
        return habit

    def by_s(site: CallSite, timeout_s: float) -> float:
        need = bursts(site, 4, timeout_s).need
        assert need is not None
        return need.by_s

    assert by_s(UNARY, 600.0) == 300.0
    assert by_s(UNARY, FOREVER) == FOREVER
    first = bursts(UNARY, 1, 600.0).need
    assert first is not None
    assert first.by_s < 5.0
    watched = bursts(STREAM, 4, 600.0).need
    assert watched is not None
    assert watched.shown is Shown.WATCHED


def test_unary_calls_one_after_the_other_are_a_program_s_and_somebody_may_wait_for_it() -> None:
    def row(timeout_s: float) -> list[Ended]:
        return [ended(timeout_s=timeout_s, coming=Coming(False, i > 0, 2.0)) for i in range(100)]

    assert need_of(UNARY, row(600.0)).by_s == ATTENTION_S
    assert need_of(UNARY, row(8.0)).by_s == 4.0
    assert need_of(STREAM, row(600.0)).shown is Shown.WATCHED


def poisson(rate: float, num: int, lived_s: float, seed: int) -> Iterator[Ended]:
    """Calls of many people, as a server sees them."""
    rng, rhythm = random.Random(seed), Rhythm()
    at, events = 0.0, []
    for _ in range(num):
        at += rng.expovariate(rate)
        events += [(at, 0, 0.0), (at + rng.expovariate(1 / lived_s), 1, at)]
    comings: dict[float, Coming] = {}
    for now, kind, arrived_at in sorted(events):
        if kind:
            rhythm.served(UNARY, now)
            yield ended(timeout_s=60.0, silence_s=now - arrived_at, coming=comings.pop(arrived_at))
        else:
            comings[now] = rhythm.arrive(UNARY, now)


@pytest.mark.parametrize("rate", [0.05, 0.5, 2.0, 10.0, 20.0, 40.0, 200.0])
def test_people_are_not_taken_for_a_program_however_many(rate: float) -> None:
    """At no time, from the first call on: what chance brings together proves nothing."""
    for seed in range(3):
        habit = habit_of(UNARY, ())
        for call in poisson(rate, 1200, 0.4, seed):
            habit.observe(call)
            assert habit.need is None or "callers have waited" in habit.need.reason


@settings(max_examples=60)
@given(st.lists(endings, min_size=MIN_CALLS, max_size=150), st.booleans())
def test_a_need_follows_from_the_calls_and_is_no_longer_than_anybody_waits(
    calls: list[Ended], is_stream: bool
) -> None:
    site = STREAM if is_stream else UNARY
    habit, again = habit_of(site, calls), habit_of(site, calls)
    assert habit.need == again.need
    if habit.need is None or habit.need.shown is Shown.WATCHED:
        return
    assert habit.need.by_s <= SAFE * max(call.timeout_s for call in calls)
    assert len(habit.need.reason) < 200
    assert habit.need.reason.isascii()


@settings(max_examples=60)
@given(st.lists(endings, max_size=100), st.floats(1.0, 100.0))
def test_whoever_leaves_in_time_is_heeded_whatever_came_before(
    calls: list[Ended], left_s: float
) -> None:
    """No history, however it was made, outlives those that it harms."""
    harmed = [ended(End.LEFT, silence_s=left_s) for i in range(2 * EVERY)]
    habit = habit_of(UNARY, [*calls, *harmed, *harmed])
    if habit.need is not None:
        limit_s = min(call.timeout_s for call in calls)
        assert habit.need.by_s <= max(SAFE * left_s, SAFE * limit_s) * 1.001
