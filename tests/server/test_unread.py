"""Clients that take nothing of what they are sent, with windows of 0."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from engine.config import EngineConfig
from niyama.v1 import inference_pb2 as pb
from server.config import ServerConfig
from server.listening.deliveries import Deliveries, Delivery
from tests.http2 import HEADERS, Http2
from tests.server.conftest import Running, running_with, within
from tests.server.test_ending import GENERATE, STREAM, WATCH

NULL = EngineConfig(factory="engine.driving.null:build")
MAX_REQUESTS = 2
OK = grpc.StatusCode.OK


@contextlib.asynccontextmanager
async def running(write_timeout_s: float, host: str = "127.0.0.1") -> AsyncIterator[Running]:
    config = ServerConfig(
        host=host,
        port=0,
        max_requests=MAX_REQUESTS,
        write_timeout_s=write_timeout_s,
        drain_s=0.0,
        engine=NULL,
    )
    async with running_with(config) as server:
        yield server


def asked(max_tokens: int = 50) -> Any:
    sampling = pb.Sampling(max_tokens=max_tokens, ignore_eos=True)
    return pb.GenerateRequest(input=pb.Input(text="Once"), sampling=sampling)


async def status_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return OK


async def closed(client: Http2) -> None:
    """Returns when the server has closed the connection."""

    def read() -> None:
        while client.read(60) is not None:
            pass

    await within(asyncio.to_thread(read))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_a_stream_that_is_not_read_is_ended_told_and_counted(host: str) -> None:
    with capture_logs() as lines:
        async with running(0.2, host) as server:
            with await asyncio.to_thread(Http2, f"{host}:{server.server.port}") as client:
                stream = client.call(STREAM, asked().SerializeToString())
                assert await asyncio.to_thread(client.until, HEADERS, stream) is not None
                await within(server.service.calls.idle.wait())
                await closed(client)  # so that gRPC holds nothing of it either
            sample = server.metrics.registry.get_sample_value
            assert sample("niyama_unread_calls_total") == 1
            assert sample("niyama_calls_in_flight") == 0
            assert len((await within(server.stub.Generate(asked()))).completions) == 1
    calls = [line for line in lines if line["event"] == "call"]
    assert [line["outcome"] for line in calls] == ["CANCELLED", "OK"]
    assert [line["result"] for line in calls] == ["cancelled", "on_time"]
    assert calls[0]["error"] == "the client did not read"


async def test_what_nobody_reads_takes_its_place_in_the_queue_until_it_is_ended() -> None:
    """All of its output is there, and none of it is read."""
    async with running(3.0) as server:
        with await asyncio.to_thread(Http2, f"127.0.0.1:{server.server.port}") as client:
            for _ in range(MAX_REQUESTS):
                client.call(STREAM, asked().SerializeToString())
            await server.until(lambda stats: stats.totals.num_finished == MAX_REQUESTS)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await within(server.stub.Generate(asked()))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await closed(client)
            assert len((await within(server.stub.Generate(asked()))).completions) == 1


async def test_calls_that_gave_their_place_and_do_not_read_keep_out_nobody_for_long() -> None:
    """There may be as many of them as the queue has places; then the important were refused, until
    the write timeout had passed.
    """
    low = asked(3000)
    low.qos.importance = pb.IMPORTANCE_LOW
    high = asked(1)
    high.sampling.n = MAX_REQUESTS
    high.qos.importance = pb.IMPORTANCE_HIGH
    async with running(600.0) as server:
        address = f"127.0.0.1:{server.server.port}"
        admission = server.server.ledger.admission
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                client = stack.enter_context(await asyncio.to_thread(Http2, address))
                for _ in range(MAX_REQUESTS):
                    client.call(STREAM, low.SerializeToString())
                await server.until(lambda _: admission.requests.total == MAX_REQUESTS)

                async def served() -> None:
                    """Told to try again, a client does."""
                    while (code := await status_of(server.stub.Generate(high))) is not OK:
                        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

                # After a minute gRPC itself ends a connection that answers no ping.
                await asyncio.wait_for(served(), 40.0)
        await within(server.service.calls.idle.wait())
        sample = server.metrics.registry.get_sample_value
        labels = {"tier": "interactive", "importance": "low", "reason": "displaced"}
        displaced = sample("niyama_refused_total", labels | {"tenant": "other"})
        assert displaced == 2 * MAX_REQUESTS


@pytest.mark.parametrize("method", [GENERATE, WATCH])
async def test_an_answer_and_a_watch_that_are_not_read_hold_nothing_for_ever(method: str) -> None:
    message = asked() if method == GENERATE else health_pb2.HealthCheckRequest()
    async with running(0.2) as server:
        with await asyncio.to_thread(Http2, f"127.0.0.1:{server.server.port}") as client:
            client.call(method, message.SerializeToString())
            await closed(client)


async def test_a_connection_with_a_call_that_is_read_stays() -> None:
    async with running(0.2) as server:
        with await asyncio.to_thread(Http2, f"127.0.0.1:{server.server.port}") as client:
            watch = client.call(WATCH, health_pb2.HealthCheckRequest().SerializeToString())
            client.widen(watch, 1000)
            client.call(STREAM, asked().SerializeToString())
            sample = server.metrics.registry.get_sample_value
            await server.until(lambda _: sample("niyama_unread_calls_total") == 1)
            stream = client.call(STREAM, asked().SerializeToString())  # it still takes calls
            assert await asyncio.to_thread(client.until, HEADERS, stream) is not None


class Context:
    """Of a call as gRPC knows it, as far as deliveries ask."""

    def __init__(self, peer: str = "unix:") -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def add_done_callback(self, callback: object) -> None:
        pass


async def test_only_a_call_whose_same_message_waits_is_ended() -> None:
    """Not one that reads slowly, be it for many times the timeout."""
    deliveries, given_up, context = Deliveries(1.0), [], cast(Any, Context())

    async def begun(name: str) -> Delivery:
        return deliveries.begin(context, lambda: given_up.append(name))

    slow, stuck, waiting, to_go = [
        await asyncio.create_task(begun(name)) for name in ("slow", "stuck", "waiting", "to go")
    ]
    stuck.pending = to_go.pending = ["the same"]
    to_go.patience_s = 0.5
    for i in range(100):
        slow.pending = [i]
        deliveries.sweep(now := i * 0.25)
        assert ("stuck" in given_up, "to go" in given_up) == (now >= 1.0, now >= 0.5)
    waiting.pending, slow.pending = ["now"], None
    for later in (100.0, 100.9, 101.0):
        assert given_up == ["to go", "stuck"]
        deliveries.sweep(later)
    assert given_up == ["to go", "stuck", "waiting"]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """As where all are taken: no more are given."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_sweep_that_finds_no_free_descriptor_closes_the_connection_later() -> None:
    """It ended, and every sweep after it."""
    deliveries = Deliveries(1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), 60)
        accepted, (host, port) = listener.accept()
    with client, accepted:
        context = cast(Any, Context(f"ipv4:{host}:{port}"))

        async def begun() -> Delivery:
            return deliveries.begin(context)

        (await asyncio.create_task(begun())).pending = ["unread"]
        deliveries.sweep(0.0)
        with no_descriptors():
            deliveries.sweep(1.0)
        deliveries.sweep(2.0)
        assert client.recv(1) == b""
