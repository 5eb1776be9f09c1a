"""What a front end does with its requests when the engine is lost; the test plays the engines."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from engine.config import EngineConfig
from engine.deciding.plan import Accepted, Finished, Timings, Token
from engine.deciding.request import BEST_EFFORT, Request, Sampling
from engine.deciding.sequence import FinishReason
from engine.driving import null
from engine.linking.errors import DuplicateRequest, EngineLost
from engine.linking.link import EngineLink
from engine.linking.streams import RequestStream, Restarted
from engine.messages import Cancel, Ready, Report, Submit
from engine.processes.frames import Unpacker, pack

WAIT_S = 60.0
LATER = 1e12  # an instant that no test lives to see
INFO = null.build(EngineConfig()).info
NO_TIMINGS = Timings(None, None, None, None, None, None, None, None)
T = TypeVar("T")


async def within(work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, WAIT_S)


def request(request_id: str, arrived_at: float = 1.0) -> Request:
    return Request(request_id, (1, 2), Sampling(), arrived_at, tenant=f"of {request_id}")


def accepted(request_id: str) -> Accepted:
    return Accepted(request_id, True, 0.1, 0.2)


def finished(request_id: str) -> Finished:
    reason = FinishReason.LENGTH
    return Finished(request_id, reason, 2, 0, 1, BEST_EFFORT, False, 0, NO_TIMINGS)


class Noting(EngineLink):
    """Remembers whatever was submitted."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ids: list[str] = []

    def submit(self, requests: Sequence[Request], is_seen_whole: bool = False) -> RequestStream:
        stream = super().submit(requests, is_seen_whole=is_seen_whole)
        self.ids += [each.id for each in requests if each.id not in self.ids]
        return stream


class Service:
    """A front end, and the far end of its connection to an engine."""

    def __init__(self, rerun_s: float = WAIT_S) -> None:
        self.ready = asyncio.Event()
        self.lost = asyncio.Event()
        self.notices: list[str] = []
        self.front_end = Noting(
            lambda ready: self.ready.set(),
            self.lost.set,
            self.notices.append,
            rerun_s,
        )
        self._engine: socket.socket | None = None
        self._commands: list[Any] = []
        self._unpacker = Unpacker()

    @property
    def freed(self) -> list[str]:
        """What the engine has finished or was told to end."""
        return [each for each in self.front_end.ids if each not in self.front_end.in_flight]

    async def connect(self, greeting: bytes = b"") -> None:
        """To an engine that does not serve yet, or says so at once."""
        self._engine, theirs = socket.socketpair()
        self._engine.sendall(greeting)
        self._engine.setblocking(False)
        self._commands, self._unpacker = [], Unpacker()
        await self.front_end.attach(theirs)

    async def serve(self) -> None:
        await self.connect()
        self.ready.clear()
        await self.tell(Ready(INFO))
        await within(self.ready.wait())

    async def lose(self) -> None:
        assert self._engine is not None
        self.lost.clear()
        self._engine.close()
        await within(self.lost.wait())

    async def close(self) -> None:
        """Stops the front end, and ends the connection behind it."""
        await within(self.front_end.stop())
        if self._engine is not None:
            self._engine.close()

    async def tell(self, message: Ready | Report) -> None:
        assert self._engine is not None
        await asyncio.get_running_loop().sock_sendall(self._engine, pack(message))

    async def hear(self) -> Any:
        """The next command."""
        assert self._engine is not None
        while not self._commands:
            data = await within(asyncio.get_running_loop().sock_recv(self._engine, 1 << 16))
            for batch in self._unpacker.feed(data):
                self._commands += batch
        return self._commands.pop(0)

    async def submitted(self, count: int) -> list[Request]:
        """The next so many."""
        commands = [await self.hear() for _ in range(count)]
        assert all(isinstance(command, Submit) for command in commands)
        return [command.request for command in commands]


@asynccontextmanager
async def serving(rerun_s: float = WAIT_S) -> AsyncIterator[Service]:
    service = Service(rerun_s)
    await service.serve()
    try:
        yield service
    finally:
        await service.close()


