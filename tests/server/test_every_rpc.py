"""Every RPC passes admission, is counted and logged, and none outstays a drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from google.rpc import error_details_pb2

from engine.config import EngineConfig
from engine.deciding.questions import Question
from niyama.v1 import inference_pb2 as pb
from server.app import Server
from server.config import ServerConfig
from server.serving import MAX_QUESTIONS
from tests.server.conftest import Running, within
from tests.server.test_service import PROMPT, failure, read

ASKS: dict[str, tuple[Any, bool]] = {  # and whether a server that drains refuses it
    "Generate": (pb.GenerateRequest(input=PROMPT, sampling=pb.Sampling(max_tokens=1)), True),
    "GenerateStream": (
        pb.GenerateStreamRequest(input=PROMPT, sampling=pb.Sampling(max_tokens=1)),
        True,
    ),
    "CountTokens": (pb.CountTokensRequest(input=PROMPT), True),
    "Estimate": (pb.EstimateRequest(prompt_tokens=3), True),
    "Explain": (pb.ExplainRequest(request_id="known"), False),
    "GetServerInfo": (pb.GetServerInfoRequest(), False),
    "GetLoad": (pb.GetLoadRequest(), False),
}


@pytest_asyncio.fixture
async def own() -> AsyncIterator[Running]:
    """A server of the test's own, before an engine that computes nothing."""
    engine = EngineConfig(factory="engine.driving.null:build")
    server = Server(ServerConfig(port=0, engine=engine))
    await within(server.start())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Running(server, channel)
    await within(server.stop())


async def ask(running: Running, rpc: str) -> None:
    call = getattr(running.stub, rpc)(ASKS[rpc][0], metadata=(("niyama-tenant", "acme"),))
    await (read(call) if rpc == "GenerateStream" else within(call))


def counted(running: Running, rpc: str, outcome: str) -> float:
    labels = {"rpc": rpc, "outcome": outcome}
    found = running.metrics.registry.get_sample_value("niyama_rpcs_total", labels)
    return found or 0.0


async def test_every_rpc_is_counted_logged_and_refused_when_a_server_drains(own: Running) -> None:
    """Those which tell an operator what is going on answer on."""
    story = pb.GenerateRequest(input=PROMPT, sampling=pb.Sampling(max_tokens=1), request_id="known")
    await within(own.stub.Generate(story, metadata=(("niyama-tenant", "acme"),)))
    for rpc in ASKS:
        before = counted(own, rpc, "OK")
        with structlog.testing.capture_logs() as lines:
            await ask(own, rpc)
            await within(own.service.calls.idle.wait())
        (line,) = [line for line in lines if line["event"] == "call"]
        assert (line["rpc"], line["outcome"], line["tenant"]) == (rpc, "OK", "acme")
        assert counted(own, rpc, "OK") == before + 1
    await within(own.server.drain())
    for rpc, (_, is_refused) in ASKS.items():
        if is_refused:
            detail = error_details_pb2.ErrorInfo()
            error = await failure(ask(own, rpc), detail)
            assert (error.code(), detail.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            await within(own.service.calls.idle.wait())  # it is counted once it has been told
            assert counted(own, rpc, "UNAVAILABLE") == 1
        else:
            await ask(own, rpc)


async def test_questions_to_an_engine_are_limited_and_each_tenant_may_ask(
    own: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, go_on = own.server.engine.link.ask, asyncio.Event()

    async def slow(question: Question[Any]) -> Any:
        await go_on.wait()
        return await answer(question)

    monkeypatch.setattr(own.server.engine.link, "ask", slow)
    asks = [asyncio.create_task(ask(own, "Estimate")) for _ in range(MAX_QUESTIONS // 2 + 1)]
    done, _ = await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = done
    error = refused.exception()
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    other = asyncio.create_task(within(own.stub.Estimate(ASKS["Estimate"][0])))
    go_on.set()
    await within(asyncio.gather(other, *(task for task in asks if task is not refused)))
    labels = ("unknown", "unknown", "too_much", "other")  # nobody has asked what it is
    assert own.metrics.refused.labels(*labels)._value.get() == 1
