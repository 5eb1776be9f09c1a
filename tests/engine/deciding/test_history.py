"""Output lengths: the estimate by hand."""

from __future__ import annotations

import pytest

from engine.deciding.history import OutputLengths


def observed(*lengths: int, application: str = "chat") -> OutputLengths:
    history = OutputLengths(2.0)
    for length in lengths:
        history.observe(application, length)
    return history


def test_max_tokens_stands_in_until_five_have_been_seen() -> None:
    assert observed(10, 10, 10, 10).estimate("chat", 128) == 128
    assert observed(10, 10, 10, 10, 10).estimate("chat", 128) == 10


def test_mean_plus_two_deviations_by_hand() -> None:
    """8, 12, 8, 12, 10: mean 10, variance 16 / 5 = 3.2; 10 + 2 * 1.789 = 13.58, rounded up."""
    history = observed(8, 12, 8, 12, 10)
    assert history.mean("chat", 128) == pytest.approx(10.0)
    assert history.estimate("chat", 128) == 14
    assert history.estimate("chat", 11) == 11
    assert history.estimate("code", 128) == 128


def test_an_application_that_changes_is_followed() -> None:
    """After 20, the newest weighs 5 %: 100 more bring the mean to 200 - 190 * 0.95 ** 100."""
    history = observed(*[10] * 20, *[200] * 100)
    assert history.mean("chat", 1000) == pytest.approx(200 - 190 * 0.95**100)


def test_applications_are_bounded_the_least_recent_goes() -> None:
    history = OutputLengths(2.0, max_applications=2)
    for name in ("a", "b", "a", "c"):
        for _ in range(5):
            history.observe(name, 10)
    assert [history.estimate(n, 99) for n in "abc"] == [10, 99, 10]
