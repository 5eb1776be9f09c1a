"""What is posted leaves as one frame, whenever that is, and all of it, however little is read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from engine.processes.frames import Unpacker
from engine.processes.wire import Wire, open_wire

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """On the event loop of either kind."""
    return request.param


class Ends:
    """A wire whose other end is read by the test."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.ours = ours
        self.closed = False

    async def open(self) -> Wire:
        return await open_wire(self.ours, lambda message: None, self._close)

    def _close(self) -> None:
        self.closed = True

    def read(self) -> list[Any]:
        """The frames that are there."""
        return list(Unpacker().feed(self._bytes()))

    def _bytes(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return self.theirs.recv(1 << 20)
        return b""


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.theirs.close()
    made.ours.close()


def test_what_is_posted_in_one_turn_leaves_at_its_end(ends: Ends, run: Run) -> None:
    async def scene() -> None:
        wire = await ends.open()
        wire.post("a")
        wire.post("b")
        assert ends.read() == []
        await asyncio.sleep(0)
        assert ends.read() == [["a", "b"]]
        wire.close()
        await wire.closed.wait()

    run(scene())


def test_what_is_flushed_leaves_before_that_and_once(ends: Ends, run: Run) -> None:
    async def scene() -> None:
        wire = await ends.open()
        wire.post("a")
        wire.flush()
        assert ends.read() == [["a"]]
        wire.post("b")
        await asyncio.sleep(0)
        assert ends.read() == [["b"]]
        wire.flush()
        assert ends.read() == []
        wire.close()
        await wire.closed.wait()

    run(scene())


def test_what_the_socket_does_not_take_follows_in_order(ends: Ends, run: Run) -> None:
    async def scene() -> None:
        wire = await ends.open()
        posted = [[number, bytes(100_000)] for number in range(40)]
        for message in posted:
            wire.post(message)
            wire.flush()
        unpacker, received = Unpacker(), []
        loop = asyncio.get_running_loop()
        while len(received) < len(posted):
            data = await loop.sock_recv(ends.theirs, 1 << 16)
            received += [message for batch in unpacker.feed(data) for message in batch]
        assert received == posted
        wire.close()
        await wire.closed.wait()

    run(scene())


def test_nothing_is_sent_to_an_end_that_is_gone(ends: Ends, run: Run) -> None:
    async def scene() -> None:
        wire = await ends.open()
        ends.theirs.close()
        wire.post("a")
        wire.flush()
        await wire.closed.wait()
        assert ends.closed
        wire.post("b")
        wire.flush()

    run(scene())
