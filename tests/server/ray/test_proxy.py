"""The handlers at Ray's proxy, at a real gRPC server: before them a real client, behind them a
function in the place of Ray, which does as Ray's handlers do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from server import errors
from server.ray.messages import Call, End, Frame
from server.ray.proxy import MOST_TRIES, Relay, Shown
from tests.server.conftest import within

OK = End(0, "", (("cost", "7"),), "one")
LOST = End(grpc.StatusCode.UNAVAILABLE.value[0], "the engine was lost", (), "one")
STREAM = pb.GenerateStreamRequest(input=pb.Input(text="a"), request_id="")
Replicas = Callable[[Call], AsyncIterator[Frame]]


@contextlib.asynccontextmanager
async def proxied(replicas: Replicas) -> AsyncIterator[inference_pb2_grpc.InferenceStub]:
    """A client of a proxy with these replicas. What they raise Ray tells as it does."""

    async def serve(call: Call, shown: Shown) -> AsyncIterator[bytes]:
        try:
            async for frame in replicas(call):
                yield frame.SerializeToString()
        except asyncio.CancelledError:
            shown.set_code(grpc.StatusCode.CANCELLED)
        except RuntimeError as error:
            shown.set_code(grpc.StatusCode.INTERNAL)
            shown.set_details(str(error))

    relay = Relay()
    handlers: dict[str, Any] = relay._method_handlers  # as Ray does
    for path, handler in handlers.items():
        handlers[path] = handler._replace(unary_stream=serve)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((relay,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
    await server.stop(None)


def accepted(request_id: str) -> bytes:
    event = pb.GenerateStreamResponse(accepted=pb.Accepted(request_id=request_id))
    return event.SerializeToString()


def token(text: str) -> bytes:
    return pb.GenerateStreamResponse(tokens=pb.Tokens(text=text)).SerializeToString()


async def test_a_call_crosses_whole() -> None:
    calls: list[Call] = []

    async def replicas(call: Call) -> AsyncIterator[Frame]:
        calls.append(call)
        yield Frame((pb.CountTokensResponse(count=3).SerializeToString(),), OK)

    async with proxied(replicas) as stub:
        request = pb.CountTokensRequest(input=pb.Input(text="abc"))
        rpc = stub.CountTokens(request, metadata=(("niyama-tenant", "acme"),), timeout=30)
        assert (await within(rpc)).count == 3
        assert tuple(await rpc.trailing_metadata()) == OK.trailing
    (call,) = calls
    assert call.method == "/niyama.v1.Inference/CountTokens"
    assert call.message == request.SerializeToString()
    assert ("niyama-tenant", "acme") in call.metadata
    assert call.timeout_s is not None
    assert 0 < call.timeout_s <= 30


async def test_a_status_has_its_details() -> None:
    error = errors.Refused(errors.Refusal.QUEUE_FULL, "full")
    trailing = errors.trailers(error, "", None)

    async def replicas(call: Call) -> AsyncIterator[Frame]:
        yield Frame((), End(error.code.value[0], error.message, trailing, "one"))

    async with proxied(replicas) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await within(stub.GenerateStream(STREAM).read())
    status = rpc_status.from_call(raised.value)
    assert status is not None
    assert [each.type_url.rpartition(".")[2] for each in status.details] == [
        "RetryInfo",
        "ErrorInfo",
    ]


@pytest.mark.parametrize("how", ["by Ray", "by its server"])
async def test_a_request_that_only_waited_is_served_by_another_replica(how: str) -> None:
    """Under the id that its caller was told, and it is told so once."""
    calls: list[Call] = []

    async def replicas(call: Call) -> AsyncIterator[Frame]:
        calls.append(call)
        if len(calls) > 1:
            yield Frame((accepted("id"), token("b")), OK)
            return
        yield Frame((accepted("id"),))
        if how == "by Ray":
            raise RuntimeError("the actor died")
        yield Frame((), LOST)

    async with proxied(replicas) as stub:
        events = await within(_all(stub.GenerateStream(STREAM)))
    assert [each.WhichOneof("event") for each in events] == ["accepted", "tokens"]
    assert pb.GenerateStreamRequest.FromString(calls[1].message).request_id == "id"
    assert calls[1].tried == (set() if how == "by Ray" else {"one"})


async def test_a_stream_that_has_begun_ends_with_a_status() -> None:
    num_calls = 0

    async def replicas(call: Call) -> AsyncIterator[Frame]:
        nonlocal num_calls
        num_calls += 1
        yield Frame((accepted("id"), token("b")))
        raise RuntimeError("the actor died")

    async with proxied(replicas) as stub:
        stream = stub.GenerateStream(STREAM)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await within(_all(stream))
    assert num_calls == 1
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "the replica that served the call was lost"  # no word of Ray's


async def test_a_call_that_loses_every_replica_ends() -> None:
    num_calls = 0

    async def replicas(call: Call) -> AsyncIterator[Frame]:
        nonlocal num_calls
        num_calls += 1
        yield Frame((), LOST)

    async with proxied(replicas) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await within(stub.Generate(pb.GenerateRequest()))
    assert num_calls == MOST_TRIES
    assert raised.value.details() == LOST.details


async def test_a_call_that_its_client_cancels_is_cancelled_at_the_replica() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def replicas(call: Call) -> AsyncIterator[Frame]:
        yield Frame((accepted("id"),))
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with proxied(replicas) as stub:
        stream = stub.GenerateStream(STREAM)
        await within(began.wait())
        stream.cancel()
        await within(ended.wait())


async def test_a_call_is_cancelled_though_its_client_does_not_read() -> None:
    """Ray is told so by a CancelledError, where it waits for its replica, and by nothing else."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def replicas(call: Call) -> AsyncIterator[Frame]:
        for _ in range(100):
            yield Frame((token("b" * 65536),))
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    async with proxied(replicas) as stub:
        stream = stub.GenerateStream(STREAM)
        await within(began.wait())
        stream.cancel()
        await within(ended.wait())


async def _all(stream: Any) -> list[pb.GenerateStreamResponse]:
    return [event async for event in stream]
