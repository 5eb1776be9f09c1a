"""The asyncio side against a real engine process (without a model, so that it starts at once)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import pytest_asyncio

from engine.config import EngineConfig
from engine.deciding.plan import Accepted, Finished, Token
from engine.deciding.questions import Explain, Stats
from engine.deciding.request import Request, Sampling
from engine.deciding.sequence import FinishReason
from engine.linking.errors import DuplicateRequest, EngineLost, EngineStartError, Unanswered
from engine.linking.keeper import EngineKeeper, EngineProcess
from engine.linking.streams import RequestStream, Restarted
from engine.messages import Failure
from tests.engine.driving import engines

WAIT_S = 60.0
MANY = 4000  # tokens, which the slow engine takes a good half minute for
T = TypeVar("T")


async def within(work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, WAIT_S)


class Watched(EngineKeeper):
    """Records what it reports about its engine."""

    def __init__(self, config: EngineConfig) -> None:
        self.news: asyncio.Queue[str] = asyncio.Queue()
        super().__init__(
            config,
            on_ready=lambda info: self.news.put_nowait("ready"),
            on_lost=lambda line: self.news.put_nowait(line),
            on_failed=lambda failed: self.news.put_nowait(failed.trace),
            on_notice=self.news.put_nowait,
            on_silence=lambda is_silent: self.news.put_nowait("silent" if is_silent else "heard"),
            on_starting=self.news.put_nowait,
        )


@asynccontextmanager
async def running(factory: str = engines.NULL, **options: object) -> AsyncIterator[Watched]:
    keeper = Watched(EngineConfig(factory=factory, **options))  # type: ignore[arg-type]  # any field
    await within(keeper.start())
    try:
        yield keeper
    finally:
        await within(keeper.stop())


@pytest_asyncio.fixture
async def keeper() -> AsyncIterator[Watched]:
    async with running() as keeper:
        yield keeper


@pytest_asyncio.fixture
async def slow_keeper() -> AsyncIterator[Watched]:
    """Of an engine that is at work on MANY tokens for as long as a test takes, however slow that
    is.
    """
    async with running(engines.SLOW) as keeper:
        yield keeper


def make_request(request_id: str, max_tokens: int = 5, seed: int = 0) -> Request:
    sampling = Sampling(max_tokens=max_tokens, seed=seed)
    return Request(request_id, (1, 2, 3), sampling, arrived_at=time.monotonic())


async def read(stream: RequestStream) -> list[tuple[int, object]]:
    items: list[tuple[int, object]] = []
    while not stream.is_done:
        items += await within(stream.next())
    return items


async def test_what_an_engine_does_until_it_serves_is_told() -> None:
    async with running("tests.engine.driving.engines:build_saying") as keeper:
        told = [keeper.news.get_nowait() for _ in range(keeper.news.qsize())]
    assert told == ["loading", "measuring"]


async def test_events_of_a_request_come_in_order(keeper: Watched) -> None:
    items = await read(keeper.link.submit([make_request("a")]))
    kinds = [type(item) for _, item in items]
    assert kinds == [Accepted, *[Token] * 5, Finished]
    assert len(keeper.link.in_flight) == 0


async def test_requests_submitted_together_share_a_stream(keeper: Watched) -> None:
    requests = [make_request(f"a/{i}", max_tokens=2 + i, seed=i) for i in range(3)]
    items = await read(keeper.link.submit(requests))
    for i in range(3):
        own = [item for index, item in items if index == i]
        assert [type(item) for item in own] == [Accepted, *[Token] * (2 + i), Finished]


async def test_a_slow_reader_gets_everything_at_once(keeper: Watched) -> None:
    """Nothing is lost, and nothing waits for the reader: the engine has long finished."""
    slow = keeper.link.submit([make_request("slow", max_tokens=50)])
    other = keeper.link.submit([make_request("other", max_tokens=200)])
    await read(other)
    items = await within(slow.next())
    assert [type(item) for _, item in items] == [Accepted, *[Token] * 50, Finished]
    assert slow.is_done


async def test_a_cancelled_request_finishes_with_the_reason(slow_keeper: Watched) -> None:
    stream = slow_keeper.link.submit([make_request("a", max_tokens=MANY)])
    await within(stream.next())
    stream.cancel(0, FinishReason.STOP)
    last = (await read(stream))[-1][1]
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.STOP
    assert last.output_tokens < MANY


async def test_closing_a_stream_frees_its_pages(slow_keeper: Watched) -> None:
    stream = slow_keeper.link.submit([make_request("a", max_tokens=MANY)])
    await within(stream.next())
    stream.close(FinishReason.CANCELLED)
    stats = (await within(slow_keeper.link.ask(Stats()))).scheduler
    assert stats.pages_free == stats.pages_total
    assert stats.num_running == stats.num_waiting == 0


async def test_an_id_is_taken_until_the_engine_has_finished_it(slow_keeper: Watched) -> None:
    stream = slow_keeper.link.submit([make_request("a", max_tokens=MANY)])
    with pytest.raises(DuplicateRequest, match="a"):
        slow_keeper.link.submit([make_request("b"), make_request("a")])
    assert len(slow_keeper.link.in_flight) == 1  # and "b" was not submitted
    stream.close(FinishReason.CANCELLED)
    with pytest.raises(DuplicateRequest):
        slow_keeper.link.submit([make_request("a")])
    await within(slow_keeper.link.ask(Stats()))
    assert len(await read(slow_keeper.link.submit([make_request("a")]))) == 7


async def test_a_question_without_an_answer_says_why(keeper: Watched) -> None:
    with pytest.raises(Unanswered, match="'nobody' is not remembered") as caught:
        await within(keeper.link.ask(Explain("nobody")))
    assert caught.value.failure is Failure.NOT_FOUND


async def begun(keeper: EngineKeeper, request: Request) -> RequestStream:
    """Once a token of it was seen."""
    stream = keeper.link.submit([request])
    while not any(isinstance(item, Token) for _, item in await within(stream.next())):
        pass
    return stream


async def test_a_killed_engine_fails_its_streams_and_is_replaced(slow_keeper: Watched) -> None:
    stream = await begun(slow_keeper, make_request("a", max_tokens=MANY))
    first = slow_keeper.link.info
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(EngineLost):
        await read(stream)
    with pytest.raises(EngineLost):
        slow_keeper.link.submit([make_request("b")])
    with pytest.raises(EngineLost):
        await within(slow_keeper.link.ask(Stats()))
    assert "-9" in await within(slow_keeper.news.get())
    assert await within(slow_keeper.news.get()) == "ready"
    assert slow_keeper.link.info is not None
    assert slow_keeper.link.info.pid != first.pid
    assert len(await read(slow_keeper.link.submit([make_request("a")]))) == 7


async def test_what_nobody_has_seen_anything_of_is_run_again_by_the_next_engine() -> None:
    """Twenty that waited ended UNAVAILABLE because of a fault that was none of theirs."""
    factory = "tests.engine.driving.engines:build_first_hanging"
    keeper = EngineKeeper(EngineConfig(factory=factory))
    await within(keeper.start())
    streams = [keeper.link.submit([make_request(f"r{i}")]) for i in range(20)]
    whole = keeper.link.submit([make_request("w/0"), make_request("w/1")], is_seen_whole=True)
    await within(asyncio.to_thread(keeper.kill))
    for stream in [*streams, whole]:
        items = await read(stream)
        kinds = [type(item) for index, item in items if index == 0]
        assert kinds[-8:] == [Restarted, Accepted, *[Token] * 5, Finished]
        assert kinds[:-8] in ([], [Accepted])  # by the first engine, perhaps
    assert len(keeper.link.in_flight) == 0
    timeline = await within(keeper.link.ask(Explain("r7")))
    assert [d.kind for d in timeline.decisions][:2] == ["restarted", "admitted"]
    await within(keeper.stop())


async def test_what_the_first_engine_chose_and_learnt_holds_for_those_after_it() -> None:
    async with running("tests.engine.driving.engines:build_telling") as keeper:
        names = []
        for _ in range(3):
            assert keeper.link.info is not None
            names.append(keeper.link.info.model_name)
            await read(keeper.link.submit([make_request("a")]))
            await within(asyncio.to_thread(keeper.kill))
            assert "code -9" in await within(keeper.news.get())
            assert await within(keeper.news.get()) == "ready"
    assert names == ["none", "null learnt", "null learnt"]


async def test_an_engine_that_breaks_tells_why_before_it_is_replaced() -> None:
    async with running("tests.engine.driving.engines:build_failing") as keeper:
        good = await begun(keeper, make_request("good", max_tokens=MANY))
        bad = keeper.link.submit([make_request("bad", seed=engines.Failing.BREAKING_SEED)])
        with pytest.raises(EngineLost):
            await read(good)
        for _ in range(2):  # what breaks an engine is tried once more, and no more
            assert "RuntimeError: the executor broke" in await within(keeper.news.get())
            if (news := await within(keeper.news.get())) == "1 requests wait for the next engine":
                news = await within(keeper.news.get())
            assert "code 1" in news
            assert await within(keeper.news.get()) == "ready"
        with pytest.raises(EngineLost):
            await read(bad)
        assert len(await read(keeper.link.submit([make_request("a")]))) == 7


async def test_an_engine_that_hangs_at_work_is_replaced() -> None:
    factory = "tests.engine.driving.engines:build_hanging"
    async with running(factory, patience_s=0.5, heartbeat_s=0.5, rerun_s=0.0) as keeper:
        good = await begun(keeper, make_request("good", max_tokens=MANY))
        keeper.link.submit([make_request("bad", seed=engines.Hanging.BREAKING_SEED)])
        with pytest.raises(EngineLost):
            await read(good)
        assert await within(keeper.news.get()) == "silent"
        assert "beats and has been at one iteration" in await within(keeper.news.get())
        assert "code -9" in await within(keeper.news.get())
        assert await within(keeper.news.get()) == "ready"
        assert len(await read(keeper.link.submit([make_request("a")]))) == 7


async def test_an_engine_that_is_slow_to_die_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A killed process lives until its GPU's memory is freed; health must answer meanwhile."""
    alive, kill = threading.Event(), EngineProcess.kill

    def kill_slowly(process: EngineProcess) -> bool:
        assert alive.wait(WAIT_S), "the event loop waited for the engine's end"
        return kill(process)

    monkeypatch.setattr(EngineProcess, "kill", kill_slowly)
    factory = "tests.engine.driving.engines:build_hanging"
    async with running(factory, patience_s=0.5, heartbeat_s=0.5, rerun_s=0.0) as keeper:
        keeper.link.submit([make_request("bad", seed=engines.Hanging.BREAKING_SEED)])
        assert await within(keeper.news.get()) == "silent"
        assert "beats and has been at one iteration" in await within(keeper.news.get())
        alive.set()  # by the event loop, while the kill is under way
        assert "code -9" in await within(keeper.news.get())
        assert await within(keeper.news.get()) == "ready"


