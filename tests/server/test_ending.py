"""A server process ends, whatever its clients, its engine or its own event loop do."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from engine.embedded import FOLDER
from niyama.v1 import inference_pb2 as pb
from tests.http2 import HEADERS, Http2
from tests.server.conftest import Stubs, within
from tests.server_process import ServerProcess

WAIT_S = 60.0
SERVICE = "niyama.v1.Inference"
WATCH = "/grpc.health.v1.Health/Watch"
GENERATE = f"/{SERVICE}/Generate"
STREAM = f"/{SERVICE}/GenerateStream"
# Its main thread never looks at anything again.
STUCK = """
import time
from server.ending import Ending, block_signals
block_signals()
ending = Ending({patience_s}, lambda patience_s: None)
ending.kill = lambda: print("killed", flush=True)
ending.on_asked = lambda: print("asked", flush=True)
ending.watch()
print("ready", flush=True)
while True:
    pass
"""


@pytest.fixture
def null(tmp_path: Path) -> Iterator[ServerProcess]:
    """Before an engine that computes nothing, and drains for a moment only."""
    flags = ("--drain-s", "0.2", "--model", str(FOLDER))
    with ServerProcess(tmp_path / "log", *flags, module="tests.null_server") as process:
        process.wait_ready()
        yield process


def engine_of(process: ServerProcess) -> psutil.Process:
    children = psutil.Process(process.child.pid).children()
    (engine,) = [child for child in children if "engine.driving" in child.cmdline()]
    return engine


def stuck(patience_s: float) -> subprocess.Popen[str]:
    code = STUCK.format(patience_s=patience_s)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_second_signal_ends_a_process_whose_main_thread_is_busy_for_ever() -> None:
    child = stuck(600.0)
    assert child.stdout is not None
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "asked\n"
    child.send_signal(signal.SIGINT)
    *told, last = child.communicate(timeout=WAIT_S)[0].splitlines()
    assert last == "killed"
    assert "leaving at once" in "".join(told), (
        "an engine lost then is no fault, and the log says why"
    )
    assert child.returncode == 128 + signal.SIGTERM


def test_after_one_signal_such_a_process_gets_the_time_to_drain_and_no_more() -> None:
    child = stuck(0.1)
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=WAIT_S)
    assert [line for line in said.split() if line in ("asked", "killed")] == ["asked", "killed"]
    assert child.returncode == 0


def test_clients_that_read_nothing_do_not_hold_up_the_end(null: ServerProcess) -> None:
    """A stream, an answer and a watch, each with a window of 0."""
    sampling = pb.Sampling(max_tokens=50, ignore_eos=True)
    asked = pb.GenerateRequest(input=pb.Input(text="Once"), sampling=sampling)
    with Http2(null.address) as client:
        calls = [
            client.call(WATCH, health_pb2.HealthCheckRequest().SerializeToString()),
            client.call(STREAM, asked.SerializeToString()),
            client.call(GENERATE, asked.SerializeToString()),
        ]
        for stream in calls:
            assert client.until(HEADERS, stream) is not None
        null.signal(signal.SIGTERM)
        assert null.child.wait(WAIT_S) == 0
    assert "not ended in time" not in null.log  # by itself, not by force


def test_an_engine_that_does_not_move_does_not_hold_up_the_end(null: ServerProcess) -> None:
    engine = engine_of(null)
    engine.suspend()
    null.signal(signal.SIGTERM)
    assert null.child.wait(WAIT_S) == 0
    assert not engine.is_running()


def test_a_front_end_that_does_not_move_does_not_hold_up_the_end(tmp_path: Path) -> None:
    flags = ("--drain-s", "0.2", "--frontends", "2")
    with ServerProcess(tmp_path / "log", *flags, module="tests.null_server") as process:
        process.wait_ready()
        children = psutil.Process(process.child.pid).children()
        for child in children:
            if "server.frontends.worker" in child.cmdline():
                child.suspend()
        process.signal(signal.SIGTERM)
        assert process.child.wait(WAIT_S) == 0
    assert not any(child.is_running() for child in children)


async def test_a_watcher_that_reads_nothing_keeps_no_other_from_the_news(
    null: ServerProcess,
) -> None:
    status = health_pb2.HealthCheckResponse
    asked = health_pb2.HealthCheckRequest(service=SERVICE)
    with Http2(null.address) as client:
        for _ in range(3):
            silent = client.call(WATCH, asked.SerializeToString())
        await asyncio.to_thread(client.until, HEADERS, silent)
        async with grpc.aio.insecure_channel(null.address) as channel:
            health = Stubs(channel).health
            watch = health.Watch(asked)
            assert (await within(watch.read())).status == status.SERVING
            engine = engine_of(null)
            engine.suspend()  # so that no other takes its place at once
            engine.kill()
            assert (await within(watch.read())).status == status.NOT_SERVING
            assert (await within(watch.read())).status == status.SERVING
            assert (await within(health.Check(asked))).status == status.SERVING
            null.signal(signal.SIGTERM)
            assert (await within(watch.read())).status == status.NOT_SERVING
            watch.cancel()
    assert await asyncio.to_thread(null.child.wait, WAIT_S) == 0
