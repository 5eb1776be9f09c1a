"""Several front ends before one loop: who gets what, and what happens when one is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from engine.deciding.plan import Accepted, Finished, Timings
from engine.deciding.prefix_journal import CacheBatch, Dropped
from engine.deciding.questions import Explain, Stats
from engine.deciding.request import BEST_EFFORT, Request, Sampling
from engine.deciding.sequence import FinishReason
from engine.driving.connections import MOST_UNREAD_BYTES, Connections
from engine.messages import Ask, Cancel, Ready, Reply, Report, Submit, Watch
from engine.processes.frames import Unpacker, pack

INFO: Any = "what the engine tells of itself"
NO_TIMINGS = Timings(None, None, None, None, None, None, None, None)


class FrontEnd:
    """The far end of a connection, blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(60)
        self._unpacker = Unpacker()
        self._read: list[Any] = []

    def post(self, *commands: Submit | Cancel | Ask | Watch) -> None:
        self.socket.sendall(pack(list(commands)))

    def read(self) -> Any:
        while not self._read:
            self._read += self._unpacker.feed(self.socket.recv(1 << 16))
        return self._read.pop(0)


class Played:
    """The connections, who started their engine, and their door."""

    def __init__(self, most_unread_bytes: int) -> None:
        first, theirs = socket.socketpair()
        self.door, their_door = socket.socketpair()
        self.first = FrontEnd(first)
        self.sockets = [first, theirs, self.door, their_door]
        self.connections = Connections(theirs, their_door, INFO, most_unread_bytes)

    def let_in(self) -> FrontEnd:
        ours, theirs = socket.socketpair()
        self.sockets.append(ours)
        with theirs:
            socket.send_fds(self.door, [b"\0"], [theirs.fileno()])
        assert self.connections.receive(0.0) == []
        front_end = FrontEnd(ours)
        assert front_end.read() == Ready(INFO)
        return front_end


@pytest.fixture
def most_unread_bytes() -> int:
    return MOST_UNREAD_BYTES


@pytest.fixture
def played(most_unread_bytes: int) -> Iterator[Played]:
    played = Played(most_unread_bytes)
    yield played
    played.connections.close()
    for sock in played.sockets:
        sock.close()


def submit(request_id: str) -> Submit:
    return Submit(Request(request_id, (1, 2), Sampling(), arrived_at=0.0))


def finished(request_id: str) -> Finished:
    reason = FinishReason.LENGTH
    return Finished(request_id, reason, 2, 0, 1, BEST_EFFORT, False, 0, NO_TIMINGS)


def test_each_front_end_is_told_of_its_own_requests_only(played: Played) -> None:
    one, other = played.let_in(), played.let_in()
    one.post(submit("a"), submit("b"))
    assert played.connections.receive(None) == [submit("a"), submit("b")]
    other.post(submit("c"))
    assert played.connections.receive(None) == [submit("c")]
    accepted = [Accepted(name, True, 0.1, 0.2) for name in "abc"]
    played.connections.send(Report(news=list(accepted), sampled=[("a", 1), ("c", 2), ("b", 3)]))
    played.connections.send(Report(finished=[finished("c"), finished("a")], notices=["a line"]))
    assert one.read() == Report(news=accepted[:2], sampled=[("a", 1), ("b", 3)])
    assert one.read() == Report(finished=[finished("a")])
    assert other.read() == Report(news=accepted[2:], sampled=[("c", 2)])
    assert other.read() == Report(finished=[finished("c")])
    assert played.first.read() == Report(notices=["a line"])


def test_answers_go_to_who_asked_under_the_number_that_was_asked(played: Played) -> None:
    one, other = played.let_in(), played.let_in()
    one.post(Ask(7, Stats()))
    (first,) = played.connections.receive(None)
    other.post(Ask(7, Explain("a")))
    (second,) = played.connections.receive(None)
    assert isinstance(first, Ask)
    assert isinstance(second, Ask)
    played.connections.send(
        Report(replies=[Reply(second.question_id, "B"), Reply(first.question_id, "A")])
    )
    assert one.read() == Report(replies=[Reply(7, "A")])
    assert other.read() == Report(replies=[Reply(7, "B")])


def test_only_who_watches_is_told_of_the_cache_and_the_loop_whether_anybody_does(
    played: Played,
) -> None:
    one, other, third = played.let_in(), played.let_in(), played.let_in()
    batch = CacheBatch(5, (Dropped("", b"x" * 16, 0, 1),))
    one.post(Watch(True))
    assert played.connections.receive(None) == [Watch(True)]
    other.post(Watch(True), submit("a"))  # and the loop has been told
    assert played.connections.receive(None) == [submit("a")]
    played.connections.send(Report(sampled=[("a", 1)], cache=batch))
    assert one.read() == Report(cache=batch)
    assert other.read() == Report(sampled=[("a", 1)], cache=batch)
    one.post(Watch(False))
    third.post(submit("b"))
    assert played.connections.receive(None) == [submit("b")]
    played.connections.send(Report(sampled=[("b", 1)], cache=batch))
    assert third.read() == Report(sampled=[("b", 1)])
    other.socket.close()
    left = played.connections.receive(None)
    assert left == [Watch(False), Cancel("a", FinishReason.CANCELLED)]


