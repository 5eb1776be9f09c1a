"""A front-end process whose supervisor is the test."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from engine.driving import null
from engine.driving.config import EngineConfig
from engine.driving.messages import Ready, pack
from engine.driving.wire import open_wire
from server.config import ServerConfig
from server.control import (
    Attached,
    Detached,
    Drain,
    Enter,
    Free,
    FromFrontEnd,
    Leave,
    Listening,
    Start,
    Verdict,
)
from server.errors import CallError, queue_full
from server.frontend import reserve
from server.ledger import Ledger, Share
from server.supervisor import FrontEndProcess
from server.worker import SharedLedger
from tests.server.conftest import within


class Played:
    """A front end that listens, and what it says."""

    def __init__(self, start: Start, folder: Path) -> None:
        self.said: asyncio.Queue[FromFrontEnd] = asyncio.Queue()
        self.front_end = FrontEndProcess(start, Share(Ledger(1)), str(folder))
        self.following = asyncio.create_task(
            self.front_end.follow(lambda _, message: self.said.put_nowait(message))
        )

    async def hears(self, kind: type[FromFrontEnd]) -> None:
        assert isinstance(await within(self.said.get()), kind)

    @property
    def process(self) -> psutil.Process:
        (child,) = [p for p in psutil.Process().children() if "server.worker" in p.cmdline()]
        return child


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[Played]:
    with reserve("127.0.0.1", 0) as holder:
        played = Played(Start(ServerConfig(frontends=2), holder.getsockname()[1], 0), folder)
        try:
            await played.hears(Listening)
            yield played
            played.front_end.post(Drain())
            await within(played.following)
        finally:
            played.front_end.kill()
            await within(played.following)


async def test_a_connection_for_which_there_is_no_room_is_asked_for_again(tmp_path: Path) -> None:
    """It arrives as a file descriptor, and a front end with many clients may have none left."""
    info = null.build(EngineConfig()).info
    async with listening(tmp_path) as played:
        most = played.process.rlimit(resource.RLIMIT_NOFILE)
        played.process.rlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        lost, theirs = socket.socketpair()
        with lost:
            played.front_end.attach(theirs)
            await played.hears(Detached)
        played.process.rlimit(resource.RLIMIT_NOFILE, most)
        ours, theirs = socket.socketpair()
        with ours:
            played.front_end.attach(theirs)
            ours.sendall(pack(Ready(info)))
            await played.hears(Attached)


@pytest.mark.parametrize("refusal", [None, queue_full(1)], ids=["entered", "refused"])
async def test_who_did_not_wait_for_the_ledger_s_answer_holds_nothing(
    refusal: CallError | None,
) -> None:
    """A client that leaves in that moment must not cost the queue a place for ever."""
    ledger, answered = SharedLedger(), asyncio.Event()
    said: asyncio.Queue[FromFrontEnd] = asyncio.Queue()

    def settle(verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            ledger.settle(*verdict)
        answered.set()

    def hear(messages: list[FromFrontEnd]) -> None:
        for message in messages:
            said.put_nowait(message)

    ours, theirs = socket.socketpair()
    ledger.wire = await open_wire(ours, settle, lambda: None)
    supervisor = await open_wire(theirs, hear, lambda: None)
    entering = asyncio.create_task(ledger.enter("a", "x", 2))
    assert await within(said.get()) == Enter(1, "a", "x", 2)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    supervisor.post(Verdict(1, refusal))
    await within(answered.wait())
    ledger.leave("the next message")
    expected = [Free("x", 2), Leave("a")] if refusal is None else []
    for message in [*expected, Leave("the next message")]:
        assert await within(said.get()) == message
    for wire in (ledger.wire, supervisor):
        wire.close()
        await within(wire.closed.wait())
