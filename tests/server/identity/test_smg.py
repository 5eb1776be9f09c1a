"""VllmEngine as everybody: whose calls a gateway may end, and what a stranger learns."""

from __future__ import annotations

import os
import signal
from typing import Any

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import common_pb2 as common

from tests.server.conftest import front_end_of, until, within
from tests.server.identity.conftest import Walled
from tests.server.identity.test_walk import STRANGERS, UNKNOWN, strange
from tests.server.smg.asking import request_of, stub_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def code_of(call: Any) -> str:
    """How a call ends that is read, or awaited."""
    try:
        await within(call.read() if hasattr(call, "read") else call)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize("who", STRANGERS)
async def test_a_stranger_is_told_nothing(asking: Walled, who: str) -> None:
    shows = (*strange(asking, who), ("niyama-tenant", "acme"))
    async with asking.channel() as channel:
        stub = stub_of(channel)
        for rpc, request in (
            ("Generate", request_of("any")),
            ("Abort", vllm.AbortRequest(request_ids=["any"])),
            ("HealthCheck", vllm.HealthCheckRequest()),
            ("GetModelInfo", vllm.GetModelInfoRequest()),
            ("GetServerInfo", vllm.GetServerInfoRequest()),
            ("GetTokenizer", common.GetTokenizerRequest()),
        ):
            assert await code_of(getattr(stub, rpc)(request, metadata=shows)) == UNKNOWN, rpc


async def test_a_call_is_ended_by_its_own_caller_alone(asking: Walled) -> None:
    """Another gateway, its own tenant and an operator have made no such call; and who speaks for
    none but itself is not told of it.
    """
    front_end = front_end_of(asking.server)
    link = asking.server.engine.link
    assert link.info is not None
    request = vllm.AbortRequest(request_ids=["edge-s"])
    async with asking.channel() as channel:
        stub = stub_of(channel)
        os.kill(link.info.pid, signal.SIGSTOP)  # so that the call goes on
        try:
            metadata = (*asking.shows("edge"), ("niyama-tenant", "acme"))
            call = stub.Generate(request_of("edge-s"), metadata=metadata)
            await until(lambda: bool(link.in_flight))
            for who, count in (("edge", 1), ("zen", 0), ("ops", 1)):  # of what it may know
                info = vllm.GetServerInfoRequest()
                told = await within(stub.GetServerInfo(info, metadata=asking.shows(who)))
                assert told.active_requests == count, who
            for who in ("zen", "acme", "ops", "operator"):
                await within(stub.Abort(request, metadata=asking.shows(who)))
            zen = (*asking.shows("edge"), ("niyama-tenant", "zen"))
            await within(stub.Abort(request, metadata=zen))
            assert link.in_flight
            await within(stub.Abort(request, metadata=asking.shows("edge")))
            assert await code_of(call) == "CANCELLED"
        finally:
            os.kill(link.info.pid, signal.SIGCONT)
    await within(front_end.serving.calls.idle.wait())
