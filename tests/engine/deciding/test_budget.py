"""Where a request's time went: every part by hand, and none lost or counted twice."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.budget import Account, Budget


def test_each_part_of_a_life_is_told_apart() -> None:
    """Taken in after 1 s; waits 2, computes 3; decodes 4, held 5; loses its pages, waits 6,
    computes again 7, decodes 8.
    """
    account = Account(arrived_at=10.0, now=11.0)
    account.compute(3.0)
    account.decode(16.0)
    account.hold(20.0)
    account.go_on(25.0)
    account.stop(25.0)
    account.compute(7.0)
    account.decode(38.0)
    assert account.until(46.0) == Budget(1.0, 2.0 + 6.0, 3.0 + 7.0, 4.0 + 8.0, 5.0)
    assert account.num_holds == 1


def test_what_still_goes_on_is_counted_until_now() -> None:
    account = Account(0.0, 0.0)
    assert account.until(2.0) == Budget(0.0, 2.0, 0.0, 0.0, 0.0)
    account.decode(2.0)
    account.hold(3.0)
    assert account.until(5.0) == Budget(0.0, 2.0, 0.0, 1.0, 2.0)
    account.stop(6.0)
    assert account.until(7.0) == Budget(0.0, 3.0, 0.0, 1.0, 3.0)


@given(st.lists(st.floats(0.0, 1e5), min_size=5, max_size=5))
def test_whole_milliseconds_add_up(parts: list[float]) -> None:
    budget = Budget(*parts)
    whole = budget.in_ms()
    assert sum(whole) == round(1e3 * sum(parts)) or abs(sum(whole) - 1e3 * sum(parts)) < 1
    assert all(abs(ms - 1e3 * s) <= 1 for ms, s in zip(whole, parts, strict=True))


@given(st.integers(0, 2**32))
def test_no_part_is_negative_and_all_make_the_life(seed: int) -> None:
    """Whatever is said in whatever order, with an instant told a little early or late."""
    rng = random.Random(seed)
    arrived_at = now = 5.0
    account = Account(arrived_at, now + rng.uniform(-1, 1))
    for _ in range(20):
        now += rng.random()
        at = now + rng.uniform(-0.5, 0.5)
        move = rng.choice((account.compute, account.decode, account.hold, account.go_on))
        rng.choice((move, account.stop))(at if move != account.compute else rng.random())
        budget = account.until(now)
        assert all(part >= 0 for part in budget)
        assert budget.total_s == pytest.approx(now - arrived_at)
