"""What calls hold, whoever keeps the book."""

from __future__ import annotations

import pickle

import pytest

from engine.deciding.request import Importance
from engine.linking.streams import DuplicateRequest
from server.admission.ledger import FrontEndCalls, Ledger
from server.errors import Refusal, Refused
from tests.server.admission.test_admission import entry


def ignore(error: Refused) -> None: ...


def test_a_call_has_its_places_and_its_id_until_it_is_over() -> None:
    ledger = Ledger(3, 1000)
    ledger.admit(entry("a", n=2), ignore, now=0.0)
    ledger.admit(entry("b"), ignore, now=0.0)
    for call in ("a", "b"):
        ledger.start(("", call))
    with pytest.raises(Refused, match="3 requests"):
        ledger.admit(entry("c"), ignore, now=0.0)
    with pytest.raises(DuplicateRequest):
        ledger.admit(entry("a"), ignore, now=0.0)
    ledger.leave(("", "a"))
    ledger.admit(entry("a"), ignore, now=0.0)


def test_a_refused_call_enters_nothing() -> None:
    ledger = Ledger(2, 1000)
    ledger.admit(entry("a"), ignore, now=0.0)
    with pytest.raises(DuplicateRequest):
        ledger.admit(entry("a"), ignore, now=0.0)
    with pytest.raises(Refused):
        ledger.admit(entry("b", n=2), ignore, now=0.0)
    ledger.admit(entry("b"), ignore, now=0.0)


def test_whoever_gives_its_place_is_told_why_and_nobody_else() -> None:
    ledger, told = Ledger(2, 1000), list[tuple[str, Refused]]()
    for name, importance in (("low", Importance.LOW), ("normal", Importance.NORMAL)):
        asks = entry(name, importance)
        ledger.admit(asks, lambda error, name=name: told.append((name, error)), now=0.0)  # type: ignore[misc]  # bound now
    ledger.admit(entry("high", Importance.HIGH), ignore, now=0.0)
    ((name, error),) = told
    assert (name, error.reason) == ("low", Refusal.DISPLACED)
    ledger.leave(("", "low"))
    ledger.admit(entry("low", Importance.HIGH), ignore, now=0.0)
    assert [name for name, _ in told] == ["low", "normal"]


def test_nothing_is_kept_of_calls_that_are_over() -> None:
    """Whatever names calls and tenants have had, and however many."""
    ledger = Ledger(2, 1000)
    calls = FrontEndCalls(ledger)
    for number in range(100):
        asks = entry(f"call-{number}", share=f"tenant-{number}", n=2)
        calls.admit(asks, ignore, now=float(number))
        assert len(calls.keys) == 1
        calls.leave(asks.key)
    assert len(calls.keys) == len(ledger.admission) == len(ledger.admission.requests.held) == 0


def test_what_a_front_end_that_is_gone_had_is_free_and_the_rest_is_not() -> None:
    ledger = Ledger(4, 1000)
    gone, other = FrontEndCalls(ledger), FrontEndCalls(ledger)
    gone.admit(entry("a", n=2), ignore, now=0.0)
    gone.start(("", "a"))
    other.admit(entry("b"), ignore, now=0.0)
    with pytest.raises(DuplicateRequest):
        gone.admit(entry("b"), ignore, now=0.0)
    gone.release()
    with pytest.raises(DuplicateRequest):
        other.admit(entry("b"), ignore, now=0.0)
    other.admit(entry("a", n=3), ignore, now=0.0)
    with pytest.raises(Refused, match="4 requests"):
        other.admit(entry("c"), ignore, now=0.0)


def test_a_refusal_crosses_processes_whole() -> None:
    error = Refused(Refusal.WORK_FULL, "too much")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, Refused)
    assert (copy.code, copy.message, copy.detail) == (error.code, error.message, error.detail)
    assert copy.reason is error.reason
    assert str(copy) == str(error)
