"""A server process whose log nobody reads, its stderr closed or stalled."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from niyama.v1 import inference_pb2 as pb
from tests.server.conftest import Stubs, within
from tests.server.frontends.test_frontends import Pair, free_port
from tests.server.test_lifetime import NOT_SERVING, SERVING
from tests.server_process import ServerProcess

NULL = "tests.null_server"
SERVICE = health_pb2.HealthCheckRequest(service="niyama.v1.Inference")


async def generate(stubs: Stubs, request_id: str = "same") -> None:
    """Two calls of one id: the first has left nothing behind."""
    for _ in range(2):
        request = pb.GenerateRequest(input=pb.Input(text="Once"), request_id=request_id)
        request.sampling.max_tokens = 3
        answer = await within(stubs.inference.Generate(request))
        assert len(answer.completions) == 1


async def test_a_service_that_nobody_reads_any_more_serves_and_heals_as_ever(
    tmp_path: Path,
) -> None:
    """As after `python -m server 2>&1 | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    port = free_port()
    flags = ("--frontends", "2", "--metrics-port", str(port))
    with ServerProcess(tmp_path / "log", *flags, module=NULL, stderr=writing) as process:
        os.close(writing)
        process.wait_ready()
        assert process.child.stdout is not None
        process.child.stdout.close()
        pair = Pair(process, port)
        async with grpc.aio.insecure_channel(process.address) as channel:
            stubs = Stubs(channel)
            await generate(stubs)
            watch = stubs.health.Watch(SERVICE)
            assert (await within(watch.read())).status == SERVING
            pair.engine().kill()
            assert (await within(watch.read())).status == NOT_SERVING
            assert (await within(watch.read())).status == SERVING
            await generate(stubs)
            watch.cancel()
        for victim in pair.workers():
            victim.kill()
        await pair.until(lambda m: m["niyama_frontend_losses_total"] == 2)
        async with grpc.aio.insecure_channel(process.address) as channel:
            stubs = Stubs(channel)
            watch = stubs.health.Watch(SERVICE, wait_for_ready=True)
            while (await within(watch.read())).status != SERVING:
                pass
            await generate(stubs)
            watch.cancel()
        found = await pair.until(lambda m: m["niyama_calls_in_flight"] == 0)
        assert found["niyama_log_lines_dropped_total"] >= 6  # each of the calls has one
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait_exit) == 0


async def test_a_reader_of_the_log_that_stalls_changes_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    port = free_port()
    flags = ("--metrics-port", str(port))
    with ServerProcess(tmp_path / "log", *flags, module=NULL, stderr=writing) as process:
        process.wait_ready()
        its_own = os.open(f"/proc/{process.child.pid}/fd/2", os.O_WRONLY)
        for pipe in (writing, its_own):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
            os.close(pipe)
        pair = Pair(process, port)
        async with grpc.aio.insecure_channel(process.address) as channel:
            for i in range(25):  # a line of the log has 300 bytes
                await generate(Stubs(channel), f"call-{i}")
        await pair.until(lambda m: m["niyama_log_lines_dropped_total"] > 0)
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait_exit) == 0
    assert b'"call-0"' in os.read(reading, 4096)
    os.close(reading)
