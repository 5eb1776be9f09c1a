"""A process that reads, when it is lost: who waits for it hears something in any case."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import psutil
import pytest
import pytest_asyncio

from niyama.v1 import inference_pb2 as pb
from server.admission.quota import Caller
from server.convert.input import Bounds
from server.errors import CallError
from server.reading.lanes import Lane
from server.reading.messages import MEMORY_BYTES, Counted, Job, Start, Task, parse
from tests.server.attacks import message
from tests.server.conftest import until, within
from tests.server.test_templates import make_checkpoint, make_template

TEXT = pb.Input(text="In the beginning")


def job(form: pb.Input, field: str = "input.text") -> Job:
    raw = message(pb.CountTokensRequest, input=form)
    return Job(Task.COUNT, partial(parse, pb.CountTokensRequest), raw, Bounds(4096), field)


A = Caller("", "a")
ENDLESS = job(
    pb.Input(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="loops")])), "input.chat"
)


@pytest_asyncio.fixture
async def lane(tmp_path: Path) -> AsyncIterator[Lane]:
    """A lane of a model whose template may take for ever."""
    async with running(tmp_path) as lane:
        yield lane


@contextlib.asynccontextmanager
async def running(tmp_path: Path, patience_s: float | None = None) -> AsyncIterator[Lane]:
    model = make_checkpoint(tmp_path / "model", make_template())
    lane = Lane("short", Start(model, 600.0, MEMORY_BYTES), patience_s)
    lane.start()
    yield lane
    await within(lane.stop())


async def working(lane: Lane) -> int:
    """The process that is at work, once it is."""
    await until(lambda: lane.pid is not None)
    pid = lane.pid
    assert pid is not None
    await until(lambda: psutil.Process(pid).cpu_times().user > 1.0)
    return pid


async def test_a_job_that_its_process_does_not_survive_twice_is_given_up(lane: Lane) -> None:
    """And those behind it are done."""
    endless = asyncio.create_task(lane.do(A, ENDLESS))
    behind = asyncio.create_task(lane.do(A, job(TEXT)))
    first = await working(lane)
    os.kill(first, signal.SIGKILL)
    await until(lambda: lane.pid not in (None, first))
    os.kill(await working(lane), signal.SIGKILL)
    with pytest.raises(CallError) as caught:
        await within(endless)
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert isinstance(await within(behind), Counted)


async def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    """Without using its CPU, so that no limit of CPU time sees it. That is no fault of what it was
    given meanwhile, which the next one does.
    """
    async with running(tmp_path, patience_s=3.0) as lane:
        assert isinstance(await within(lane.do(A, job(TEXT))), Counted)
        pid = lane.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert isinstance(await within(lane.do(A, job(TEXT))), Counted)
        assert not psutil.pid_exists(pid)


async def test_what_nobody_waits_for_is_not_done(lane: Lane) -> None:
    endless = asyncio.create_task(lane.do(A, ENDLESS))
    behind = asyncio.create_task(lane.do(A, job(TEXT)))
    pid = await working(lane)
    for task in (endless, behind):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    os.kill(pid, signal.SIGKILL)  # what it was at work on is not tried again
    assert isinstance(await within(lane.do(A, job(TEXT))), Counted)


async def test_nobody_waits_for_a_process_that_does_not_start(tmp_path: Path) -> None:
    lane = Lane("long", Start(tmp_path / "nothing", 1.0, MEMORY_BYTES))
    lane.start()
    with pytest.raises(CallError) as caught:
        await within(lane.do(A, job(TEXT)))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    await within(lane.stop())
