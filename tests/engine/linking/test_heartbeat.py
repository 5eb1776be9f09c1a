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
from engine.linking import keeper as keeping
from engine.linking.errors import EngineLost, EngineStartError
from engine.processes import watch
from tests.engine.driving import engines
from tests.engine.linking.test_keeper import (
    MANY,
    WAIT_S,
    Watched,
    begun,
    make_request,
    read,
    running,
)
from tests.engine.linking.test_keeper import within as within_time

HEARTBEAT_S = 0.5
ENGINES = "tests.engine.driving.engines"


async def news_of(keeper: Watched) -> str:
    return await within_time(keeper.news.get())


def pid_of(keeper: Watched) -> int:
    assert keeper.link.info is not None
    return keeper.link.info.pid


async def test_an_idle_engine_that_stops_is_noticed_and_replaced() -> None:
    """Nobody looked before there was work, and then for a minute."""
    async with running(heartbeat_s=HEARTBEAT_S) as keeper:
        os.kill(first := pid_of(keeper), signal.SIGSTOP)
        assert await news_of(keeper) == "silent"
        with pytest.raises(EngineLost, match="the engine may have stopped"):
            keeper.link.ready()
        assert await news_of(keeper) == "no sign of life from the engine for 1 s: it has stopped"
        assert "code -9" in await news_of(keeper)
        assert await news_of(keeper) == "ready"
        assert pid_of(keeper) != first
        assert keeper.link.serves
        assert len(await read(keeper.link.submit([make_request("a")]))) == 7


async def test_an_engine_that_goes_on_before_it_is_given_up_is_kept() -> None:
    async with running(heartbeat_s=2.0) as keeper:
        os.kill(first := pid_of(keeper), signal.SIGSTOP)
        assert await news_of(keeper) == "silent"
        os.kill(first, signal.SIGCONT)
        assert await news_of(keeper) == "heard"
        assert keeper.link.serves
        assert pid_of(keeper) == first
        assert len(await read(keeper.link.submit([make_request("a")]))) == 7


async def test_an_engine_that_stops_at_work_is_told_apart_from_a_long_iteration() -> None:
    async with running(f"{ENGINES}:build_first_hanging", heartbeat_s=HEARTBEAT_S) as keeper:
        stream = keeper.link.submit([make_request("a")])
        with pytest.raises(TimeoutError):  # it beats, for as long as it likes
            await asyncio.wait_for(keeper.news.get(), 4 * HEARTBEAT_S)
        os.kill(pid_of(keeper), signal.SIGSTOP)
        assert await news_of(keeper) == "silent"
        assert "has stopped" in await news_of(keeper)
        assert "1 requests wait" in await news_of(keeper)
        assert "code -9" in await news_of(keeper)
        assert await news_of(keeper) == "ready"
        assert len(await read(stream)) >= 7


async def test_a_scheduler_without_end_is_noticed_though_the_engine_beats() -> None:
    factory = f"{ENGINES}:build_spinning"
    async with running(factory, heartbeat_s=HEARTBEAT_S, patience_s=1.0, rerun_s=0.0) as keeper:
        stream = keeper.link.submit([make_request("a")])
        assert await news_of(keeper) == "silent"
        assert "beats and has been at one iteration for 1 s" in await news_of(keeper)
        assert "code -9" in await news_of(keeper)
        with pytest.raises(EngineLost):
            await read(stream)
        assert await news_of(keeper) == "ready"


async def test_a_watcher_that_was_stopped_too_does_not_take_that_for_silence() -> None:
    """A machine that was suspended: neither side has done anything in the meantime."""
    async with running(heartbeat_s=1.0) as keeper:
        os.kill(first := pid_of(keeper), signal.SIGSTOP)
        time.sleep(3.0)  # noqa: ASYNC251  # the event loop is what is stopped
        os.kill(first, signal.SIGCONT)
        for _ in range(20):
            await within_time(keeper.link.ask(Stats()))
            await asyncio.sleep(0.05)
        assert keeper.news.empty()
        assert pid_of(keeper) == first


async def test_an_engine_that_stops_while_it_loads_is_no_start_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "LOADING_S", 5.0)
    keeper = Watched(EngineConfig(factory=f"{ENGINES}:build_stopping", heartbeat_s=HEARTBEAT_S))
    with pytest.raises(EngineStartError, match="the engine process ended with code -9"):
        await within_time(keeper.start())
    assert "no sign of life from the engine" in await news_of(keeper)
    await within_time(keeper.stop())


@pytest.fixture
def undying(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Processes that SIGKILL does not end, as in a call of a driver that never returns."""
    monkeypatch.setattr(keeping, "KILL_PATIENCE_S", 0.2)
    monkeypatch.setattr(keeping, "EXIT_PATIENCE_S", 0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", lambda child: None)
        yield patch


async def test_an_engine_that_does_not_even_end_is_replaced_all_the_same(
    undying: pytest.MonkeyPatch,
) -> None:
    async with running(heartbeat_s=HEARTBEAT_S) as keeper:
        os.kill(first := pid_of(keeper), signal.SIGSTOP)
        assert await news_of(keeper) == "silent"
        assert "has stopped" in await news_of(keeper)
        assert await news_of(keeper) == f"engine process {first} was killed and does not end"
        assert await news_of(keeper) == "the engine process does not end"
        assert await news_of(keeper) == "ready"
        assert pid_of(keeper) != first
        assert len(await read(keeper.link.submit([make_request("a")]))) == 7
        undying.undo()
        os.kill(first, signal.SIGKILL)
        psutil.Process(first).wait(WAIT_S)


STOPPED_ORPHAN = """
import asyncio, os, signal
from engine.linking.keeper import EngineKeeper
from engine.config import EngineConfig
from engine.deciding.questions import Stats

async def main():
    keeper = EngineKeeper(EngineConfig(factory="engine.driving.null:build"))
    info = await keeper.start()
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
    monkeypatch.setattr(keeping, "FIRST_DELAY_S", 0.0)
    async with running(engines.SLOW) as keeper:
        before = len(os.listdir("/proc/self/fd"))
        others = children() - {pid_of(keeper)}
        for i in range(10):
            stream = await begun(keeper, make_request(f"r{i}", max_tokens=MANY))
            os.kill(pid_of(keeper), signal.SIGKILL)
            with pytest.raises(EngineLost):
                await read(stream)
            assert "code -9" in await news_of(keeper)
            assert await news_of(keeper) == "ready"
        assert len(os.listdir("/proc/self/fd")) == before
        assert children() == others | {pid_of(keeper)}


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}