def test_an_id_in_flight_elsewhere_is_refused_and_cannot_be_cancelled(played: Played) -> None:
    one, other = played.let_in(), played.let_in()
    one.post(submit("a"))
    played.connections.receive(None)
    other.post(submit("a"), Cancel("a", FinishReason.CANCELLED), submit("b"))
    assert played.connections.receive(None) == [submit("b")]
    assert other.read() == Report(refused=["a"])
    played.connections.send(Report(finished=[finished("a")]))
    other.post(submit("a"))
    assert played.connections.receive(None) == [submit("a")]


def test_a_front_end_that_dies_has_its_requests_cancelled(played: Played) -> None:
    one, other = played.let_in(), played.let_in()
    one.post(submit("a"), submit("b"))
    played.connections.receive(None)
    other.post(submit("c"))
    played.connections.receive(None)
    one.socket.close()
    cancelled = [Cancel(name, FinishReason.CANCELLED) for name in "ab"]
    assert played.connections.receive(None) == cancelled
    played.connections.send(Report(sampled=[("a", 1), ("c", 2)], finished=[finished("a")]))
    assert other.read() == Report(sampled=[("c", 2)])


def test_who_leaves_its_refusals_unread_harms_nobody_and_has_its_requests_cancelled(
    played: Played,
) -> None:
    one, other = played.let_in(), played.let_in()
    one.post(submit("a"))
    played.connections.receive(None)
    other.post(submit("a"), submit("b"), submit("a"))
    other.socket.close()
    assert played.connections.receive(None) == [submit("b"), Cancel("b", FinishReason.CANCELLED)]
    one.post(submit("c"))
    assert played.connections.receive(None) == [submit("c")]


@pytest.mark.parametrize("is_read_first", [True, False])
@pytest.mark.parametrize("leaves", [True, False])
def test_an_id_that_is_about_to_be_free_is_waited_for(
    played: Played, leaves: bool, is_read_first: bool
) -> None:
    """The ledger frees the ids of a front end that died, and of a call that was cancelled, at once;
    the `Finished` is up to an iteration away.
    """
    one, other = played.let_in(), played.let_in()
    if not is_read_first:
        one, other = other, one
    cancel = Cancel("a", FinishReason.CANCELLED)
    one.post(submit("a"))
    played.connections.receive(None)
    if leaves:
        one.socket.close()
    else:
        one.post(cancel)
    other.post(submit("a"))
    assert played.connections.receive(None) == [cancel]
    played.connections.send(Report(sampled=[("a", 1)], finished=[finished("a")]))
    assert played.connections.receive(0.0) == [submit("a")]
    played.connections.send(Report(sampled=[("a", 2)]))
    assert other.read() == Report(sampled=[("a", 2)])


def test_who_waits_for_an_id_may_cancel_leave_and_is_the_only_one(played: Played) -> None:
    one, other, third = played.let_in(), played.let_in(), played.let_in()
    cancel_a, cancel_b = (Cancel(name, FinishReason.CANCELLED) for name in "ab")
    one.post(submit("a"), submit("b"))
    played.connections.receive(None)
    one.socket.close()
    assert played.connections.receive(None) == [cancel_a, cancel_b]
    other.post(submit("a"), cancel_a, Ask(1, Stats()))
    assert played.connections.receive(None) == [Ask(1, Stats())]
    third.post(submit("a"), submit("b"), Ask(2, Stats()))
    assert played.connections.receive(None) == [Ask(2, Stats())]
    assert third.read() == Report(refused=["a"])
    third.socket.close()
    other.post(Ask(3, Stats()))
    while Ask(3, Stats()) not in played.connections.receive(None):
        pass
    played.connections.send(Report(finished=[finished("a"), finished("b")]))
    assert played.connections.receive(0.0) == [submit("a"), cancel_a]
    played.connections.send(Report(finished=[finished("a")]))
    assert other.read() == Report(finished=[finished("a")])


@pytest.mark.parametrize("most_unread_bytes", [1 << 20])
def test_a_front_end_that_stops_reading_holds_up_nobody(played: Played) -> None:
    stuck, other = played.let_in(), played.let_in()
    stuck.post(submit("a"))
    played.connections.receive(None)
    other.post(submit("b"))
    played.connections.receive(None)
    report = Report(sampled=[("a", 1)] * 10_000)
    while len(played.connections) == 3:
        played.connections.send(report)
    assert played.connections.receive(None) == [Cancel("a", FinishReason.CANCELLED)]
    played.connections.send(Report(sampled=[("b", 2)]))
    assert other.read() == Report(sampled=[("b", 2)])


def test_what_a_slow_front_end_left_is_sent_when_it_reads_on(played: Played) -> None:
    slow = played.let_in()
    slow.post(submit("a"))
    played.connections.receive(None)
    reports = [Report(sampled=[("a", n)] * 10_000) for n in range(20)]
    for report in reports:
        played.connections.send(report)
    for report in reports:
        played.connections.receive(0.0)
        assert slow.read() == report


def test_a_sign_of_life_reaches_everybody(played: Played) -> None:
    one = played.let_in()
    played.connections.send(Report())
    assert played.first.read() == one.read() == Report()


def test_the_end_of_who_started_the_engine_is_the_end(played: Played) -> None:
    played.let_in()
    played.first.socket.close()
    with pytest.raises(EOFError):
        played.connections.receive(None)