async def items_of(stream: RequestStream) -> list[tuple[int, Any]]:
    return await within(stream.next())


async def ends_lost(stream: RequestStream, why: str = "^the engine was lost$") -> None:
    async def read() -> None:
        while not stream.is_done:
            await within(stream.next())

    with pytest.raises(EngineLost, match=why):
        await read()


async def test_they_are_run_again_in_the_order_of_their_arrival_and_say_so() -> None:
    """With the instants of their arrival, so that deadlines are judged by those."""
    async with serving() as service:
        streams = [
            service.front_end.submit([request(name, at)])
            for name, at in (("c", 3.0), ("a", 1.0), ("b", 2.0))
        ]
        assert [r.attempt for r in await service.submitted(3)] == [1, 1, 1]
        await service.lose()
        assert len(service.front_end.in_flight) == 3
        assert service.freed == []
        await service.serve()
        late = service.front_end.submit([request("late", LATER)])
        again = await service.submitted(4)
        assert [(r.id, r.arrived_at, r.attempt) for r in again] == [
            ("a", 1.0, 2),
            ("b", 2.0, 2),
            ("c", 3.0, 2),
            ("late", LATER, 1),
        ]
        await service.tell(Report([accepted("b")], [("b", 7)], [finished("b")]))
        assert await items_of(streams[2]) == [(0, Restarted())]
        assert await items_of(streams[2]) == [(0, accepted("b")), (0, Token(7)), (0, finished("b"))]
        assert service.freed == ["b"]
        assert not late.is_done
    assert service.notices == ["3 requests wait for the next engine"]


async def test_who_has_seen_a_token_is_told_of_the_loss() -> None:
    """And so is a call of several completions of which one was seen."""
    async with serving() as service:
        seen = service.front_end.submit([request("s/0"), request("s/1")])
        unseen = service.front_end.submit([request("u/0"), request("u/1")])
        await service.submitted(4)
        await service.tell(Report([accepted("s/0"), accepted("u/0")], [("s/1", 7)]))
        assert (1, Token(7)) in await items_of(seen)
        assert await items_of(unseen) == [(0, accepted("u/0"))]  # which is no token
        await service.lose()
        await ends_lost(seen)
        assert sorted(service.freed) == ["s/0", "s/1"]
        await service.serve()
        assert [r.id for r in await service.submitted(2)] == ["u/0", "u/1"]
        assert await items_of(unseen) == [(0, Restarted()), (1, Restarted())]


async def test_tokens_that_nobody_has_taken_are_void() -> None:
    async with serving() as service:
        stream = service.front_end.submit([request("a")])
        other = service.front_end.submit([request("b")])
        await service.submitted(2)
        await service.tell(Report([accepted("a"), accepted("b")], [("a", 7), ("b", 8)]))
        await items_of(other)  # so that the first one's are here too
        await service.lose()
        await service.serve()
        assert await items_of(stream) == [(0, accepted("a")), (0, Restarted())]


async def test_who_sees_nothing_before_the_end_is_run_again_whatever_came() -> None:
    """What has finished by then is kept."""
    async with serving() as service:
        stream = service.front_end.submit([request("w/0"), request("w/1")], is_seen_whole=True)
        await service.submitted(2)
        await service.tell(Report([], [("w/0", 7), ("w/1", 8)], [finished("w/0")]))
        items = await items_of(stream)
        while (0, finished("w/0")) not in items:
            items += await items_of(stream)
        assert (1, Token(8)) in items
        await service.lose()
        assert await items_of(stream) == [(1, Restarted())]
        await service.serve()
        assert [(r.id, r.attempt) for r in await service.submitted(1)] == [("w/1", 2)]
        await service.tell(Report([], [("w/1", 9)], [finished("w/1")]))
        assert await items_of(stream) == [(1, Token(9)), (1, finished("w/1"))]
        assert stream.is_done
        assert service.freed == ["w/0", "w/1"]


async def test_nothing_is_run_a_third_time() -> None:
    """It may be what ends the engines."""
    async with serving() as service:
        stream = service.front_end.submit([request("a")])
        await service.submitted(1)
        await service.lose()
        await service.serve()
        await service.submitted(1)
        await service.lose()
        await ends_lost(stream)
        assert service.freed == ["a"]
        assert not service.front_end.has("a")


