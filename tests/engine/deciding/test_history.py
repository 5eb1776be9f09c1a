"""Output lengths: the estimate by hand."""

from __future__ import annotations

import pytest

from engine.deciding.history import PRIOR, OutputLengths
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
