"""Budgets of one iteration, worked out by hand. TBT is 50 ms unless said otherwise."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.pace import (
    Budget,
    PaceConfig,
    deadline_budget,
    interactive_budget,
    iteration_budget,
    most_urgent,
    spare_slack_s,
    wished_s,
)
from engine.deciding.request import BEST_EFFORT, Targets
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams
from tests.engine.deciding.parts import (
    Driver,
    deadline,
    interactive,
    make_request,
    make_scheduler,
    make_sequence,
    make_stream,
)

TBT = 0.05
CONFIG = PaceConfig(max_gap=2.0, reserve=2.0, catch_up=0.9)


def budget(
    decodes: list[Sequence],
    floor_s: float,
    now: float,
    config: PaceConfig = CONFIG,
    most_gap: float = math.inf,
    least_s: float = math.inf,
) -> Budget:
    urgent = most_urgent(Streams(decodes), now)
    return iteration_budget(config, urgent, floor_s, now, most_gap, least_s)


@pytest.mark.parametrize(
    ("slack", "since_last", "expected"),
    [
        (1.0, 0.0, 0.1),  # 0.9 s to spare, but a gap of at most 2 TBT
        (1.0, 0.06, 0.04),  # of which 60 ms have passed already
        (0.16, 0.0, 0.06),  # all but the reserve of 0.1 s
        (0.12, 0.0, 0.045),  # only 20 ms above the reserve: build it up, at 0.9 of the pace
        (0.10, 0.0, 0.045),
        (0.03, 0.0, 0.03),  # on time before anything else
    ],
)
def test_interactive_budget_by_hand(slack: float, since_last: float, expected: float) -> None:
    now = 7.0
    actual = interactive_budget(CONFIG, TBT, CONFIG.max_gap, now + slack, now - since_last, now)
    assert actual == pytest.approx(expected)


def test_the_gap_of_a_stream_whose_token_is_in_flight_begins_with_the_iteration() -> None:
    """Planned ahead, `now` is when the iteration before ends and that token comes: the gap of at
    most 2 TBT counts from there, not from the token before it.
    """
    now = 7.0
    sequence = make_stream(interactive(10.0, TBT), now + 1.0, now - 0.06)
    assert budget([sequence], 0.0, now).seconds == pytest.approx(0.04)
    sequence.expect_token(now)
    assert budget([sequence], 0.0, now).seconds == pytest.approx(0.1)
    first = make_sequence(targets=interactive(10.0, TBT), at=now - 9.0)
    first.expect_token(now)  # its first token
    assert budget([first], 0.0, now).seconds == pytest.approx(0.1)


def test_without_a_gap_bound_all_slack_but_the_reserve_may_be_spent() -> None:
    assert interactive_budget(PaceConfig(), TBT, math.inf, 1.0, 0.0, 0.0) == pytest.approx(0.9)
    assert interactive_budget(PaceConfig(reserve=0), TBT, math.inf, 1.0, 0.0, 0.0) == 1.0


def test_a_longest_gap_of_its_own_takes_the_place_of_the_usual_one() -> None:
    """Of 2 TBT: whether it is shorter or longer, and not above what holds for all at the moment.
    Where decodes alone take longer than the TBT, it is in units of what they take.
    """
    for own_gap, most_gap, expected in (
        (None, math.inf, 2.0),
        (1.0, math.inf, 1.0),
        (3.0, math.inf, 3.0),
        (3.0, 1.0, 1.0),
        (None, 1.0, 1.0),
    ):
        stream = make_stream(Targets(1.0, TBT, None, own_gap), due_at=9.0)
        found = budget([stream], 0.0, 0.0, most_gap=most_gap)
        assert found == Budget(pytest.approx(expected * TBT), TBT, expected)
    lost = make_stream(Targets(1.0, TBT, None, 3.0), due_at=9.0)
    assert budget([lost], 0.06, 0.0).seconds == pytest.approx(0.18)


def test_a_stream_that_is_late_has_gaps_twice_as_long_and_shortens_nobody_elses() -> None:
    """100 ms for those on time, 200 ms for whose token was due at 7 s, of which 60 ms have passed
    since its last; and what the envelope of the others says.
    """
    late = make_stream(interactive(1.0, TBT), due_at=7.0, last_token_at=6.94)
    easy = make_stream(interactive(1.0, TBT), due_at=8.0, last_token_at=7.0)
    tight = make_stream(interactive(1.0, TBT), due_at=7.16, last_token_at=7.0)
    for streams, expected in (
        ([late], 0.14),
        ([late, easy], 0.1),
        ([late, tight], 0.06),
        ([easy], 0.1),
    ):
        assert budget(streams, 0.0, 7.0).seconds == pytest.approx(expected)


def test_slack_to_spare_is_that_of_the_tightest_stream_that_is_not_late() -> None:
    """Beyond a reserve of 100 ms."""
    late = make_stream(interactive(1.0, TBT), due_at=7.0)
    easy, tight = (make_stream(interactive(1.0, TBT), due_at=due) for due in (8.0, 7.3))
    for streams, expected in (([], math.inf), ([late], math.inf), ([late, easy, tight], 0.2)):
        assert spare_slack_s(CONFIG, Streams(streams), 7.0) == pytest.approx(expected)


def test_a_deadline_is_shared_among_the_tokens_left() -> None:
    assert deadline_budget(due=12.0, output_left=20, now=2.0) == 0.5


def test_the_tightest_stream_sets_the_budget() -> None:
    """100 ms by the gap of one stream, 60 ms by the slack of another; a TTLT promised no pace."""
    easy = make_stream(interactive(1.0, TBT), due_at=1.0)
    tight = make_stream(interactive(1.0, TBT), due_at=0.16)
    batch = make_stream(deadline(1.0), due_at=1.0)
    free = make_stream(BEST_EFFORT, due_at=math.inf)
    assert budget([], 0.0, 0.0).seconds == math.inf
    assert budget([free, batch], 0.01, 0.0).seconds == math.inf
    assert budget([easy, free, batch], 0.01, 0.0).seconds == 0.1
    assert budget([easy, tight], 0.01, 0.0).seconds == pytest.approx(0.06)


@given(
    st.lists(
        st.tuples(
            st.sampled_from((0.02, 0.05, 0.2)),  # TBT
            st.floats(-0.1, 1.0),  # when the next token is due
            st.floats(-0.1, 0.0),  # when the last one came
            st.booleans(),  # whether the next one is in flight
            st.sampled_from((None, 1.0, 1.5, math.inf)),  # the longest gap of its tier
        ),
        max_size=8,
    ),
    st.sampled_from((0.0, 0.03)),
    st.sampled_from((1.0, 2.0, math.inf)),
    st.sampled_from((1.0, math.inf)),
)
def test_streams_together_are_bound_as_the_tightest_of_them_is_alone(
    streams: list[tuple[float, float, float, bool, float | None]],
    floor_s: float,
    max_gap: float,
    most_gap: float,
) -> None:
    config = PaceConfig(max_gap=max_gap)
    decodes = []
    for tbt_s, due_at, last_at, in_flight, own_gap in streams:
        decodes.append(make_stream(Targets(1.0, tbt_s, None, own_gap), due_at, last_at))
        if in_flight:
            decodes[-1].expect_token(0.0)
    alone = [budget([decode], floor_s, 0.0, config, most_gap) for decode in decodes]
    together = budget(decodes, floor_s, 0.0, config, most_gap)
    assert together in (alone or [Budget(math.inf, None)])
    assert together.seconds == min((b.seconds for b in alone), default=math.inf)


def wish(decodes: list[Sequence], limit_s: float = math.inf) -> float:
    return wished_s(Streams(decodes), lambda stream: 25, lambda group: 25, limit_s, 0.0)


def test_the_shortest_wish_is_of_a_stream_that_is_not_late() -> None:
    """40 ms a token for 1 s and 25 tokens; whoever has a pace, no deadline or none left wishes for
    nothing.
    """
    batch = make_stream(deadline(1.0), due_at=1.0)
    easy = make_stream(deadline(9.0), due_at=9.0)
    late = make_stream(deadline(1.0), due_at=0.0)
    others = [make_stream(t, due_at=1.0) for t in (interactive(1.0, TBT), BEST_EFFORT)]
    assert wish([late, *others]) == math.inf
    assert wish([late, easy, batch, *others]) == wish([easy, batch]) == 0.04
    assert wish([easy, batch], limit_s=0.03) == 0.03


def test_a_pace_that_cannot_be_had_does_not_bind() -> None:
    """Decodes alone take 60 ms: a TBT of 50 ms is lost; what stays is that no gap exceeds twice the
    possible. At a TBT of 70 ms, 0.9 * 70 is possible.
    """
    lost = make_stream(interactive(1.0, TBT), due_at=0.02)
    possible = make_stream(interactive(1.0, 0.07), due_at=0.5)
    assert budget([lost], 0.06, 0.0).seconds == pytest.approx(0.12)
    assert budget([possible], 0.06, 0.0).seconds == pytest.approx(0.14)


def test_a_pace_that_is_lost_to_the_number_of_streams_is_kept_for_those_that_are_not_late() -> None:
    """Decodes take 60 ms for a TBT of 50, and one alone would take 20. Who is due in 0.2 s leaves
    all but its reserve of 0.1 s; who is due at once leaves nothing for a prefill, until it is late.
    """
    soon, later, late = (make_stream(interactive(1.0, TBT), due_at=at) for at in (0.05, 0.2, -1.0))
    for streams, expected in (([later, late], 0.1), ([later, soon], -0.05), ([late], 0.12)):
        assert budget(streams, 0.06, 0.0, least_s=0.02).seconds == pytest.approx(expected)
        assert budget(streams, 0.06, 0.0, least_s=0.05).seconds == pytest.approx(0.12), "lost"


@pytest.mark.parametrize("targets", [interactive(9.0, 1.0), deadline(9.0), BEST_EFFORT])
@pytest.mark.parametrize("impossible", [interactive(0.1, 1e-3), interactive(1e-3, 1.0)])
def test_an_impossible_target_starves_no_prefill(targets: Targets, impossible: Targets) -> None:
    """A decode alone takes 1.1 ms, the stream wants a token each 1 ms, or its first within that:
    whoever waits, waits only for a share of the engine, not for the end of the stream.
    """
    driver = Driver(make_scheduler())
    driver.submit(make_request("greedy", prompt=5, output=5000, targets=impossible))
    driver.step()
    driver.submit(make_request("waits", prompt=100, output=2, targets=targets, at=driver.now))
    while driver.stories["waits"].finished is None:
        assert driver.stories["greedy"].finished is None, "it waited for the end of the stream"
        driver.step()


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_gap", 0.9), ("max_gap", math.nan), ("reserve", -0.1), ("catch_up", 0.0)],
)
def test_nonsense_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        PaceConfig(**{field: value})