async def test_a_connection_that_ends_before_it_serves_costs_nobody_an_attempt() -> None:
    async with serving() as service:
        service.front_end.submit([request("a")])
        await service.submitted(1)
        await service.lose()
        for _ in range(3):
            await service.connect()
            await service.lose()
        await service.serve()
        assert [(r.id, r.attempt) for r in await service.submitted(1)] == [("a", 2)]
        assert service.notices == ["1 requests wait for the next engine"]


async def test_an_engine_that_is_ready_before_the_connection_is_made_is_sent_them_too() -> None:
    async with serving() as service:
        service.front_end.submit([request("a")])
        await service.submitted(1)
        await service.lose()
        service.ready.clear()
        await service.connect(greeting=pack(Ready(INFO)))
        await within(service.ready.wait())
        assert [(r.id, r.attempt) for r in await service.submitted(1)] == [("a", 2)]


async def test_who_arrives_while_there_is_no_engine_is_told_at_once() -> None:
    """It can go elsewhere. What had arrived and was being read then waits with the others."""
    async with serving() as service:
        await service.lose()
        with pytest.raises(EngineLost):
            service.front_end.submit([request("late", LATER)])
        early = service.front_end.submit([request("early")])
        with pytest.raises(DuplicateRequest):
            service.front_end.submit([request("early")])
        await service.serve()
        assert [(r.id, r.attempt) for r in await service.submitted(1)] == [("early", 1)]
        await service.tell(Report([], [("early", 7)]))
        assert await items_of(early) == [(0, Token(7))]


async def test_who_leaves_while_it_waits_is_freed_and_not_run_again() -> None:
    async with serving() as service:
        left = service.front_end.submit([request("left/0"), request("left/1")])
        service.front_end.submit([request("stays")])
        await service.submitted(3)
        await service.lose()
        left.close(FinishReason.CANCELLED)
        assert service.freed == ["left/0", "left/1"]
        assert not service.front_end.has("left/0")
        await service.serve()
        assert [r.id for r in await service.submitted(1)] == ["stays"]


async def test_what_the_engine_was_told_to_end_is_not_run_again() -> None:
    async with serving() as service:
        stream = service.front_end.submit([request("a")])
        await service.submitted(1)
        stream.close(FinishReason.CANCELLED)
        assert await service.hear() == Cancel("a", FinishReason.CANCELLED)
        await service.lose()
        assert not service.front_end.has("a")
        assert service.freed == ["a"]
        await service.serve()
        service.front_end.submit([request("next")])
        assert [r.id for r in await service.submitted(1)] == ["next"]


async def test_waiting_has_an_end() -> None:
    async with serving(rerun_s=0.2) as service:
        stream = service.front_end.submit([request("a")])
        await service.submitted(1)
        await service.lose()
        await ends_lost(stream, "no other came in time")
        assert service.freed == ["a"]
        with pytest.raises(EngineLost):
            service.front_end.submit([request("early")])
        await service.serve()
        service.front_end.submit([request("a")])
        assert [r.attempt for r in await service.submitted(1)] == [1]


async def test_nobody_waits_where_the_operator_says_so() -> None:
    async with serving(rerun_s=0.0) as service:
        stream = service.front_end.submit([request("a")])
        await service.submitted(1)
        await service.lose()
        await ends_lost(stream)
        assert service.freed == ["a"]


async def test_the_end_of_the_service_waits_for_no_engine() -> None:
    async with serving() as service:
        stream = service.front_end.submit([request("a")])
        await service.submitted(1)
        await service.lose()
        await within(service.front_end.stop())
        await ends_lost(stream, "the server is stopping")
        assert service.freed == ["a"]


async def test_what_a_call_has_failed_with_stays_so_though_the_engine_is_lost_besides() -> None:
    async with serving() as service:
        stream = service.front_end.submit([request("a")])
        stream.abandon(ValueError("its place is another's"), FinishReason.DISPLACED)
        await service.lose()
        with pytest.raises(ValueError, match="its place is another's"):
            stream.take()
