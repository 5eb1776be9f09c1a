"""Spans of calls, sent by OpenTelemetry (extra `otel`): where the time of each went, and why.

A call is a span of its own, begun when its message has come; what the engine did with it is asked
of the engine when the call is over, and only where somebody samples it. Spans are sent by a thread
of OpenTelemetry's, from a queue that is bounded: where a collector is slow or gone they are
dropped, and no call waits. The names of attributes are OpenTelemetry's conventions for RPC and
GenAI, and `niyama.*` for what those have no name for. No prompt and no output is in any.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog

from engine.deciding.questions import Explain
from engine.deciding.timeline import Timeline
from engine.linking.errors import EngineLost, Unanswered
from server.convert.trace_context import TraceContext
from server.spans import events_of, spans_of

if TYPE_CHECKING:
    from server.call import Call

log = structlog.get_logger()

MOST_ASKED = 64  # of the engine at once; of calls beyond it is told what the front end knows
ANSWER_S = 10.0  # in which the engine has told, or has not
COMPLAINT_S = 30.0
FLUSH_S = 2.0  # at the end, for what is still to be sent
# Of a server's span: whatever else ends a call is its client's doing, or meant.
_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class Tracing:
    """The spans of a front end's calls. `ask` puts a question to the engine, and raises EngineLost
    and Unanswered; `model` is the name of what is served.
    """

    def __init__(
        self,
        provider: Any,
        ask: Callable[[Explain], Awaitable[Timeline]],
        model: str,
    ) -> None:
        """`provider` is a TracerProvider of OpenTelemetry's."""
        from opentelemetry import trace

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("niyama", _version())
        self._ask = ask
        self._model = model
        self._asking: set[asyncio.Task[None]] = set()

    def begin(self, call: Call) -> None:
        """Begins the span of a call, and has the call's log line tell its id."""
        parent = None if call.trace is None else self._context(call.trace)
        method = call.rpc if "/" in call.rpc else f"niyama.v1.Inference/{call.rpc}"
        span = self._tracer.start_span(
            method,
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "rpc.system.name": "grpc",
                "rpc.method": method,
            },
            start_time=_unix_ns(call.arrived_at, _offset_s()),
        )
        own = span.get_span_context()
        if not own.is_valid:  # OTEL_SDK_DISABLED
            return
        call.span = span
        state = "" if call.trace is None else call.trace.state
        call.trace = TraceContext(
            f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_flags, state
        )

    def end(self, call: Call) -> None:
        """Ends the span of a call that is over, once the engine has told of it, where it is to be
        sent at all.
        """
        span = call.span
        if span is None or not span.is_recording():
            return
        ended_at = time.monotonic()
        span.set_attributes(_told(call, self._model))
        outcome = call.outcome or "OK"
        span.set_attribute("rpc.response.status_code", outcome)
        if outcome in _ERRORS:
            span.set_attribute("error.type", outcome)
            span.set_status(self._trace.StatusCode.ERROR, call.error)
        if not call.is_admitted or len(self._asking) >= MOST_ASKED:
            span.end(_unix_ns(ended_at, _offset_s()))
            return
        asking = asyncio.create_task(self._tell(call, span, ended_at))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)

    async def stop(self) -> None:
        """Sends what is still to be sent, within FLUSH_S."""
        for each in self._asking:
            each.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        # In a thread that nobody waits for: one that sends to a dead collector goes on for seconds.
        is_over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(is_over.set)

        threading.Thread(target=shut_down, daemon=True, name="tracing").start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), FLUSH_S)

    async def _tell(self, call: Call, span: Any, ended_at: float) -> None:
        """Adds what the engine remembers of a call's requests, and ends its span."""
        offset_s = _offset_s()
        try:
            async with asyncio.timeout(ANSWER_S):
                for index in range(call.asked.n):
                    name = call.request_id if call.asked.n == 1 else f"{call.request_id}/{index}"
                    timeline = await self._ask(Explain(name, call.tenant))
                    self._add(span, timeline, index, offset_s)
        except (EngineLost, Unanswered, TimeoutError):
            span.set_attribute("niyama.untold", True)  # what the engine did with it
        finally:
            span.end(_unix_ns(ended_at, offset_s))

    def _add(self, span: Any, timeline: Timeline, index: int, offset_s: float) -> None:
        for event in events_of(timeline, index):
            span.add_event(event.name, event.attributes, _unix_ns(event.at, offset_s))
        parent = self._trace.set_span_in_context(span)
        for part in spans_of(timeline, index):
            child = self._tracer.start_span(
                part.name,
                context=parent,
                attributes=part.attributes,
                start_time=_unix_ns(part.began_at, offset_s),
            )
            child.end(_unix_ns(part.ended_at, offset_s))

    def _context(self, caller: TraceContext) -> Any:
        """Returns the caller's span as OpenTelemetry has it."""
        trace = self._trace
        span = trace.SpanContext(
            int(caller.trace_id, 16),
            int(caller.span_id, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(caller.flags),
            trace_state=trace.TraceState.from_header([caller.state]),
        )
        return trace.set_span_in_context(trace.NonRecordingSpan(span))


def provider_of(environment: Mapping[str, str] = os.environ) -> Any:
    """Returns a TracerProvider that sends spans by OTLP over gRPC. OpenTelemetry's own variables
    (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, ...) say where to, which,
    and under which name. Raises ValueError where its packages are not there, or the protocol that
    they name.
    """
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name, "grpc") != "grpc":
            raise ValueError(f"spans are sent by grpc alone, and {name} is {environment[name]!r}")
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(
            f"spans are sent by OpenTelemetry: pip install 'niyama[otel]' ({error})"
        ) from error
    complaints = logging.getLogger("opentelemetry")
    complaints.handlers, complaints.propagate = [_Complaints()], False
    own = Resource({"service.name": "niyama", "service.version": _version()})
    resource = own.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class _Complaints(logging.Handler):
    """Has OpenTelemetry's complaints in our own log, the same one once in COMPLAINT_S: it complains
    of every span that it drops. What it has to say of a caller's `tracestate` is left out.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told_at: dict[tuple[str, int], float] = {}  # by the line of its code

    def emit(self, record: logging.LogRecord) -> None:
        place = record.pathname, record.lineno
        is_new = record.created - self._told_at.get(place, 0.0) >= COMPLAINT_S
        if is_new and not record.name.startswith("opentelemetry.trace"):
            self._told_at[place] = record.created
            log.warning("tracing", note=record.getMessage())


def _told(call: Call, model: str) -> dict[str, Any]:
    """Returns what a front end knows of a call."""
    told: dict[str, Any] = {"niyama.request_id": call.request_id, "niyama.tenant": call.tenant}
    if call.fate is not None:
        told["niyama.result"] = call.fate.value
    if call.refusal is not None:
        told["niyama.refused"] = call.refusal.value
    if call.quality is not None:
        told["niyama.tier"] = call.quality.tier
        told["niyama.importance"] = call.quality.importance.name.lower()
        told["niyama.target_source"] = call.quality.source.value
    if call.entry is not None:
        told |= {
            "gen_ai.operation.name": call.asked.input.operation,
            "gen_ai.provider.name": "niyama",
            "gen_ai.request.model": model,
            "gen_ai.request.choice.count": call.asked.n,
            "gen_ai.request.stream": call.is_streamed,
            "gen_ai.response.id": call.request_id,
            "gen_ai.response.model": model,
            "niyama.application": call.asked.application,
        }
        if call.asked.max_tokens is not None:
            told["gen_ai.request.max_tokens"] = call.asked.max_tokens
    if call.is_admitted:
        cost, reasons = call.cost(), call.finish_reasons()
        told |= {
            "gen_ai.usage.input_tokens": cost["prompt_tokens"],
            "gen_ai.usage.output_tokens": cost["output_tokens"],
            "gen_ai.response.finish_reasons": reasons,
        }
    return told


def _version() -> str:
    return version("niyama")


def _offset_s() -> float:
    """Returns what is to be added to an instant of the engine's clock for Unix time."""
    return time.time() - time.monotonic()


def _unix_ns(at: float, offset_s: float) -> int:
    return int((at + offset_s) * 1e9)
