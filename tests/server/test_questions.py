"""Estimate, Explain and what a stream says of its prospects, on a real server."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from niyama.client.client import AsyncClient
from niyama.client.errors import NotFound
from niyama.client.values import Accepted, Finished, Relegated, Tokens
from niyama.v1 import inference_pb2 as pb
from tests.server.conftest import Running, within
from tests.server.test_service import failure

pytestmark = pytest.mark.asyncio(loop_scope="session")

IMPOSSIBLE = pb.QualityOfService(deadline=pb.DeadlineTargets(ttlt=Duration(nanos=1_000_000)))


def asked(request_id: str, **fields: Any) -> pb.GenerateRequest:
    sampling = pb.Sampling(seed=1, max_tokens=6, ignore_eos=True, n=fields.pop("n", 1))
    return pb.GenerateRequest(
        input=pb.Input(text="Once"), sampling=sampling, request_id=request_id, **fields
    )


async def explained(running: Running, request_id: str) -> pb.ExplainResponse:
    request = pb.ExplainRequest(request_id=request_id)
    return await within(running.stub.Explain(request))


async def test_explain_tells_a_request_s_decisions_since_its_arrival(running: Running) -> None:
    request = asked("told", qos=pb.QualityOfService(tier="batch"))
    response = await within(running.stub.Generate(request))
    story = await explained(running, "told")
    assert story.request_id == "told"
    assert story.targets == response.targets
    kinds = [decision.kind for decision in story.decisions]
    assert (kinds[0], kinds[-1]) == ("admitted", "finished")
    assert {"chunk", "first_token"} <= set(kinds)
    instants = [decision.at.ToNanoseconds() for decision in story.decisions]
    assert instants[0] >= 0
    assert instants == sorted(instants)
    ttlt = response.completions[0].finished.timings.ttlt.ToNanoseconds()
    assert instants[-1] == pytest.approx(ttlt, abs=1e3)
    chunk = next(d for d in story.decisions if d.kind == "chunk")
    assert chunk.HasField("predicted_at")
    assert chunk.values["tokens"] == response.completions[0].finished.usage.prompt_tokens
    assert story.summary.startswith("On time")


@pytest.mark.parametrize(
    ("qos", "source"),
    [
        (pb.QualityOfService(tier="batch"), pb.TARGET_SOURCE_TIER),
        (IMPOSSIBLE, pb.TARGET_SOURCE_REQUEST),
        (None, pb.TARGET_SOURCE_DEFAULT),
    ],
    ids=["tier", "request", "default"],
)
async def test_explain_says_where_the_targets_came_from(
    running: Running, qos: pb.QualityOfService | None, source: pb.TargetSource
) -> None:
    response = await within(running.stub.Generate(asked("whence", qos=qos)))
    story = await explained(running, "whence")
    assert story.targets == response.targets
    assert story.targets.source == source


async def test_the_first_of_several_completions_speaks_for_the_call(running: Running) -> None:
    await within(running.stub.Generate(asked("pair", n=2)))
    assert (await explained(running, "pair")).request_id == "pair/0"
    assert (await explained(running, "pair/1")).request_id == "pair/1"


async def test_a_request_that_nobody_remembers_is_not_found(running: Running) -> None:
    detail = error_details_pb2.ErrorInfo()
    error = await failure(explained(running, "never"), detail)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert detail.reason == "UNKNOWN_REQUEST"


async def test_an_estimate_predicts_without_a_trace(running: Running) -> None:
    before = await running.stats()

    async def estimate(prompt: int, output: int, **qos: Any) -> pb.EstimateResponse:
        request = pb.EstimateRequest(
            prompt_tokens=prompt, output_tokens=output, qos=pb.QualityOfService(**qos)
        )
        return await within(running.stub.Estimate(request))

    easy = await estimate(10, 5, tier="batch")
    assert easy.targets.source == pb.TARGET_SOURCE_TIER
    assert easy.forecast.on_time
    assert 0 < easy.forecast.ttft.ToNanoseconds() <= easy.forecast.ttlt.ToNanoseconds()
    wordy = await estimate(10, 500, tier="batch")
    assert wordy.forecast.ttlt.ToNanoseconds() > 10 * easy.forecast.ttlt.ToNanoseconds()
    long = await estimate(4000, 5, tier="batch")
    assert long.forecast.ttft.ToNanoseconds() > easy.forecast.ttft.ToNanoseconds()
    assert not (await estimate(4000, 5, deadline=IMPOSSIBLE.deadline)).forecast.on_time
    default = await estimate(10, 5)
    assert default.targets.source == pb.TARGET_SOURCE_DEFAULT  # not this call's own deadline
    assert (await running.stats()).totals.num_submitted == before.totals.num_submitted


async def test_an_estimate_beyond_the_context_names_its_field(running: Running) -> None:
    detail = error_details_pb2.BadRequest()
    error = await failure(running.stub.Estimate(pb.EstimateRequest(prompt_tokens=2**31)), detail)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail.field_violations[0].field == "prompt_tokens"


async def test_a_hopeless_request_hears_so_at_once_is_relegated_and_finishes(
    running: Running,
) -> None:
    async with AsyncClient(f"127.0.0.1:{running.server.port}") as client:
        stream = client.generate("Once", ttlt=1e-3, max_tokens=4, ignore_eos=True)
        events = [event async for event in stream.events()]
        kinds = [type(event) for event in events]
        assert kinds[:2] == [Accepted, Relegated]
        assert set(kinds[2:]) == {Tokens, Finished}
        accepted, relegated, finished = events[0], events[1], events[-1]
        assert isinstance(accepted, Accepted)
        assert isinstance(relegated, Relegated)
        assert isinstance(finished, Finished)
        assert accepted.forecast is not None
        assert not accepted.forecast.on_time
        assert relegated.reason
        assert relegated.expected_ttlt is not None
        assert relegated.expected_ttlt > 1e-3
        assert finished.relegated
        assert not finished.on_time
        story = await client.explain(accepted.request_id)
    assert "relegated" in [decision.kind for decision in story.decisions]
    assert story.summary.startswith("Late: TTLT")
    assert "relegated" in story.summary


async def test_a_caller_may_give_a_relegated_request_up(running: Running) -> None:
    async with AsyncClient(f"127.0.0.1:{running.server.port}") as client:
        request = {"ttlt": 1e-3, "max_tokens": 3000, "ignore_eos": True}
        stream = client.generate("Once", request_id="given-up", **request)  # type: ignore[arg-type]  # spelled above
        async for event in stream.events():
            if isinstance(event, Relegated):
                break
        stream.cancel()
        await within(running.service.calls.idle.wait())
        stats = await running.stats()
        assert stats.pages_free == stats.pages_total
        story = await client.explain("given-up")
        assert story.summary.startswith("Late: its caller left after")
        with pytest.raises(NotFound):
            await client.explain("given-down")
