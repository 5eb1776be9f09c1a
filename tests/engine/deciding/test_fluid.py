"""The fluid copy of the queue: whoever asks for less than its part never piles up, and no work is
lost or invented. Work is in binary fractions where a test computes by hand.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.fluid import FluidShares
from engine.deciding.request import Share

A, B, C = Share("a"), Share("b"), Share("c", 2.0)
SHARES = {share.name: share for share in (A, B, C)}


def waiting(shares: FluidShares) -> list[float]:
    return [shares.backlog_s(name) for name in "abc"]


def done(shares: FluidShares, work_s: float) -> None:
    """So much work of anybody's is done; here it is told of one who has none in the copy."""
    shares.change(Share("another"), work_s, 0.0)


def test_work_is_done_in_proportion_to_weights_and_what_one_leaves_goes_to_the_others() -> None:
    """Of 4 s, a and b get 1 s each and c 2; of the next 4, a has 1 left and c 2; then 2 s for b."""
    shares = FluidShares()
    for share, work_s in ((A, 2.0), (B, 5.0), (C, 4.0)):
        shares.ask(share, work_s, math.inf)
    done(shares, 4.0)
    assert waiting(shares) == [1.0, 4.0, 2.0]
    done(shares, 4.0)
    assert waiting(shares) == [0.0, 3.0, 0.0]
    done(shares, 2.0)
    assert waiting(shares) == [0.0, 1.0, 0.0]
    done(shares, 2.0)
    assert waiting(shares) == [0.0, 0.0, 0.0]


def test_whose_work_was_done_does_not_matter() -> None:
    """Whoever is served first, as its targets hurry, has the difference still to wait for."""
    shares = FluidShares()
    shares.ask(A, 4.0, math.inf)
    shares.ask(B, 4.0, math.inf)
    shares.change(A, 4.0, 0.0)
    assert waiting(shares)[:2] == [2.0, 2.0]


def test_within_its_part_is_who_had_no_more_than_a_burst_waiting() -> None:
    shares = FluidShares()
    assert shares.ask(A, 3.0, 2.0), "one request at a time may be as large as it likes"
    assert shares.ask(A, 3.0, 2.0), "whoever is alone has no part to exceed"
    assert shares.ask(B, 3.0, 2.0)
    assert not shares.ask(A, 1.0, 2.0)
    done(shares, 8.0)  # b had 3 s, so a's 7 s became 2
    assert shares.ask(A, 1.0, 2.0)


def test_a_new_weight_holds_for_all_that_waits() -> None:
    shares = FluidShares()
    shares.ask(A, 4.0, math.inf)
    shares.ask(B, 4.0, math.inf)
    shares.ask(Share("a", 3.0), 0.0, math.inf)
    assert waiting(shares)[:2] == [4.0, 4.0]
    done(shares, 4.0)
    assert waiting(shares)[:2] == pytest.approx([1.0, 3.0])


STEPS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "done"]), st.floats(0.01, 8.0)), max_size=60
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STEPS)
def test_as_much_waits_in_the_copy_as_was_asked_and_not_done(
    steps: list[tuple[str, float]],
) -> None:
    shares, total_s = FluidShares(), 0.0
    for name, work_s in steps:
        if name == "done":
            work_s = min(work_s, total_s)
            done(shares, work_s)
            total_s -= work_s
        else:
            shares.ask(SHARES[name], work_s, math.inf)
            total_s += work_s
        assert min(waiting(shares)) >= 0
        assert sum(waiting(shares)) == pytest.approx(total_s, abs=1e-6)
        assert shares.total_s == pytest.approx(total_s, abs=1e-6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STEPS, st.sampled_from("abc"), st.floats(0.1, 4.0))
def test_whoever_asks_for_less_than_its_part_is_always_within_it(
    steps: list[tuple[str, float]], name: str, burst_s: float
) -> None:
    """It may ask for a burst at once, and is given its part of what is done to ask for again (a
    token bucket); the others ask for what they like.
    """
    part = SHARES[name].weight / sum(share.weight for share in SHARES.values())
    shares, bucket_s = FluidShares(), burst_s
    for who, work_s in steps:
        if who == "done":
            done(shares, work_s)
            bucket_s = min(burst_s, bucket_s + part * work_s)
        elif who != name:
            shares.ask(SHARES[who], work_s, 0.0)
        else:
            asked_s = min(work_s, bucket_s)
            bucket_s -= asked_s
            assert shares.ask(SHARES[name], asked_s, burst_s + 1e-9)
            assert shares.backlog_s(name) <= burst_s - bucket_s + 1e-6
