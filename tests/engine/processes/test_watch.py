"""Alive, stopped, or long at its work: from what a process shows and when it was looked at."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.processes.pulse import BEATS_PER_PATIENCE, NO_TURN, Pulse, Side, shared_page
from engine.processes.watch import LOADING_S, Condition, Stillness, Watch

HEARTBEAT_S, PATIENCE_S = 4.0, 60.0
PERIOD_S = HEARTBEAT_S / BEATS_PER_PATIENCE


class Looks:
    """A watch that is told, period after period."""

    def __init__(self) -> None:
        self.watch = Watch(HEARTBEAT_S, PATIENCE_S)
        self.now = 1000.0
        self.beats = 1

    def look(
        self,
        after_s: float = PERIOD_S,
        turn: int = NO_TURN,
        beats: bool = False,
        loads: bool = False,
    ) -> Condition:
        self.now += after_s
        self.beats += beats
        return self.watch.look(self.beats, turn, loads, self.now)


def test_who_does_not_beat_is_silent_and_then_stopped() -> None:
    looks = Looks()
    looks.look(beats=True)
    seen = [looks.look() for _ in range(8)]
    assert seen == [Condition.WELL] * 3 + [Condition.SILENT] * 4 + [Condition.STOPPED]


def test_who_beats_again_before_it_is_given_up_is_taken_back() -> None:
    looks = Looks()
    assert [looks.look() for _ in range(8)][-1] is Condition.SILENT
    assert looks.look(beats=True) is Condition.WELL
    assert [looks.look() for _ in range(4)] == [Condition.WELL] * 3 + [Condition.SILENT]


def test_a_long_iteration_is_no_silence_and_has_a_patience_of_its_own() -> None:
    looks = Looks()
    looks.look(turn=7, beats=True)
    seen = [looks.look(turn=7, beats=True) for _ in range(60)]
    assert seen == [Condition.WELL] * 59 + [Condition.STUCK]
    assert looks.look(turn=8, beats=True) is Condition.WELL


def test_who_waits_for_work_may_do_so_for_ever() -> None:
    looks = Looks()
    assert {looks.look(beats=True) for _ in range(500)} == {Condition.WELL}


def test_loading_holds_the_lock_for_long() -> None:
    """And what was not heard while it loaded does not count afterwards."""
    looks = Looks()
    seen = [looks.look(loads=True) for _ in range(int(LOADING_S) + 1)]
    assert seen == [Condition.WELL] * int(LOADING_S) + [Condition.STOPPED]
    looks = Looks()
    assert {looks.look(loads=True) for _ in range(50)} == {Condition.WELL}
    assert [looks.look() for _ in range(5)] == [Condition.WELL] * 4 + [Condition.SILENT]


@pytest.mark.parametrize("asleep_s", [10.0, 1e6])
def test_a_watcher_that_slept_does_not_take_that_for_silence(asleep_s: float) -> None:
    """The machine was suspended, or the watcher alone was stopped."""
    looks = Looks()
    looks.look(turn=1, beats=True)
    assert looks.look(after_s=asleep_s, turn=1) is Condition.WELL
    assert looks.look(turn=1, beats=True) is Condition.WELL
    assert looks.look(after_s=asleep_s, turn=1, beats=True) is Condition.WELL


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.booleans()), min_size=2, max_size=60),
    st.floats(0.01, 10),
)
def test_stillness_is_of_the_time_awake_since_the_last_change(
    looks: list[tuple[float, bool]], period_s: float
) -> None:
    stillness, now, value, expected = Stillness(period_s), 0.0, 0, 0.0
    stillness.look(value, now)
    for after_s, changes in looks:
        now += after_s
        value += changes
        expected = 0.0 if changes else expected + min(after_s, 2 * period_s)
        assert stillness.look(value, now) == pytest.approx(expected, abs=1e-6)


def test_both_sides_see_each_other_s_beats_and_the_child_s_turn() -> None:
    page = shared_page()
    parent, child = Pulse(page, Side.PARENT), Pulse(page, Side.CHILD)
    os.close(page)
    seen = []
    for _ in range(3):
        parent.beat()
        child.beat()
        child.beat()
        seen.append((parent.others_beats, child.others_beats))
    assert seen == [(2, 1), (4, 2), (6, 3)]
    assert parent.turn == NO_TURN
    turns = []
    for _ in range(3):
        child.work(True)
        turns.append(parent.turn)
    assert all(a < b for a, b in pairwise([NO_TURN, *turns]))
    child.work(False)
    assert parent.turn == NO_TURN
    for side in (parent, child):
        side.close()
