"""Messages that come slowly, or never: nobody waits for them for ever, and few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from engine.config import EngineConfig
from niyama.v1 import inference_pb2 as pb
from server.config import ServerConfig
from server.errors import CallError
from server.listening.uploads import LEAST, MOST_BYTES, SLOW_S, Uploads
from tests.http2 import DATA, END_STREAM, HEADERS, Http2
from tests.server.conftest import Running, running_with, within
from tests.server.test_ending import GENERATE, STREAM, WATCH

NULL = EngineConfig(factory="engine.driving.null:build")
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MAX_MESSAGE_BYTES = 4 << 20
MOST = MOST_BYTES // MAX_MESSAGE_BYTES
BEYOND = 30
THREADS = 40  # more than the default executor of an event loop has
ASKED = pb.GenerateRequest(input=pb.Input(text="Once"), sampling=pb.Sampling(max_tokens=2))


@contextlib.asynccontextmanager
async def running(receive_timeout_s: float = 60.0) -> AsyncIterator[Running]:
    config = ServerConfig(
        port=0,
        receive_timeout_s=receive_timeout_s,
        max_message_bytes=MAX_MESSAGE_BYTES,
        drain_s=0.0,
        engine=NULL,
    )
    async with running_with(config) as server:
        yield server


def connection(server: Running) -> Http2:
    return Http2(f"127.0.0.1:{server.server.port}", window=1 << 16)


async def status(client: Http2, stream: int | None = None) -> bytes:
    """The last headers of the stream, or of the next to end: its status is in them as text."""
    frame = await within(asyncio.to_thread(client.until, HEADERS, stream))
    assert frame is not None
    return frame.payload


async def begun(client: Http2) -> None:
    """A call without its message that the server has seen: it looks at calls in their order."""
    client.open(GENERATE)
    await status(client, client.call(CHECK, b""))


@pytest.mark.parametrize("sent", [b"", struct.pack("!BI", 0, 1000) + b"begun"], ids=["no", "part"])
async def test_a_message_that_does_not_come_is_waited_for_as_long_as_stated(sent: bytes) -> None:
    async with running(receive_timeout_s=0.2) as server:
        for method in (STREAM, GENERATE, CHECK, WATCH, REFLECT):
            with await asyncio.to_thread(connection, server) as client:
                stream = client.open(method)
                client.send(DATA, 0, stream, sent)
                assert b"the message did not come within 0.2 s" in await status(client, stream)
        assert len((await within(server.stub.Generate(ASKED))).completions) == 1


async def test_a_call_that_ends_without_a_message_is_told_so_and_logged() -> None:
    """Here the client says so, or leaves, or the server ends."""
    with capture_logs() as lines:
        async with running() as server:
            with await asyncio.to_thread(connection, server) as client:
                stream = client.open(GENERATE)
                client.send(DATA, END_STREAM, stream)
                assert b"ended before its message" in await status(client, stream)
                await begun(client)
            staying = await asyncio.to_thread(connection, server)
            await begun(staying)
        staying.socket.close()
    calls = [line for line in lines if line["event"] == "call" and line["rpc"] == "Generate"]
    assert [line["outcome"] for line in calls] == ["CANCELLED"] * 3
    assert all(line["error"] == "the call ended before its message had come" for line in calls)


async def test_of_too_many_messages_on_their_way_the_slow_end() -> None:
    """They would take MOST_BYTES and more. Each is in the log, and none counts as in flight."""
    with capture_logs() as lines:
        async with running() as server:
            with await asyncio.to_thread(connection, server) as client:
                for _ in range(MOST + BEYOND):  # gRPC hands them over in nearly this order
                    client.open(STREAM)
                for _ in range(BEYOND):
                    assert b"the message comes slowly" in await status(client)
                assert len((await within(server.stub.Generate(ASKED))).completions) == 1
            sample = server.metrics.registry.get_sample_value
            assert sample("niyama_calls_in_flight") == 0
    outcomes = [line["outcome"] for line in lines if line["event"] == "call"]
    assert outcomes.count("RESOURCE_EXHAUSTED") == BEYOND


async def test_drain_waits_for_no_message_that_has_not_come() -> None:
    async with running() as server:
        with await asyncio.to_thread(connection, server) as client:
            await begun(client)
            await within(server.service.calls.drain())


async def test_open_streams_of_reflection_keep_no_engine_from_being_replaced() -> None:
    async with running() as server:
        with await asyncio.to_thread(connection, server) as client:
            for _ in range(THREADS):
                client.open(REFLECT)
            watch = server.health.Watch(health_pb2.HealthCheckRequest())
            statuses = health_pb2.HealthCheckResponse.ServingStatus
            assert (await within(watch.read())).status == statuses.Value("SERVING")
            info = server.service.info
            assert info is not None
            os.kill(info.pid, signal.SIGKILL)
            for name in ("NOT_SERVING", "SERVING"):
                assert (await within(watch.read())).status == statuses.Value(name)
            watch.cancel()


class Silent:
    """Of a call, as gRPC knows it, whose message does not come."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    async def read(self) -> None:
        await asyncio.Event().wait()


async def test_first_those_of_the_connection_that_has_the_most_end() -> None:
    uploads = Uploads(100.0, MOST_BYTES)
    peers = ["one", *["many"] * LEAST, "one"]
    tasks = [asyncio.create_task(uploads.receive(cast(Any, Silent(peer)))) for peer in peers]
    await asyncio.sleep(0)
    loop, now = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    assert len(uploads) == LEAST + 2
    uploads.sweep(now)  # none has taken long
    uploads.sweep(now + 2 * SLOW_S)
    with pytest.raises(CallError, match="slowly"):
        await within(tasks[1])
    with pytest.raises(CallError, match="slowly"):
        await within(tasks[2])
    assert len(uploads) == LEAST
    uploads.sweep(loop.time() + 200.0)
    errors = await within(asyncio.gather(*tasks[3:], tasks[0], return_exceptions=True))
    assert all("did not come" in str(error) for error in errors)
    assert len(uploads) == 0
