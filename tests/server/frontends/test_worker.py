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

from engine.config import EngineConfig
from engine.driving import null
from engine.messages import Ready
from engine.processes.frames import pack
from engine.processes.wire import open_wire
from server.admission.ledger import Displaced, Enter, Leave, Ledger, LedgerLink, Verdict
from server.config import ServerConfig
from server.errors import Refusal, Refused
from server.frontends.control import (
    Attached,
    Detached,
    Drain,
    FromFrontEnd,
    Listening,
    Start,
)
from server.frontends.supervisor import FrontEndProcess
from server.listening.addresses import reserve
from tests.server.admission.parts import entry
from tests.server.conftest import within


class Played:
    """A front end that listens, and what it says."""

    def __init__(self, start: Start, folder: Path) -> None:
        self.said: asyncio.Queue[FromFrontEnd] = asyncio.Queue()
        self.front_end = FrontEndProcess(start, Ledger(1, 1000), str(folder))
        self.following = asyncio.create_task(
            self.front_end.follow(lambda _, message: self.said.put_nowait(message))
        )

    async def hears(self, kind: type[FromFrontEnd]) -> None:
        assert isinstance(await within(self.said.get()), kind)

    @property
    def process(self) -> psutil.Process:
        (child,) = [
            p for p in psutil.Process().children() if "server.frontends.worker" in p.cmdline()
        ]
        return child


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[Played]:
    with reserve("127.0.0.1", 0) as holder:
        config = ServerConfig(frontends=2, port=holder.getsockname()[1])
        played = Played(Start(config, 0), folder)
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


FULL = Refused(Refusal.QUEUE_FULL, "the queue is full")


@pytest.mark.parametrize("refusal", [None, FULL], ids=["entered", "refused"])
async def test_who_did_not_wait_for_the_ledger_s_answer_holds_nothing(
    refusal: Refused | None,
) -> None:
    """A client that leaves in that moment must not cost the queue a place for ever."""
    answered = asyncio.Event()
    said: asyncio.Queue[FromFrontEnd] = asyncio.Queue()

    def settle(verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            ledger.receive(verdict)
        answered.set()

    def hear(messages: list[FromFrontEnd]) -> None:
        for message in messages:
            said.put_nowait(message)

    ours, theirs = socket.socketpair()
    wire = await open_wire(ours, settle, lambda: None)
    ledger = LedgerLink(wire.post)
    supervisor = await open_wire(theirs, hear, lambda: None)
    asks = entry("a", share="x", n=2)
    entering = asyncio.create_task(ledger.enter(asks, lambda error: None))
    assert await within(said.get()) == Enter(1, asks)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    supervisor.post(Verdict(1, refusal))
    await within(answered.wait())
    following = ("x", "the next message")
    ledger.leave(following)
    expected = [Leave(asks.key)] if refusal is None else []
    for message in [*expected, Leave(following)]:
        assert await within(said.get()) == message
    for end in (wire, supervisor):
        end.close()
        await within(end.closed.wait())


async def test_an_answer_to_who_asked_and_left_disturbs_nobody() -> None:
    """An Estimate that was cancelled while it asked ended the front end, and all of its calls."""
    ledger = LedgerLink(lambda message: None)
    left = asyncio.create_task(ledger.refusal(entry("left")))
    stays = asyncio.create_task(ledger.refusal(entry("stays")))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    for number in (1, 2):
        ledger.receive(Verdict(number, FULL))
    assert await within(stays) is FULL


async def test_a_call_is_told_once_that_it_gave_its_place_and_not_after_it_has_started() -> None:
    ledger, told = LedgerLink(lambda message: None), list[Refused]()
    for number, name in enumerate(("waits", "started"), start=1):
        asks = entry(name)
        entering = asyncio.create_task(ledger.enter(asks, told.append))
        await asyncio.sleep(0)
        ledger.receive(Verdict(number, None))
        await within(entering)
        if name == "started":
            ledger.start(asks.key)
        for _ in range(2):
            ledger.receive(Displaced(asks.key, FULL))
    assert told == [FULL]
