"""Output lengths: the estimate by hand."""

from __future__ import annotations

import pytest

from engine.deciding.demand import Demand
from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel
from engine.deciding.request import key_of
from tests.engine.deciding.parts import MILLI, decode, make_sequence


def observed(*lengths: int, application: str = "chat") -> OutputLengths:
    history = OutputLengths()
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
    history = OutputLengths(max_applications=2)
    for name in ("a", "b", "a", "c"):
        for _ in range(5):
            history.observe(name, 10)
    assert [history.estimate(n, 99) for n in "abc"] == [10, 99, 10]


def test_demand_is_prefill_in_chunks_and_the_expected_decodes() -> None:
    """30 tokens in chunks of 20: two iterations of 1 ms, and 30 ms; 10 decodes of 0.1 ms each;
    with 15 computed and 4 tokens out, one iteration with 19 tokens, and 6 decodes."""
    history = OutputLengths()
    for _ in range(5):
        history.observe(key_of("acme", "chat"), 10)
    demand = Demand(LatencyModel(MILLI), history, chunk=20)
    sequence = make_sequence(prompt=30, output=99, application="chat", tenant="acme")
    assert demand.seconds(sequence) == pytest.approx(33e-3)
    decode(sequence, 4)
    sequence.preempt()
    sequence.prefill(15, 0.0)
    assert demand.seconds(sequence) == pytest.approx(20.6e-3)
    decode(sequence, 46)  # longer than anybody expected: one more is always to come
    assert demand.output_left(sequence) == 1


def test_one_tenants_outputs_change_nothing_for_another() -> None:
    """Ten tokens each of 0.1 ms are expected of acme's chat; of others' all that they may ask."""
    history = OutputLengths()
    for _ in range(5):
        history.observe(key_of("acme", "chat"), 10)
    demand = Demand(LatencyModel(MILLI), history, chunk=20)
    other = make_sequence(prompt=30, output=99, application="chat", tenant="other")
    assert demand.output_left(other) == 99
