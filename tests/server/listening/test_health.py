"""The health service by itself, on a gRPC server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.listening.deliveries import Deliveries
from server.listening.health import Health
from tests.http2 import DATA, HEADERS, Http2
from tests.server.conftest import until, within

STATUS = health_pb2.HealthCheckResponse
WRITE_S = 60.0
MOST = 8
WATCH = "/grpc.health.v1.Health/Watch"


class Served:
    def __init__(self, health: Health, address: str, stub: Any) -> None:
        self.health, self.address, self.stub = health, address, stub


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    health = Health(("", "known"), Deliveries(WRITE_S), most_watches=MOST)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Served(health, address, health_pb2_grpc.HealthStub(channel))
    await within(server.stop(0))


def asked(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_check_and_list_read_the_status_and_know_what_they_do_not_know(
    served: Served,
) -> None:
    answer = await within(served.stub.Check(asked("known")))
    assert answer.status == STATUS.NOT_SERVING
    served.health.set(serving=True)
    assert (await within(served.stub.Check(asked("")))).status == STATUS.SERVING
    listed = await within(served.stub.List(health_pb2.HealthListRequest()))
    assert {name: each.status for name, each in listed.statuses.items()} == {
        "": STATUS.SERVING,
        "known": STATUS.SERVING,
    }
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(served.stub.Check(asked("unknown")))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_of_an_unknown_service_says_so_and_goes_on(served: Served) -> None:
    watch = served.stub.Watch(asked("unknown"))
    assert (await within(watch.read())).status == STATUS.SERVICE_UNKNOWN
    served.health.set(serving=True)
    other = served.stub.Watch(asked("known"))
    assert (await within(other.read())).status == STATUS.SERVING
    assert not watch.done()
    watch.cancel()
    other.cancel()


async def test_after_the_shutdown_nothing_serves_any_more(served: Served) -> None:
    served.health.set(serving=True)
    watch = served.stub.Watch(asked("known"))
    assert (await within(watch.read())).status == STATUS.SERVING
    served.health.shut_down()
    served.health.set(serving=True)
    assert (await within(watch.read())).status == STATUS.NOT_SERVING
    assert (await within(served.stub.Check(asked("known")))).status == STATUS.NOT_SERVING
    watch.cancel()


async def test_a_slow_watcher_gets_the_newest_status_and_holds_up_no_other(
    served: Served,
) -> None:
    def blocking(call: Callable[..., Any], *arguments: Any) -> Any:
        return asyncio.to_thread(call, *arguments)

    with Http2(served.address) as client:
        message = asked("known").SerializeToString()
        slow = await blocking(client.call, WATCH, message)
        assert await blocking(client.until, HEADERS, slow) is not None
        quick = served.stub.Watch(asked("known"))
        told = [(await within(quick.read())).status]
        for serving in (True, False, True, False, True):
            served.health.set(serving=serving)
            told.append((await within(quick.read())).status)
        assert told == [STATUS.NOT_SERVING, STATUS.SERVING] * 3
        # One was on its way when the window closed: then comes what holds now.
        client.widen(slow, 1 << 16)
        read = [await blocking(client.until, DATA, slow) for _ in range(2)]
        assert [STATUS.FromString(frame.payload[5:]).status for frame in read] == told[:2]
        assert await blocking(client.until, DATA, slow, 0.1) is None
        quick.cancel()


async def test_whoever_watches_the_most_gives_way_and_nobody_else(served: Served) -> None:
    """Each watch takes memory, and nobody is asked who watches."""
    own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    async with grpc.aio.insecure_channel(served.address, options=own) as channel:
        mine = served.stub.Watch(asked("known"))
        assert (await within(mine.read())).status == STATUS.NOT_SERVING
        stub: Any = health_pb2_grpc.HealthStub(channel)
        many = [asyncio.create_task(seen(stub.Watch(asked("known")))) for _ in range(3 * MOST)]
        await until(lambda: sum(each.done() for each in many) == 2 * MOST + 1)
        served.health.set(serving=True)
        assert (await within(mine.read())).status == STATUS.SERVING
        served.health.set(serving=False)
        assert (await within(mine.read())).status == STATUS.NOT_SERVING
        assert sum(each.done() for each in many) == 2 * MOST + 1
        for each in many:
            if each.done():
                error = each.exception()
                assert isinstance(error, grpc.aio.AioRpcError)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "watch health" in (error.details() or "")
            each.cancel()
        mine.cancel()
        await asyncio.gather(*many, return_exceptions=True)


async def seen(watch: Any) -> None:
    """Reads all that a watch is told."""
    async for _ in watch:
        pass
