"""A request that its policy turns away, or ends, as a live server tells it."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from engine.config import EngineConfig
from niyama.v1 import inference_pb2 as pb
from server.config import ServerConfig
from server.errors import MOST_RETRY_AFTER_S, PUSHBACK_KEY, SPREAD
from tests.engine.driving.engines import DEAR
from tests.server.conftest import running_with, within
from tests.server.test_service import details, failure

pytestmark = pytest.mark.asyncio(loop_scope="session")


def asked(ttlt_s: float, refuse_if_late: bool = False) -> pb.GenerateRequest:
    ttlt = Duration()
    ttlt.FromNanoseconds(int(1e9 * ttlt_s))
    return pb.GenerateRequest(
        input=pb.Input(text="Once"),
        sampling=pb.Sampling(max_tokens=2, ignore_eos=True),
        qos=pb.QualityOfService(
            deadline=pb.DeadlineTargets(ttlt=ttlt), refuse_if_late=refuse_if_late
        ),
    )


async def test_who_cannot_be_on_time_is_refused_and_told_when_to_try_again() -> None:
    """A microsecond is too short, an hour is not, as Estimate says, too. What was refused leaves
    nothing behind.
    """
    engine = EngineConfig(factory="engine.driving.null:build", policy="edf-reject")
    async with running_with(ServerConfig(port=0, engine=engine)) as running:
        detail = error_details_pb2.RetryInfo()
        error = await failure(running.stub.Generate(asked(1e-6)), detail)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "rejected: it could not be on time"
        assert 1000 <= detail.retry_delay.ToMilliseconds() <= 1500
        await within(running.service.calls.idle.wait())
        for ttlt_s, is_let_in in ((1e-6, False), (3600.0, True)):
            about = pb.EstimateRequest(prompt_tokens=1, output_tokens=2, qos=asked(ttlt_s).qos)
            admission = (await within(running.stub.Estimate(about))).admission
            assert admission.admitted == is_let_in
            told = ("", "") if is_let_in else ("rejected", error.details())
            assert (admission.reason, admission.detail) == told
        answer = await within(running.stub.Generate(asked(3600.0)))
        assert answer.completions[0].finished.usage.output_tokens == 2
        stats = await running.stats()
        assert (stats.totals.num_submitted, stats.totals.num_finished) == (2, 2)


async def test_when_to_try_again_is_what_the_engine_forecasts() -> None:
    """A prompt takes a second for each token, by the engine's belief: of ten it would be late by
    ten seconds or more, of 300 by more than what anybody is told to wait.
    """
    engine = EngineConfig(factory=DEAR, policy="edf-reject")
    async with running_with(ServerConfig(port=0, engine=engine)) as running:
        told = []
        for num_tokens in (10, 300):
            request, detail = asked(0.5), error_details_pb2.RetryInfo()
            request.input.token_ids.ids.extend([5] * num_tokens)
            await failure(running.stub.Generate(request), detail)
            about = pb.EstimateRequest(prompt_tokens=num_tokens, output_tokens=2, qos=request.qos)
            admission = (await within(running.stub.Estimate(about))).admission
            least_s = admission.retry_after.ToMilliseconds() / 1000
            told_s = detail.retry_delay.ToMilliseconds() / 1000
            assert least_s - 0.001 <= told_s <= (1 + SPREAD) * least_s
            told.append(least_s)
        assert 10 <= told[0] < MOST_RETRY_AFTER_S / (1 + SPREAD) == told[1]


async def test_who_has_waited_too_long_is_told_so_and_when_to_try_again() -> None:
    """Both completions are too late when they come, and one has a place in the batch: the other
    waits for longer than the longest wait, which is over at once.
    """
    engine = EngineConfig(
        factory="engine.driving.null:build", max_batch_size=1, longest_wait_s=1e-9
    )
    async with running_with(ServerConfig(port=0, engine=engine)) as running:
        request, detail = asked(1e-6), error_details_pb2.RetryInfo()
        request.sampling.n = 2
        error = await failure(running.stub.Generate(request), detail)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        why = "waited too long: there was no time for it until 1e-09 s after its deadline"
        assert error.details() == why
        assert 1000 <= detail.retry_delay.ToMilliseconds() <= 1500
        await within(running.service.calls.idle.wait())


async def test_who_asks_to_be_refused_rather_than_late_is_before_anything_is_sent() -> None:
    """By the forecast, as Estimate says, too; streamed or not, of one completion or several. It is
    counted and told as that, and gRPC is not to try again behind the caller's back.
    """
    async with running_with(
        ServerConfig(port=0, engine=EngineConfig(factory=DEAR))  # a second for each token
    ) as running:
        late = asked(5.0, refuse_if_late=True)
        late.input.token_ids.ids.extend([5] * 10)
        about = pb.EstimateRequest(prompt_tokens=10, output_tokens=2, qos=late.qos)
        admission = (await within(running.stub.Estimate(about))).admission
        assert (admission.admitted, admission.reason) == (False, "would_be_late")
        assert "its last token is expected after" in admission.detail
        stream = pb.GenerateStreamRequest.FromString(late.SerializeToString())
        late.request_id = "late"
        calls = [running.stub.Generate(late), running.stub.GenerateStream(stream).read()]
        for call in calls:
            error = await failure(call)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert dict(error.trailing_metadata() or ())[PUSHBACK_KEY] == "-1"
            retry, why = details(error)
            assert 1 <= retry.retry_delay.ToSeconds() <= MOST_RETRY_AFTER_S
            assert why.reason == "WOULD_BE_LATE"
            assert 5000 < int(why.metadata["expected_ttlt_ms"]) < 60_000
        story = await within(running.stub.Explain(pb.ExplainRequest(request_id="late")))
        assert story.result == "refused"
        assert story.summary.startswith("Refused on arrival: its last token is expected after")
        labels = ("explicit", "normal", "would_be_late", "other")
        await within(running.service.calls.idle.wait())
        assert running.metrics.refused.labels(*labels)._value.get() == 2

        fits = asked(5.0, refuse_if_late=True)
        fits.input.token_ids.ids.extend([5])
        assert (await within(running.stub.Generate(fits))).completions
        fits.sampling.n = 16
        error = await failure(running.stub.Generate(fits))
        assert details(error)[1].reason == "WOULD_BE_LATE"
        stats = await running.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert len(running.server.ledger.admission) == 0
