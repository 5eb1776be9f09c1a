"""Nothing a caller sends stops the others: a server process under what once did.

The gaps that are allowed are many times what a busy machine makes, and a fraction of what there
were: 6 to 48 seconds.
"""

from __future__ import annotations

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from proto.niyama.v1 import inference_pb2 as pb
from tests.server.attacks import bystander, memory_mib, message, refusal, until
from tests.server.conftest import within
from tests.server.test_service import _Ended
from tests.server_process import ServerProcess

MOST_GAP_S = 2.0
MOST_GROWTH_MIB = 400.0


def chat(count: int, role: str = "") -> pb.Input:
    return pb.Input(chat=pb.Chat(messages=[pb.ChatMessage(role=role)] * count))


# Field 2047 of a message that has none: bytes, of which nobody knows what they mean.
UNKNOWN = message() + b"\xfa\x7f" + b"\x80\x80\x80\x01" + bytes(2 << 20)
LARGE = {
    "stop tokens": (
        "sampling.stop_token_ids",
        message(sampling=pb.Sampling(stop_token_ids=[4000] * 1_500_000)),
    ),
    "stop strings": ("sampling.stop", message(sampling=pb.Sampling(stop=["a"] * 1_300_000))),
    "token ids": (
        "input.token_ids",
        message(input=pb.Input(token_ids=pb.TokenIds(ids=[5] * 4_000_000))),
    ),
    "text": ("input.text", message(input=pb.Input(text="And God said, " * 280_000))),
    "messages": ("input.chat.messages", message(input=chat(400_000, role="user"))),
    "empty messages": ("input.chat.messages", message(input=chat(2_000_000))),
    "role": ("input.chat.messages[0].role", message(input=chat(1, role="x" * 4_000_000))),
    "request id": ("request_id", message(request_id="x" * 1_000_000)),
    "application": (
        "qos.application",
        message(qos=pb.QualityOfService(application="x" * 4_000_000)),
    ),
    "tier": ("qos.tier", message(qos=pb.QualityOfService(tier="x" * 4_000_000))),
    "nested groups": ("", b"\x7b" * 4_000_000),
    "no message": ("", b"\xff" * 4_000_000),
    "unknown field": ("", UNKNOWN),
}


def field_of(error: grpc.aio.AioRpcError) -> str:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    status = rpc_status.from_call(_Ended(error))
    detail = error_details_pb2.BadRequest()
    assert status is not None
    assert status.details[0].Unpack(detail)
    return detail.field_violations[0].field


@pytest.mark.parametrize(("field", "raw"), LARGE.values(), ids=LARGE)
async def test_a_large_message_is_refused_by_its_field_and_nobody_notices(
    server: ServerProcess, field: str, raw: bytes
) -> None:
    process = psutil.Process(server.child.pid)
    before, logged = memory_mib(process), len(server.log)
    async with grpc.aio.insecure_channel(server.address) as channel:
        async with bystander(server.address) as others:
            error = await refusal(channel, raw)
        assert field_of(error) == field
    assert others.worst_gap_s() < MOST_GAP_S
    assert memory_mib(process) - before < MOST_GROWTH_MIB
    assert len(server.log) - logged < 100_000


@pytest.mark.parametrize("rpc", ["CountTokens", "Estimate", "Explain", "GetServerInfo"])
async def test_no_rpc_is_stopped_by_a_large_message(server: ServerProcess, rpc: str) -> None:
    _, raw = LARGE["stop tokens"]  # to these RPCs a field that they do not know, mostly
    async with grpc.aio.insecure_channel(server.address) as channel:
        async with bystander(server.address) as others:
            error = await refusal(channel, raw, rpc)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert others.worst_gap_s() < MOST_GAP_S


@pytest.mark.parametrize("raw", [b"\x0a\x00" * 2_000_000, b"\xff" * 40], ids=["large", "none"])
async def test_the_standard_services_read_no_long_message_either(
    server: ServerProcess, raw: bytes
) -> None:
    """It is one for what nobody knows."""
    reflect = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    read = reflection_pb2.ServerReflectionResponse.FromString
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        bystander(server.address) as others,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await within(channel.unary_unary("/grpc.health.v1.Health/Check")(raw))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        asked = channel.stream_stream(reflect, response_deserializer=read)(iter([raw]))
        code = (await within(asked.read())).error_response.error_code
        assert code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert others.worst_gap_s() < MOST_GAP_S


async def test_a_bad_request_id_is_not_logged_whole(server: ServerProcess) -> None:
    logged = len(server.log)
    async with grpc.aio.insecure_channel(server.address) as channel:
        error = await refusal(channel, message(request_id="x" * 30_000))
        assert field_of(error) == "request_id"
        await until(lambda: "... (30000 characters)" in server.log[logged:])
    assert len(server.log) - logged < 2000


async def test_what_is_no_message_at_all_is_an_invalid_argument(server: ServerProcess) -> None:
    """Not UNKNOWN with the name of a Python class."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        for rpc in ("Generate", "CountTokens", "Estimate", "Explain", "GetServerInfo"):
            error = await refusal(channel, b"\xff" * 40, rpc)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "the message is no niyama.v1." in (error.details() or "")
