"""Spans of calls: a real server's, kept in memory or sent to a collector that is there, slow or
gone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog

from engine.deciding.budget import Budget
from engine.deciding.outcome import Fate
from engine.deciding.request import Request, Sampling
from engine.deciding.timeline import Decision, End, Timeline
from engine.linking.errors import EngineLost
from niyama.v1 import inference_pb2 as pb
from server.spans import events_of, spans_of
from server.tracing import Tracing, provider_of
from tests.server.conftest import Running, until, within
from tests.server.test_service import asked, failure, read
from tests.server.test_trace_context import PARENT, SPAN, TRACE

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2 as collector_pb,
)
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2_grpc as collector_grpc,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

METHOD = "niyama.v1.Inference/GenerateStream"
EXPORTING = ("tracing", "Otel")  # with what the names of threads that send spans begin
SAMPLED = (("traceparent", PARENT), ("tracestate", "vendor=1"))


@pytest.fixture(autouse=True)
def nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread of a test sends on, with random pauses, while other tests run in this process."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(EXPORTING):
            thread.join(60)
            assert not thread.is_alive()


# What is made of a timeline


def timeline(**end: Any) -> Timeline:
    request = Request("a", range(7), Sampling(max_tokens=3), arrived_at=100.0)
    told: dict[str, Any] = {"queue_s": 1.0, "ttft_s": 3.0, "worst_tbt_s": 0.5, "ttlt_s": 5.0} | end
    budget = Budget(0.25, 0.75, 2.0, 1.5, 0.5)
    ended = End(105.0, Fate.LATE, "length", "", 3, budget, **told)
    decisions = [
        Decision(100.0, "admitted", "", {"ahead_s": 4.0}, 102.0),
        Decision(101.0, "chunk", "", {"tokens": 7.0}),
        Decision(101.5, "relegated", "its deadline is lost", {}),
        Decision(103.0, "first_token", "", {}),
        Decision(105.0, "finished", "length", {}),
    ]
    return Timeline(request, decisions, ended)


def test_spans_follow_on_each_other_and_are_as_long_as_the_engine_says() -> None:
    spans = spans_of(timeline(), 0)
    assert [(each.name, each.began_at, each.ended_at) for each in spans] == [
        ("queue", 100.0, 101.0),
        ("prefill", 101.0, 103.0),
        ("decode", 103.0, 105.0),
    ]
    assert spans[1].attributes["gen_ai.usage.input_tokens"] == 7
    assert spans[2].attributes["niyama.held_s"] == 0.5


def test_what_has_not_begun_has_no_span() -> None:
    waited = timeline(queue_s=None, ttft_s=None, worst_tbt_s=None, ttlt_s=None)
    assert [(each.name, each.ended_at) for each in spans_of(waited, 0)] == [("queue", 105.0)]
    silent = timeline(ttft_s=None, worst_tbt_s=None, ttlt_s=None)
    assert [each.name for each in spans_of(silent, 0)] == ["queue", "prefill"]
    assert spans_of(Timeline(waited.request), 0) == []


def test_decisions_are_events_with_what_was_predicted() -> None:
    admitted, relegated = events_of(timeline(), 2)
    assert admitted.attributes == {
        "niyama.completion": 2,
        "niyama.ahead_s": 4.0,
        "niyama.predicted_s": 2.0,
    }
    assert (relegated.name, relegated.at) == ("relegated", 101.5)
    assert relegated.attributes["niyama.detail"] == "its deadline is lost"


# A real server


class Traced:
    """A server whose spans are kept in memory."""

    def __init__(self, running: Running, spans: InMemorySpanExporter, tracing: Tracing) -> None:
        self.running, self.stub, self.tracing = running, running.stub, tracing
        self._spans = spans

    async def spans(self, method: str = METHOD) -> dict[str, Any]:
        """Those of the one call that there was, by name, once it has ended."""
        await until(lambda: any(each.name == method for each in self._spans.get_finished_spans()))
        return {each.name: each for each in self._spans.get_finished_spans()}

    @property
    def num_spans(self) -> int:
        return len(self._spans.get_finished_spans())


def tracing_of(running: Running, provider: Any) -> Tracing:
    return Tracing(provider, running.server.engine.link.ask, "embedded")


@pytest_asyncio.fixture(loop_scope="session")
async def traced(running: Running) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    sampler = ParentBased(TraceIdRatioBased(0.0))  # only what a caller has sampled
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    calls = running.service.calls
    calls.tracing = tracing = tracing_of(running, provider)
    yield Traced(running, exporter, tracing)
    calls.tracing = None


@pytest.mark.asyncio(loop_scope="session")
async def test_a_sampled_call_is_a_span_of_its_trace_with_the_engine_s_in_it(
    traced: Traced,
) -> None:
    request = asked(max_tokens=4)
    request.request_id = "seen"
    events = await read(traced.stub.GenerateStream(request, metadata=SAMPLED))
    spans = await traced.spans()
    call = spans[METHOD]
    assert f"{call.context.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == SPAN
    assert call.context.trace_state.get("vendor") == "1"
    assert call.kind is SpanKind.SERVER
    said = call.attributes
    assert said["rpc.response.status_code"] == "OK"
    assert said["gen_ai.operation.name"] == "text_completion"
    assert said["gen_ai.request.model"] == "embedded"
    assert said["gen_ai.response.id"] == said["niyama.request_id"] == "seen"
    assert said["gen_ai.usage.output_tokens"] == 4
    assert said["gen_ai.response.finish_reasons"] == ("length",)
    assert (said["niyama.tier"], said["niyama.result"]) == ("interactive", "on_time")
    assert [event.name for event in call.events] == ["admitted"]
    parts = [spans[name] for name in ("queue", "prefill", "decode")]
    for part in parts:
        assert part.parent.span_id == call.context.span_id
        assert call.start_time - 1e6 <= part.start_time <= part.end_time <= call.end_time + 1e6
    assert [part.end_time for part in parts[:2]] == [part.start_time for part in parts[1:]]
    ttft_s = events[-1].finished.timings.ttft.ToNanoseconds() / 1e9
    assert (parts[1].end_time - call.start_time) / 1e9 == pytest.approx(ttft_s, abs=1e-3)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_call_that_nobody_samples_asks_nothing_and_sends_nothing(traced: Traced) -> None:
    unsampled = PARENT[:-1] + "0"
    await read(traced.stub.GenerateStream(asked(), metadata=(("traceparent", unsampled),)))
    await read(traced.stub.GenerateStream(asked()))
    assert not traced.tracing._asking
    await read(traced.stub.GenerateStream(asked(), metadata=SAMPLED))
    await traced.spans()
    assert traced.num_spans == 4  # of the last call


@pytest.mark.asyncio(loop_scope="session")
async def test_each_completion_has_spans_of_its_own(traced: Traced) -> None:
    await within(traced.stub.Generate(asked(pb.GenerateRequest, n=2), metadata=SAMPLED))
    await traced.spans("niyama.v1.Inference/Generate")
    assert traced.num_spans == 7


@pytest.mark.asyncio(loop_scope="session")
async def test_a_call_that_fails_says_how(traced: Traced) -> None:
    """What its caller did wrong is no error of the server's."""
    await failure(traced.stub.Generate(pb.GenerateRequest(), metadata=SAMPLED))
    call = (await traced.spans("niyama.v1.Inference/Generate"))["niyama.v1.Inference/Generate"]
    assert call.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert call.status.status_code is StatusCode.UNSET
    assert traced.num_spans == 1


