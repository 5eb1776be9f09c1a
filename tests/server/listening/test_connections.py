"""What connections may take: descriptors stay for the server's own use, whoever connects."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry, Counter, make_wsgi_app

from engine.config import EngineConfig
from niyama.v1 import inference_pb2 as pb
from server.app import Server
from server.config import ServerConfig
from server.listening.exposition import MOST_CONNECTIONS, Exposition
from tests.http2 import GOAWAY, MAX_CONCURRENT_STREAMS, SETTINGS, Http2
from tests.server.conftest import Stubs, within
from tests.server.test_ending import engine_of
from tests.server_process import ServerProcess

NULL = EngineConfig(factory="engine.driving.null:build")
SERVICE = health_pb2.HealthCheckRequest(service="niyama.v1.Inference")
SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)
WAIT_S = 60.0


@contextlib.asynccontextmanager
async def serving(**limits: object) -> AsyncIterator[str]:
    """The address of a server with those limits, before an engine that computes nothing."""
    server = Server(ServerConfig(port=0, engine=NULL, **limits))  # type: ignore[arg-type]
    await within(server.start())
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await within(server.stop())


def connect(address: str, stack: contextlib.ExitStack, num: int) -> None:
    """Opens so many connections that say nothing."""
    host, _, port = address.rpartition(":")
    for _ in range(num):
        with contextlib.suppress(ConnectionError):
            connection = socket.create_connection((host, int(port)), WAIT_S)
            stack.enter_context(connection)


async def test_150_connections_leave_descriptors_for_health_and_for_another_engine(
    tmp_path: Path,
) -> None:
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            ServerProcess(tmp_path / "log", module="tests.null_server", num_files=64)
        )
        process.wait_ready()
        async with grpc.aio.insecure_channel(process.address) as channel:
            stubs = Stubs(channel)
            watch = stubs.health.Watch(SERVICE)
            assert (await within(watch.read())).status == SERVING
            await asyncio.to_thread(connect, process.address, stack, 150)
            assert (await within(stubs.health.Check(SERVICE))).status == SERVING
            engine_of(process).kill()
            assert (await within(watch.read())).status == NOT_SERVING
            assert (await within(watch.read())).status == SERVING
            request = pb.GenerateRequest(input=pb.Input(text="Once"))
            request.sampling.max_tokens = 3
            assert len((await within(stubs.inference.Generate(request))).completions) == 1
            watch.cancel()
    assert "Too many open files" not in process.log


def test_a_server_without_room_for_a_connection_says_so(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", module="tests.null_server", num_files=40) as process:
        assert process.wait_exit() == 1
        (line,) = process.said
    assert "40 file descriptors are too few" in line


async def test_connections_beyond_the_limit_are_refused_and_those_within_it_served() -> None:
    async with serving(max_connections=2) as address:
        both = [await asyncio.to_thread(Http2, address) for _ in range(2)]
        with contextlib.ExitStack() as stack:
            for each in both:
                stack.enter_context(each)
                assert await asyncio.to_thread(each.until, SETTINGS, 0) is not None
            async with grpc.aio.insecure_channel(address) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await within(Stubs(channel).health.Check(SERVICE))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(address) as channel:  # there is room again
            health = Stubs(channel).health
            answer = await within(health.Check(SERVICE, wait_for_ready=True))
            assert answer.status == SERVING


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with serving(handshake_s=0.2) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await within(reader.read())  # to its end
        writer.close()


async def test_a_connection_without_a_call_is_told_to_go() -> None:
    async with serving(idle_s=0.2) as address:
        with await asyncio.to_thread(Http2, address) as client:
            assert await asyncio.to_thread(client.until, GOAWAY, 0) is not None


async def test_a_connection_s_calls_are_limited_and_never_below_the_queue() -> None:
    for limits, most in (({"max_streams": 7}, 7), ({"max_requests": 50}, 150)):
        async with serving(**limits) as address:
            with await asyncio.to_thread(Http2, address) as client:
                settings = await asyncio.to_thread(client.until, SETTINGS, 0)
        pairs = [settings.payload[i : i + 6] for i in range(0, len(settings.payload), 6)]
        told = {int.from_bytes(p[:2], "big"): int.from_bytes(p[2:], "big") for p in pairs}
        assert told[MAX_CONCURRENT_STREAMS] == most


@pytest.fixture
def exposed() -> Iterator[str]:
    registry = CollectorRegistry()
    Counter("seen", "Seen", registry=registry).inc()
    exposition = Exposition(make_wsgi_app(registry))
    yield f"127.0.0.1:{exposition.serve('127.0.0.1', 0)}"
    exposition.stop()


def test_connections_to_the_metrics_that_say_nothing_keep_nobody_from_them(exposed: str) -> None:
    with contextlib.ExitStack() as stack:
        connect(exposed, stack, 5 * MOST_CONNECTIONS)
        with urllib.request.urlopen(f"http://{exposed}/metrics", timeout=WAIT_S) as response:
            assert b"seen_total 1.0" in response.read()
        silent = socket.create_connection(tuple(exposed.split(":")), WAIT_S)  # type: ignore[arg-type]
        stack.enter_context(silent)
        silent.sendall(b"GET /metrics HT")
        connect(exposed, stack, MOST_CONNECTIONS)
        assert silent.recv(1) == b""  # it was the oldest
