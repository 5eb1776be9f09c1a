"""Output lengths: the estimate by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.history import PRIOR, WEIGHT, OutputLengths
from engine.deciding.request import key_of


def observed(*lengths: int, application: str = "chat") -> OutputLengths:
    history = OutputLengths(2.0)
    for length in lengths:
        history.observe(application, length)
    return history


def test_the_prior_stands_in_until_five_have_been_seen() -> None:
    assert observed(10, 10, 10, 10).estimate("chat", 100_000) == PRIOR
    assert observed(10, 10, 10, 10).mean("chat", 100_000) == PRIOR
    assert observed(10, 10, 10, 10).estimate("chat", 7) == 7
    assert observed(10, 10, 10, 10, 10).estimate("chat", 100_000) == 10


def test_an_application_without_history_is_expected_to_be_like_its_tenants_others() -> None:
    """Two of one and three of another are five: mean 34; neither has five of its own. To another
    tenant they say nothing.
    """
    history = observed(10, 10)
    for _ in range(3):
        history.observe("code", 50)
    assert {history.mean(name, 100_000) for name in ("chat", "code", "new")} == {34.0}
    assert history.known("chat") is None
    assert history.mean(key_of("zen", "chat"), 100_000) == PRIOR


def test_mean_plus_two_deviations_by_hand() -> None:
    """8, 12, 8, 12, 10: mean 10, variance 16 / 5 = 3.2; 10 + 2 * 1.789 = 13.58, rounded up."""
    history = observed(8, 12, 8, 12, 10)
    assert history.mean("chat", 128) == pytest.approx(10.0)
    assert history.estimate("chat", 128) == 14
    assert history.estimate("chat", 11) == 11


def test_a_long_output_by_hand() -> None:
    """Two deviations more than the mean, and no more than is asked for."""
    history = observed(8, 12, 8, 12, 10)
    assert history.long("chat", 99) == pytest.approx(10 + 2 * math.sqrt(3.2))
    assert history.long("chat", 11) == 11


def test_a_short_output_by_hand() -> None:
    """8, 12, 8, 12, 10: 10 - 2 * 1.789 = 6.42. Until five have been seen anything may come, and so
    it may where outputs differ by more than half of their mean.
    """
    assert observed(8, 12, 8, 12, 10).short("chat") == pytest.approx(10 - 2 * math.sqrt(3.2))
    assert observed(8, 12, 8, 12).short("chat") == 1
    assert observed(2, 18, 2, 18, 10).short("chat") == 1
    assert observed(10, 10, 10, 10, 10).short("new") == 10, "it is like its tenant's others"
    assert observed(10, 10, 10, 10, 10).short(key_of("zen", "chat")) == 1


@given(st.lists(st.integers(1, 100_000), min_size=5, max_size=60))
def test_a_short_output_is_two_deviations_below_the_mean(lengths: list[int]) -> None:
    """By the definition of both: a plain average up to 20, then the newest weighs 5 %."""
    weights: list[float] = []
    for num in range(1, len(lengths) + 1):
        newest = max(WEIGHT, 1 / num)
        weights = [(1 - newest) * weight for weight in weights] + [newest]
    mean = math.fsum(w * n for w, n in zip(weights, lengths, strict=True))
    variance = math.fsum(w * (n - mean) ** 2 for w, n in zip(weights, lengths, strict=True))
    history = observed(*lengths)
    short = history.short("chat")
    assert short == pytest.approx(max(1.0, mean - 2 * math.sqrt(variance)), rel=1e-6, abs=1e-3)
    assert 1 <= short <= history.mean("chat", 100_000)


def test_an_application_that_changes_is_followed() -> None:
    """After 20, the newest weighs 5 %: 100 more bring the mean to 200 - 190 * 0.95 ** 100."""
    history = observed(*[10] * 20, *[200] * 100)
    assert history.mean("chat", 1000) == pytest.approx(200 - 190 * 0.95**100)


def test_applications_are_bounded_the_least_recent_goes() -> None:
    history = OutputLengths(2.0, max_applications=2)
    for name in ("a", "b", "a", "c"):
        for _ in range(5):
            history.observe(name, 10)
    assert [history.known(n) for n in "abc"] == [10, None, 10]