@pytest.mark.asyncio(loop_scope="session")
async def test_of_a_lost_engine_the_front_end_s_part_is_told(
    running: Running, traced: Traced
) -> None:
    async def lost(_: object) -> Any:
        raise EngineLost("gone")

    traced.tracing._ask = lost
    await read(traced.stub.GenerateStream(asked(max_tokens=2), metadata=SAMPLED))
    spans = await traced.spans()
    assert spans[METHOD].attributes["niyama.untold"]
    assert spans[METHOD].attributes["gen_ai.usage.output_tokens"] == 2
    assert traced.num_spans == 1


# Collectors


class Collector(collector_grpc.TraceServiceServicer):  # type: ignore[misc]  # it has no types
    """Keeps what it is sent. While it is `held` it does not answer."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.held.set()
        self.spans: list[Any] = []
        self.resource: dict[str, str] = {}
        self.is_asked = threading.Event()

    def Export(self, request: Any, _: object) -> Any:
        self.is_asked.set()
        self.held.wait(60)
        for resource in request.resource_spans:
            values = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.resource |= values
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return collector_pb.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A real one, which OpenTelemetry's own variables name."""
    collecting = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    collector_grpc.add_TraceServiceServicer_to_server(collecting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-1")
    yield collecting
    collecting.held.set()
    server.stop(None)


@pytest.mark.asyncio(loop_scope="session")
async def test_spans_are_sent_to_the_collector_that_the_environment_names(
    running: Running, collector: Collector
) -> None:
    running.service.calls.tracing = tracing = tracing_of(running, provider_of())
    await read(running.stub.GenerateStream(asked(max_tokens=2), metadata=SAMPLED))
    await until(lambda: not tracing._asking)
    running.service.calls.tracing = None
    await tracing.stop()  # sends what is left
    assert {span.name for span in collector.spans} == {METHOD, "queue", "prefill", "decode"}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert collector.resource["service.name"] == "chat-1"


@pytest.mark.asyncio(loop_scope="session")
async def test_no_call_waits_for_a_collector_that_does_not_answer(
    running: Running, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More spans than the queue holds: those beyond are dropped."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    collector.held.clear()
    running.service.calls.tracing = tracing = tracing_of(running, provider_of())
    odd = (SAMPLED[0], ("tracestate", "no member at all"))
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            await read(running.stub.GenerateStream(asked(max_tokens=2), metadata=odd))
        await until(lambda: not tracing._asking)
    assert await asyncio.to_thread(collector.is_asked.wait, 60)
    assert collector.spans == []
    told = [line["note"] for line in lines if line["event"] == "tracing"]
    assert told == ["Queue full, dropping Span."]  # once, and of a caller's tracestate nothing
    running.service.calls.tracing = None
    await within(tracing.stop())  # in bounded time, though nothing is taken


@pytest.mark.asyncio(loop_scope="session")
async def test_no_call_waits_for_a_collector_that_is_gone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    running.service.calls.tracing = tracing = tracing_of(running, provider_of())
    events = await read(running.stub.GenerateStream(asked(max_tokens=2), metadata=SAMPLED))
    assert events[-1].HasField("finished")
    running.service.calls.tracing = None
    await within(tracing.stop())


@pytest.mark.asyncio(loop_scope="session")
async def test_the_environment_can_turn_spans_off(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    running.service.calls.tracing = tracing = tracing_of(running, provider_of())
    with structlog.testing.capture_logs() as lines:
        await read(running.stub.GenerateStream(asked(max_tokens=2), metadata=SAMPLED))
        await read(running.stub.GenerateStream(asked(max_tokens=2)))
        await until(lambda: len(lines) == 2)
    running.service.calls.tracing = None
    await within(tracing.stop())
    assert [line.get("span_id") for line in lines] == [SPAN, None]


def test_a_protocol_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="by grpc alone, and OTEL_EXPORTER_OTLP_PROTOCOL"):
        provider_of({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
