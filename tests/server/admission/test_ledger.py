"""What calls hold, whoever keeps the book."""

from __future__ import annotations

import pickle

import pytest

from engine.deciding.request import Importance
from engine.linking.errors import DuplicateRequest
from server.admission.ledger import (
    Enter,
    FromLedger,
    FrontEndCalls,
    Leave,
    Ledger,
    Started,
    linked,
)
from server.admission.places import Entry
from server.errors import Refusal, Refused
from tests.server.admission.parts import entry


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
    assert (name, error.refusal) == ("low", Refusal.DISPLACED)
    ledger.leave(("", "low"))
    ledger.admit(entry("low", Importance.HIGH), ignore, now=0.0)
    assert [name for name, _ in told] == ["low", "normal"]


class Asking:
    """One front end's calls in a ledger, and what it is told of them."""

    def __init__(self, ledger: Ledger) -> None:
        self.now = 0.0
        self.told: list[FromLedger] = []
        self.calls = FrontEndCalls(ledger, self.told.append, lambda: self.now)

    def enter(self, asks: Entry) -> None:
        """Raises what the answer says."""
        self.calls.receive(Enter(7, asks))
        number, error = self.told.pop()
        assert number == 7
        if error is not None:
            raise error


def test_nothing_is_kept_of_calls_that_are_over() -> None:
    """Whatever names calls and tenants have had, and however many."""
    ledger = Ledger(2, 1000)
    front_end = Asking(ledger)
    for number in range(100):
        asks = entry(f"call-{number}", share=f"tenant-{number}", n=2)
        front_end.now = float(number)
        front_end.enter(asks)
        assert len(front_end.calls.entries) == 1
        front_end.calls.receive(Leave(asks.key))
    entries = front_end.calls.entries
    assert len(entries) == len(ledger.admission) == len(ledger.admission.requests.held) == 0


def test_what_a_front_end_that_is_gone_had_is_free_and_the_rest_is_not() -> None:
    ledger = Ledger(4, 1000)
    gone, other = Asking(ledger), Asking(ledger)
    gone.enter(entry("a", n=2))
    gone.calls.receive(Started(("", "a")))
    other.enter(entry("b"))
    with pytest.raises(DuplicateRequest):
        gone.enter(entry("b"))
    assert gone.calls.release() == [entry("a", n=2)]
    with pytest.raises(DuplicateRequest):
        other.enter(entry("b"))
    other.enter(entry("a", n=3))
    with pytest.raises(Refused, match="4 requests"):
        other.enter(entry("c"))


async def test_a_ledger_of_the_same_process_answers_at_once() -> None:
    """A front end that is alone waits for nothing: its handlers go on in the same turn."""
    ledger, told = Ledger(1, 1000), list[Refused]()
    link = linked(ledger)
    low, high = entry("low", Importance.LOW), entry("high", Importance.HIGH)
    for asks, displace in ((low, told.append), (high, ignore)):
        entering = link.enter(asks, displace)
        with pytest.raises(StopIteration):
            entering.send(None)
    assert [error.refusal for error in told] == [Refusal.DISPLACED]
    for asks in (low, high):
        link.leave(asks.key)
    assert len(ledger.admission) == 0


def test_a_refusal_crosses_processes_whole() -> None:
    error = Refused(Refusal.WORK_FULL, "too much")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, Refused)
    assert vars(copy) == vars(error)
    assert copy.refusal is error.refusal
    assert str(copy) == str(error)
