"""Engine processes that stop, and what they are told apart from."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from engine.config import EngineConfig
from engine.deciding.questions import Stats
from engine.linking import keeper as owner
from engine.linking import process as processes
from engine.linking.streams import EngineLost, EngineStartError
from engine.processes import watch
from tests.engine.linking.test_keeper import WAIT_S, Watched, begun, make_request, read, running
from tests.engine.linking.test_keeper import within as within_time

HEARTBEAT_S = 0.5
ENGINES = "tests.engine.driving.engines"


async def news_of(client: Watched) -> str:
    return await within_time(client.news.get())


def pid_of(client: Watched) -> int:
    assert client.info is not None
    return client.info.pid


async def test_an_idle_engine_that_stops_is_noticed_and_replaced() -> None:
    """Nobody looked before there was work, and then for a minute."""
    async with running(heartbeat_s=HEARTBEAT_S) as client:
        os.kill(first := pid_of(client), signal.SIGSTOP)
        assert await news_of(client) == "silent"
        with pytest.raises(EngineLost, match="the engine may have stopped"):
            client.ready()
        assert await news_of(client) == "no sign of life from the engine for 1 s: it has stopped"
        assert "code -9" in await news_of(client)
        assert await news_of(client) == "ready"
        assert pid_of(client) != first
        assert client.serves
        assert len(await read(client.submit([make_request("a")]))) == 7


async def test_an_engine_that_goes_on_before_it_is_given_up_is_kept() -> None:
    async with running(heartbeat_s=2.0) as client:
        os.kill(first := pid_of(client), signal.SIGSTOP)
        assert await news_of(client) == "silent"
        os.kill(first, signal.SIGCONT)
        assert await news_of(client) == "heard"
        assert client.serves
        assert pid_of(client) == first
        assert len(await read(client.submit([make_request("a")]))) == 7


async def test_an_engine_that_stops_at_work_is_told_apart_from_a_long_iteration() -> None:
    async with running(f"{ENGINES}:build_first_hanging", heartbeat_s=HEARTBEAT_S) as client:
        stream = client.submit([make_request("a")])
        with pytest.raises(TimeoutError):  # it beats, for as long as it likes
            await asyncio.wait_for(client.news.get(), 4 * HEARTBEAT_S)
        os.kill(pid_of(client), signal.SIGSTOP)
        assert await news_of(client) == "silent"
        assert "has stopped" in await news_of(client)
        assert "1 requests wait" in await news_of(client)
        assert "code -9" in await news_of(client)
        assert await news_of(client) == "ready"
        assert len(await read(stream)) >= 7


async def test_a_scheduler_without_end_is_noticed_though_the_engine_beats() -> None:
    factory = f"{ENGINES}:build_spinning"
    async with running(factory, heartbeat_s=HEARTBEAT_S, patience_s=1.0, rerun_s=0.0) as client:
        stream = client.submit([make_request("a")])
        assert await news_of(client) == "silent"
        assert "beats and has been at one iteration for 1 s" in await news_of(client)
        assert "code -9" in await news_of(client)
        with pytest.raises(EngineLost):
            await read(stream)
        assert await news_of(client) == "ready"


async def test_a_watcher_that_was_stopped_too_does_not_take_that_for_silence() -> None:
    """A machine that was suspended: neither side has done anything in the meantime."""
    async with running(heartbeat_s=1.0) as client:
        os.kill(first := pid_of(client), signal.SIGSTOP)
        time.sleep(3.0)  # noqa: ASYNC251  # the event loop is what is stopped
        os.kill(first, signal.SIGCONT)
        for _ in range(20):
            await within_time(client.ask(Stats()))
            await asyncio.sleep(0.05)
        assert client.news.empty()
        assert pid_of(client) == first


async def test_an_engine_that_stops_while_it_loads_is_no_start_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "LOADING_S", 5.0)
    client = Watched(EngineConfig(factory=f"{ENGINES}:build_stopping", heartbeat_s=HEARTBEAT_S))
    with pytest.raises(EngineStartError, match="the engine process ended with code -9"):
        await within_time(client.start())
    assert "no sign of life from the engine" in await news_of(client)
    await within_time(client.stop())


@pytest.fixture
def undying(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Processes that SIGKILL does not end, as in a call of a driver that never returns."""
    monkeypatch.setattr(processes, "KILL_PATIENCE_S", 0.2)
    monkeypatch.setattr(owner, "EXIT_PATIENCE_S", 0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", lambda child: None)
        yield patch


async def test_an_engine_that_does_not_even_end_is_replaced_all_the_same(
    undying: pytest.MonkeyPatch,
) -> None:
    async with running(heartbeat_s=HEARTBEAT_S) as client:
        os.kill(first := pid_of(client), signal.SIGSTOP)
        assert await news_of(client) == "silent"
        assert "has stopped" in await news_of(client)
        assert await news_of(client) == f"engine process {first} was killed and does not end"
        assert await news_of(client) == "the engine process does not end"
        assert await news_of(client) == "ready"
        assert pid_of(client) != first
        assert len(await read(client.submit([make_request("a")]))) == 7
        undying.undo()
        os.kill(first, signal.SIGKILL)
        psutil.Process(first).wait(WAIT_S)


STOPPED_ORPHAN = """
import asyncio, os, signal
from engine.linking.keeper import EngineClient
from engine.config import EngineConfig

async def main():
    client = EngineClient(EngineConfig(factory="engine.driving.null:build"))
    info = await client.start()
    os.kill(info.pid, signal.SIGSTOP)
    print(info.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_stopped_engine_does_not_outlive_its_front_end() -> None:
    """It reads no end of a pipe while it is stopped: the system continues it."""
    command = [sys.executable, "-c", STOPPED_ORPHAN]
    ran = subprocess.run(command, capture_output=True, timeout=WAIT_S)
    assert ran.returncode == -signal.SIGKILL
    try:
        engine = psutil.Process(int(ran.stdout))
    except psutil.NoSuchProcess:
        return
    try:
        engine.wait(WAIT_S)
    except psutil.TimeoutExpired:
        engine.kill()
        raise


async def test_restarts_leave_neither_descriptors_nor_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, "FIRST_DELAY_S", 0.0)
    async with running() as client:
        before = len(os.listdir("/proc/self/fd"))
        others = children() - {pid_of(client)}
        for i in range(10):
            stream = await begun(client, make_request(f"r{i}", max_tokens=4000))
            os.kill(pid_of(client), signal.SIGKILL)
            with pytest.raises(EngineLost):
                await read(stream)
            assert "code -9" in await news_of(client)
            assert await news_of(client) == "ready"
        assert len(os.listdir("/proc/self/fd")) == before
        assert children() == others | {pid_of(client)}


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}
