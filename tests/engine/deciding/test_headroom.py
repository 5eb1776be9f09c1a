"""The headroom is what the forecast of admission says of more work, no more and no less."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.experience import MOST_MARGIN, MOST_RISK, Experience, Likeness
from engine.deciding.forecast import Forecast, forecast
from engine.deciding.headroom import headroom_s
from engine.deciding.plan import Token
from engine.deciding.request import BEST_EFFORT, Importance, Targets
from engine.deciding.scheduler import Scheduler
from engine.deciding.stats import TierAsked
from tests.engine.deciding.parts import (
    TARGETS,
    deadline,
    interactive,
    make_request,
    make_scheduler,
    make_sequence,
)

ITERATION_S = 0.01
likes = st.builds(
    Likeness.of, st.just(Importance.NORMAL), st.floats(0.05, 20.0), st.floats(0.001, 1.0)
)
outcomes = st.lists(st.tuples(likes, st.booleans()), max_size=80)
targets = st.one_of(
    st.builds(interactive, st.floats(0.01, 100.0), st.floats(0.005, 0.1)),
    st.builds(deadline, st.floats(0.01, 100.0)),
)


@settings(max_examples=150)
@given(outcomes, targets, st.floats(0.0, 20.0), st.integers(1, 200), st.integers(0, 40))
def test_so_much_more_work_is_on_time_and_a_little_more_is_not(
    seen: list[tuple[Likeness, bool]], asked: Targets, ahead_s: float, output: int, later: int
) -> None:
    """Whatever has been learnt of those who were in a hurry, and of how slow it is."""
    demand, experience = make_scheduler().policy.demand, Experience()
    for index, (like, late) in enumerate(seen):
        experience.told(make_sequence(f"r{index}"), like, 1.0)
        experience.learn(f"r{index}", late)
    for index in range(later):
        experience.told(make_sequence(f"s{index}"), Likeness(1, 0.0, 0.0), 1.0)
        experience.began(f"s{index}", 2.0)
    sequence = make_sequence(targets=asked)

    def with_ahead(seconds: float) -> Forecast:
        return forecast(sequence, seconds, demand, experience, ITERATION_S, 0.0, output)

    now = with_ahead(ahead_s)
    room_s = headroom_s(now, asked, experience)
    assert room_s >= 0
    if not now.on_time:
        assert room_s == 0
        return
    for part in (0.0, 0.3, 0.7, 1.0):
        assert with_ahead(ahead_s + part * room_s).on_time
    more = with_ahead(ahead_s + room_s * (1 + 1e-6) + 1e-6 * (now.ttlt_s + now.ttft_s))
    assert more.like is not None
    assert not more.on_time or more.like.margin <= -MOST_MARGIN


def test_who_would_be_turned_away_has_none() -> None:
    expected = Forecast(
        True, 0.1, 0.1, 0.0, 0.0, Likeness.of(1, 10.0, 0.1), refusal="it is too much"
    )
    assert headroom_s(expected, interactive(1.0, 0.1), Experience()) == 0
    assert headroom_s(replace(expected, refusal=""), interactive(1.0, 0.1), Experience()) > 0


def outlook(scheduler: Scheduler, asked: Targets, now: float = 0.0) -> tuple[float, float]:
    tiers = [TierAsked("chat", asked, Importance.NORMAL)]
    found = scheduler.saturation(tiers, now).outlooks["chat"]
    return found.headroom_s, found.late_chance


def test_a_typical_request_of_a_tier_is_one_as_they_have_come() -> None:
    """1 ms for each prompt token, and 10 seconds for the first: about 10 seconds may come before
    it. Each that waits takes its work from that, and when nothing is left a request is late.
    """
    scheduler, asked = make_scheduler("fcfs", chunk_size=1000), interactive(10.0, 0.1)
    tiers = [
        TierAsked("chat", asked, Importance.NORMAL),
        TierAsked("free", BEST_EFFORT, Importance.LOW),
    ]
    assert scheduler.saturation(tiers, 0.0).outlooks == {}, "nobody knows what is typical"
    rooms = []
    for number in range(30):
        request = make_request(f"r{number}", 400, 10, 0.0, asked)
        scheduler.submit(replace(request, tier="chat"), 0.0)
        rooms.append(outlook(scheduler, asked)[0])
    assert rooms[0] == pytest.approx(10.0 - 0.8, abs=0.1)
    assert rooms[20] == pytest.approx(rooms[10] - 10 * 0.4, abs=0.1)
    assert rooms[-1] == 0
    room_s, chance = outlook(scheduler, asked)
    assert (room_s, chance >= MOST_RISK) == (0, True)
    saturation = scheduler.saturation(tiers, 0.0)
    assert set(saturation.outlooks) == {"chat"}
    assert saturation.amounts["free", "waiting"] == (0, 0.0, 0)
    assert outlook(scheduler, deadline(3600.0))[0] == pytest.approx(3600 - 31 * 0.4, rel=0.01)


@pytest.mark.parametrize("policy", ["niyama", "fcfs", "edf-reject"])
def test_asking_changes_nothing(policy: str) -> None:
    """The same decisions follow, whether an operator looks or not."""

    def story(looks: bool) -> list[object]:
        scheduler = make_scheduler(policy)
        now = 0.0
        told: list[object] = []
        for number in range(120):
            request = make_request(f"r{number}", 30, 5, now, TARGETS[number % len(TARGETS)])
            scheduler.submit(replace(request, tier=f"t{number % 3}"), now)
            if looks:
                outlook(scheduler, TARGETS[1], now)
            plan = scheduler.plan(now)
            assert plan is not None
            now += plan.predicted_s
            told.append(
                (plan.work, len(scheduler.commit(plan, [Token(0)] * len(plan.sampling), now)))
            )
        return told

    assert story(looks=True) == story(looks=False)