async def test_a_system_that_starts_no_process_is_asked_again(
    keeper: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory or file descriptors for a while: the supervisor must outlive it."""
    monkeypatch.setattr(sys, "executable", "/no/such/interpreter")
    keeper.kill()
    assert "code -9" in await within(keeper.news.get())
    assert "cannot be started" in await within(keeper.news.get())
    monkeypatch.undo()
    while (news := await within(keeper.news.get())) != "ready":
        assert "cannot be started" in news
    assert len(await read(keeper.link.submit([make_request("a")]))) == 7


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        ("build_never", "TypeError: a mistake of ours"),
        ("build_dying", "the engine process ended with code -9"),
    ],
)
async def test_an_engine_that_cannot_start_says_why_in_one_line(factory: str, line: str) -> None:
    keeper = Watched(EngineConfig(factory=f"tests.engine.driving.engines:{factory}"))
    with pytest.raises(EngineStartError) as caught:
        await within(keeper.start())
    assert str(caught.value) == line
    await within(keeper.stop())


async def test_a_folder_without_a_model_is_a_start_error(tmp_path: Path) -> None:
    keeper = Watched(EngineConfig(model=tmp_path, factory=engines.NULL))
    with pytest.raises(EngineStartError, match=r"no config\.json in"):
        await within(keeper.start())
    await within(keeper.stop())


async def test_stopping_fails_open_streams_and_ends_the_process(slow_keeper: Watched) -> None:
    stream = slow_keeper.link.submit([make_request("a", max_tokens=MANY)])
    assert slow_keeper.link.info is not None
    process = psutil.Process(slow_keeper.link.info.pid)
    await within(slow_keeper.stop())
    with pytest.raises(EngineLost):
        await read(stream)
    assert not process.is_running()


ORPHAN = """
import asyncio, os
from engine.linking.keeper import EngineKeeper, EngineProcess
from engine.config import EngineConfig

async def main():
    keeper = EngineKeeper(EngineConfig(factory="engine.driving.null:build"))
    info = await keeper.start()
    print(info.pid, flush=True)
    os._exit(0)

asyncio.run(main())
"""


def test_the_engine_exits_when_its_front_end_dies() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, timeout=WAIT_S, check=True
    )
    with contextlib.suppress(psutil.NoSuchProcess):  # already gone
        psutil.Process(int(ran.stdout)).wait(WAIT_S)


def test_the_front_end_s_side_imports_no_torch() -> None:
    code = (
        "import sys, engine.linking.keeper, engine.driving.null; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=WAIT_S).returncode == 0
