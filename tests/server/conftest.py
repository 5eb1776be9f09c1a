"""A server inside the tests' own process, with its engine process and the embedded model, so that
tests can look at the engine's counters.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.config import EngineConfig
from engine.deciding.questions import Stats
from engine.deciding.stats import SchedulerStats
from engine.linking.link import EngineLink
from niyama.v1 import inference_pb2_grpc
from server.app import Server
from server.config import ServerConfig
from server.frontend import SERVICE, FrontEnd

WAIT_S = 60.0
BATCH = 4  # sequences in an iteration: few, so that a queue is easily had
MAX_REQUESTS = 8
T = TypeVar("T")


async def within(work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, WAIT_S)


async def until(is_true: Callable[[], bool]) -> None:
    """Looks again and again: for what nobody tells of."""

    async def look() -> None:
        while not is_true():  # noqa: ASYNC110  # it happens in other tasks and processes
            await asyncio.sleep(0.01)

    await within(look())


async def until_stats(
    engine: EngineLink, is_true: Callable[[SchedulerStats], bool]
) -> SchedulerStats:
    """Asks the engine, once an iteration, until its counters are as wanted."""

    async def ask() -> SchedulerStats:
        while not is_true(stats := (await engine.ask(Stats())).scheduler):
            pass
        return stats

    return await within(ask())


def front_end_of(server: Server) -> FrontEnd:
    """The only one of a server, which runs in the tests' own process."""
    assert isinstance(server.front_ends, FrontEnd)
    return server.front_ends


class Stubs:
    """Of both services."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.inference: Any = inference_pb2_grpc.InferenceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)


class Ended:
    """What grpc_status reads, from an AioRpcError."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.details = error.code, error.details
        self.trailing_metadata = error.trailing_metadata


class Running:
    """A server of this process and a channel to it."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.address = f"{server.config.host}:{server.port}"
        front_end = front_end_of(server)
        self.service, self.metrics = front_end.serving, front_end.metrics
        self.channel = channel
        stubs = Stubs(channel)
        self.stub, self.health = stubs.inference, stubs.health

    async def stats(self) -> SchedulerStats:
        """The engine's own counters."""
        return (await within(self.server.engine.link.ask(Stats()))).scheduler

    async def until(self, is_true: Callable[[SchedulerStats], bool]) -> SchedulerStats:
        """See `until_stats`."""
        return await until_stats(self.server.engine.link, is_true)

    async def status(self, service: str = SERVICE) -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        response = await within(self.health.Check(request))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


@contextlib.asynccontextmanager
async def running_with(config: ServerConfig) -> AsyncIterator[Running]:
    """Such a server of this process, for as long as the block."""
    server = Server(config)
    await within(server.start())
    try:
        async with grpc.aio.insecure_channel(f"{config.host}:{server.port}") as channel:
            yield Running(server, channel)
    finally:
        await within(server.stop())


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running() -> AsyncIterator[Running]:
    """Tests that use it run on the session's event loop and leave nothing in flight."""
    engine = EngineConfig(
        max_batch_size=BATCH,
        torch_threads=1,
        calibration_s=1.0,
        compile="off",
        dtype="float32",  # the same tokens, whoever else is in the batch
    )
    config = ServerConfig(port=0, max_requests=MAX_REQUESTS, load_reports=True, engine=engine)
    async with running_with(config) as server:
        yield server
