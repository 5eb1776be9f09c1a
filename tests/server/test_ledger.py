"""What calls hold, whoever keeps the book."""

from __future__ import annotations

import pickle

import pytest

from engine.driving.streams import DuplicateRequest
from server.errors import CallError, queue_full
from server.ledger import Ledger, Share


def test_room_is_made_by_requests_that_end_and_ids_by_calls_that_do() -> None:
    ledger = Ledger(max_requests=3)
    ledger.admit("a", "x", 2, now=0.0)
    ledger.admit("b", "x", 1, now=0.0)
    with pytest.raises(CallError, match="3 requests"):
        ledger.admit("c", "x", 1, now=0.0)
    ledger.free("x")
    with pytest.raises(DuplicateRequest):
        ledger.admit("a", "x", 1, now=0.0)
    ledger.leave("a")
    ledger.admit("a", "x", 1, now=0.0)


def test_a_refused_call_enters_nothing() -> None:
    ledger = Ledger(max_requests=2)
    ledger.admit("a", "x", 1, now=0.0)
    with pytest.raises(DuplicateRequest):
        ledger.admit("a", "x", 1, now=0.0)
    with pytest.raises(CallError):
        ledger.admit("b", "x", 2, now=0.0)
    ledger.admit("b", "x", 1, now=0.0)


def test_nothing_is_kept_of_what_a_front_end_has_freed() -> None:
    """Whatever names calls and tenants have had, and however many."""
    share = Share(Ledger(max_requests=2))
    for number in range(100):
        share.admit(f"call-{number}", f"tenant-{number}", 2, now=0.0)
        share.free(f"tenant-{number}")
        assert len(share.held) == 1
        share.free(f"tenant-{number}")
        share.leave(f"call-{number}")
    assert len(share.held) == len(share.call_ids) == 0


def test_what_a_front_end_that_is_gone_had_is_free_and_the_rest_is_not() -> None:
    ledger = Ledger(max_requests=4)
    gone, other = Share(ledger), Share(ledger)
    gone.admit("a", "x", 2, now=0.0)
    gone.free("x")
    other.admit("b", "x", 1, now=0.0)
    with pytest.raises(DuplicateRequest):
        gone.admit("b", "x", 1, now=0.0)
    gone.release()
    with pytest.raises(DuplicateRequest):
        other.admit("b", "x", 1, now=0.0)
    other.admit("a", "x", 3, now=0.0)
    with pytest.raises(CallError, match="4 requests"):
        other.admit("c", "x", 1, now=0.0)


def test_a_refusal_crosses_processes_whole() -> None:
    error = queue_full(5)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, CallError)
    assert (copy.code, copy.message, copy.detail) == (error.code, error.message, error.detail)
    assert str(copy) == str(error)
