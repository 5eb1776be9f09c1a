"""When those who find no place are to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.request import Importance
from server.admission.places import NOTHING, Use
from server.admission.returns import MOST_S, WINDOW_S, Returns

LINE = ("", Importance.NORMAL)
ONE = Use(1, 100)


def of_pace(per_s: int, seconds: int = 20) -> Returns:
    """A queue that gave back so many requests, of 100 tokens each, in each of so many seconds."""
    returns = Returns()
    for second in range(seconds + 1):
        returns.look(float(second))
        for _ in range(per_s):
            returns.freed(ONE)
    return returns


def test_who_lacks_ten_places_comes_back_when_ten_have_become_free() -> None:
    returns = of_pace(4)  # 84 by now, in 20 s
    delay_s = returns.delay_s(LINE, Use(10, 0), ONE, 1.0, 20.0)
    assert delay_s == pytest.approx(10 / 4.2)
    other = ("", Importance.HIGH)
    assert returns.delay_s(other, Use(0, 840), ONE, 1.0, 20.0) == pytest.approx(2.0)


def test_those_refused_at_one_instant_come_back_as_places_become_free() -> None:
    returns = of_pace(10)
    delays = [returns.delay_s(LINE, Use(1, 0), ONE, 1.0, 20.0) for _ in range(2000)]
    assert delays == sorted(delays)
    seconds = [int(delay) for delay in delays if delay < MOST_S - 1]
    assert max(seconds.count(second) for second in set(seconds)) <= 11
    assert delays[-1] == MOST_S


def test_a_share_has_its_part_of_the_pace_and_a_line_of_its_own() -> None:
    """A flood is told to come back late, and who is refused for the first time is not."""
    returns = of_pace(10)
    flood = [returns.delay_s(("flood", LINE[1]), ONE, ONE, 0.5, 20.0) for _ in range(200)]
    first = returns.delay_s(("a", LINE[1]), ONE, ONE, 0.5, 20.0)
    assert first == flood[0] < 1
    assert flood[100] > 10
    assert returns.delay_s(("b", LINE[1]), ONE, ONE, 0.1, 20.0) == pytest.approx(5 * first)


def test_where_nothing_is_given_back_the_wait_is_as_long_as_that_has_been_so() -> None:
    returns = of_pace(0, 1)
    assert returns.delay_s(LINE, Use(1, 0), ONE, 1.0, 1.0) == pytest.approx(1.0)
    assert of_pace(0, 20).delay_s(LINE, Use(1, 0), ONE, 1.0, 20.0) == pytest.approx(20.0)
    long_ago = of_pace(10, 5)
    delay_s = long_ago.delay_s(LINE, Use(1, 0), ONE, 1.0, 6 + 2 * WINDOW_S)
    assert delay_s == pytest.approx(1.0), "what was freed so long ago says nothing"


@given(
    st.lists(
        st.tuples(
            st.floats(0, 40),  # seconds that pass
            st.builds(Use, st.integers(0, 100), st.integers(0, 10**6)),  # are freed before
            st.builds(Use, st.integers(0, 100), st.integers(0, 10**6)),  # are missing
            st.builds(Use, st.integers(1, 16), st.integers(1, 10**5)),  # the call's own
            st.floats(0.001, 1),
            st.booleans(),
        )
    )
)
def test_nobody_waits_for_longer_than_the_most_and_to_ask_changes_nothing(
    calls: list[tuple[float, Use, Use, Use, float, bool]],
) -> None:
    returns, now = Returns(), 0.0
    for passes, freed, missing, own, part, is_told in calls:
        now += passes
        returns.freed(freed)
        asked = returns.delay_s(LINE, missing, own, part, now, is_told=False)
        told = returns.delay_s(LINE, missing, own, part, now, is_told)
        assert 0 <= asked == told <= MOST_S
    assert Returns().delay_s(LINE, NOTHING, ONE, 1.0, now) == 0
