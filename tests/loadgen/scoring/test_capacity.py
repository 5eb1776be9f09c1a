"""The search against targets whose capacity is known."""

import math

import pytest

from loadgen.scoring.capacity import Capacity, find_capacity, majority


@pytest.mark.parametrize("true", [0.3, 1.0, 7.3, 40.0, 1000.0])
@pytest.mark.parametrize("guess", [1.0, 40.0])
def test_the_search_brackets_the_true_capacity(true: float, guess: float) -> None:
    found = find_capacity(lambda rate: rate <= true, guess, precision=0.02)
    assert found.passed <= true < found.failed
    assert found.failed <= found.passed * 1.02


def test_no_rate_is_tried_twice() -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= 10.0

    find_capacity(passes, 40.0, 0.05)
    assert len(tried) == len(set(tried))
    assert len(tried) <= 8


def test_what_never_fails_has_no_upper_bound() -> None:
    found = find_capacity(lambda rate: True, 1.0, 0.05)
    assert found.passed == 2.0**11
    assert found.failed == math.inf
    assert not found.is_bracketed


def test_what_never_passes_has_no_capacity() -> None:
    found = find_capacity(lambda rate: False, 1.0, 0.05)
    assert found == Capacity(0.0, 2.0**-11)
    assert not found.is_bracketed


def test_a_majority_stops_when_it_is_settled() -> None:
    for verdicts, expected, num_runs in (
        ([True, True], True, 2),
        ([False, True, True], True, 3),
        ([False, False], False, 2),
        ([True, False, False], False, 3),
    ):
        runs = iter(verdicts)
        tried: list[int] = []

        def passes(seed: int, runs: object = runs, tried: list[int] = tried) -> bool:
            tried.append(seed)
            return next(runs)  # type: ignore[call-overload, no-any-return]  # an iterator of bool

        assert majority(passes, 3) is expected
        assert tried == list(range(num_runs))
