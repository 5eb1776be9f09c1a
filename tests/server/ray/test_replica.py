"""What a replica does with the answer of its server, by real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.server.conftest import within

METHOD = "/service/Method"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as Ray is imported
async def test_an_answer_is_over_where_its_call_is_ended_from_here() -> None:
    """As where a replica is to go whose server has not ended its calls in time."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from server.ray.replica import Answer

    async def one(request: bytes, context: object) -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    server = grpc.aio.server()
    handlers = {"Method": grpc.unary_stream_rpc_method_handler(one)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("service", handlers)]  # type: ignore[arg-type]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    rpc = channel.unary_stream(METHOD, None, None)(b"")
    answer = Answer(rpc)
    reading = asyncio.create_task(answer.read())
    assert await within(answer.next()) == ((b"one",), False)
    await channel.close(None)
    assert await within(answer.next()) == ((), True)
    assert await rpc.code() is grpc.StatusCode.CANCELLED
    await asyncio.gather(reading, return_exceptions=True)
    await server.stop(None)
