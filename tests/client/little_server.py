"""A real grpc.aio server on port 0 with a servicer that behaves: it counts, echoes and fails on
request. What the client is tested against where a failure must happen on cue.

The prompt is the command: "hello there" is answered by its own words, one per token; see
`LittleInference.GenerateStream` for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc

TIERS = (  # with targets that no engine proposes, however slow: a real server's are others
    pb.Tier(
        name="interactive",
        ttft=Duration(nanos=500_000_000),
        tbt=Duration(nanos=50_000_000),
        importance=pb.IMPORTANCE_HIGH,
    ),
    pb.Tier(name="standard", ttlt=Duration(seconds=31), importance=pb.IMPORTANCE_NORMAL),
    pb.Tier(name="batch", ttlt=Duration(seconds=610), importance=pb.IMPORTANCE_LOW),
)
INFO = pb.GetServerInfoResponse(
    version="0.0.1",
    model=pb.ModelInfo(
        name="little",
        architecture="Words",
        context_length=512,
        vocabulary_size=1000,
        parameters=7,
        dtype="float32",
        device="cpu",
    ),
    policy="fcfs",
    tiers=TIERS,
    default_tier="standard",
    limits=pb.Limits(
        max_requests=100, max_batch_size=8, kv_tokens=4096, max_message_bytes=4_194_304
    ),
    sampling=pb.SamplingDefaults(
        temperature=0.25, top_k=3, top_p=1, repetition_penalty=1.5, max_tokens=128
    ),
)
LOAD = pb.GetLoadResponse(
    tiers=[
        pb.TierLoad(tier="batch", best_effort=pb.Work(sequences=3, time=Duration(seconds=9))),
        pb.TierLoad(
            tier="interactive",
            waiting=pb.Work(sequences=2, time=Duration(nanos=500_000_000), tokens=40),
            outlook=pb.Outlook(
                headroom=Duration(seconds=2),
                late_chance=0.25,
                ttft=Duration(seconds=1),
                ahead=pb.Work(sequences=1),
                target=Duration(seconds=4),
                prompt_tokens=20,
            ),
        ),
    ],
    waiting=pb.Work(sequences=2, time=Duration(nanos=500_000_000), tokens=40),
    backlog=pb.Work(sequences=3, time=Duration(seconds=9)),
    running=pb.Work(sequences=1, tokens=5),
    demand=0.5,
    rates=pb.Rates(requests=1, generated_tokens=20, prefilled_tokens=30),
    speeds=pb.Speeds(
        iteration=Duration(nanos=20_000_000),
        prefill_tokens_per_second=900,
        slowdown=1.5,
        decode=Duration(nanos=1_000_000),
    ),
    memory=pb.MemoryLoad(
        total_tokens=160,
        free_tokens=96,
        cached_tokens=48,
        patient_tokens=32,
        usage=0.125,
    ),
    batch_fill=0.0625,
)


class LittleInference(inference_pb2_grpc.InferenceServicer):
    """Answers a prompt of words with those words; token ids with as many tokens as asked for.

    Prompts that act: "full", "late" (RESOURCE_EXHAUSTED), "bad" (INVALID_ARGUMENT), "again"
    (ALREADY_EXISTS), "bug" (INTERNAL), "cut" (the stream ends without the end of its last
    completion), "relegate ..." (an event before the tokens), "stay ..." (the words come, then
    nothing ever), "die N" (aborts UNAVAILABLE after N tokens).
    """

    def __init__(self) -> None:
        self.acts_as = ""  # what a prompt of token ids is taken for; "": itself
        self.load = LOAD
        self.num_away = 0  # so many questions for the server's facts are answered UNAVAILABLE
        self.requests: list[pb.GenerateStreamRequest | pb.GenerateRequest] = []
        self.timeouts: list[float | None] = []
        self.tenants: list[str] = []  # of the calls that generate or explain
        self.tokens: list[str] = []  # of all calls; "": none
        self.pushbacks: list[str] = []  # so many calls that generate are refused, each with this
        self.ended = asyncio.Queue[str]()  # ids of the streams that are over, however

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        self.requests.append(request)
        self.timeouts.append(context.time_remaining())
        await self._take(context)
        if self.acts_as and request.input.HasField("token_ids"):
            request = pb.GenerateStreamRequest(
                input=pb.Input(text=self.acts_as),
                sampling=request.sampling,
                qos=request.qos,
                request_id=request.request_id,
            )
        request_id = request.request_id or f"little-{len(self.requests)}"
        try:
            await _refuse(request, context)
            yield pb.GenerateStreamResponse(accepted=_accepted(request, request_id))
            for event in _events(request):
                yield event
            if request.input.text.startswith("stay"):
                await asyncio.Event().wait()
            if request.input.text.startswith("die"):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine was lost")
            for index in range((request.sampling.n or 1) - (request.input.text == "cut")):
                yield pb.GenerateStreamResponse(finished=_finished(request, index))
        finally:
            self.ended.put_nowait(request_id)

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> pb.GenerateResponse:
        self.requests.append(request)
        await self._take(context)
        await _refuse(request, context)
        text = "".join(event.tokens.text for event in _events(request))
        return pb.GenerateResponse(
            request_id=request.request_id or "little",
            targets=_accepted(request, "").targets,
            completions=[
                pb.Completion(text=text, token_ids=[1, 2], finished=_finished(request, 0))
            ],
        )

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetServerInfoResponse:
        self.tokens.append(_said(context, "authorization"))
        if self.num_away:
            self.num_away -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        return INFO

    async def GetLoad(
        self, request: pb.GetLoadRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetLoadResponse:
        return self.load

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: grpc.aio.ServicerContext
    ) -> pb.CountTokensResponse:
        self.tokens.append(_said(context, "authorization"))
        count = len(request.input.text.split())
        return pb.CountTokensResponse(count=count, token_ids=range(count))

    async def Estimate(
        self, request: pb.EstimateRequest, context: grpc.aio.ServicerContext
    ) -> pb.EstimateResponse:
        self.tokens.append(_said(context, "authorization"))
        seconds = request.prompt_tokens + request.output_tokens
        return pb.EstimateResponse(
            targets=pb.ResolvedTargets(
                ttlt=request.qos.deadline.ttlt,
                importance=pb.IMPORTANCE_NORMAL,
                source=pb.TARGET_SOURCE_REQUEST,
            ),
            forecast=pb.Forecast(
                on_time=seconds <= request.qos.deadline.ttlt.seconds,
                ttft=Duration(seconds=request.prompt_tokens),
                ttlt=Duration(seconds=seconds),
            ),
        )

    async def Explain(
        self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext
    ) -> pb.ExplainResponse:
        self.tenants.append(_said(context, "niyama-tenant"))
        self.tokens.append(_said(context, "authorization"))
        if request.request_id != "known":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no request {request.request_id}")
        return pb.ExplainResponse(
            request_id="known",
            targets=pb.ResolvedTargets(tier="batch", source=pb.TARGET_SOURCE_TIER),
            decisions=[
                pb.Decision(
                    kind="admitted",
                    detail="behind 3 others",
                    ahead=[
                        pb.WorkAhead(
                            tier="chat",
                            tenant="acme",
                            work=Duration(seconds=2),
                            beyond=Duration(seconds=1),
                        ),
                        pb.WorkAhead(work=Duration(seconds=1)),
                    ],
                ),
                pb.Decision(
                    at=Duration(nanos=20_000_000),
                    kind="chunk",
                    detail="64 tokens",
                    predicted_at=Duration(nanos=18_000_000),
                    values={"tokens": 64.0},
                ),
            ],
            summary="On time.",
            budget=pb.TimeBudget(
                reading=Duration(seconds=1),
                waiting=Duration(seconds=2),
                prefill=Duration(seconds=3),
                decoding=Duration(seconds=4),
                held=Duration(seconds=5),
            ),
            needed=["Nothing."],
            result="on_time",
            tenant="acme",
            from_decision_log=True,
            trace_id="0af7651916cd43dd8448eb211c80319c",
        )

    async def _take(self, context: grpc.aio.ServicerContext) -> None:
        """Notes who calls, and refuses the call if it is to be."""
        self.tenants.append(_said(context, "niyama-tenant"))
        self.tokens.append(_said(context, "authorization"))
        if self.pushbacks:
            pushback = (("grpc-retry-pushback-ms", self.pushbacks.pop(0)),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "not now", pushback)


Generation = pb.GenerateRequest | pb.GenerateStreamRequest


def _said(context: grpc.aio.ServicerContext, key: str) -> str:
    return str(dict(context.invocation_metadata() or ()).get(key, ""))


async def _refuse(request: Generation, context: grpc.aio.ServicerContext) -> None:
    text = request.input.text
    if text in ("full", "late"):
        detail = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
        reason = "WOULD_BE_LATE" if text == "late" else "QUEUE_FULL"
        why = error_details_pb2.ErrorInfo(reason=reason, metadata={"limit": "5"})
        code, message = grpc.StatusCode.RESOURCE_EXHAUSTED, f"the queue is {text}"
        await _abort(context, code, message, detail, why)
    if text == "bad":
        detail = error_details_pb2.BadRequest()
        detail.field_violations.add(field="sampling.top_p", description="too large")
        detail.field_violations.add(field="qos.tier", description="unknown")
        await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_p: too large", detail)
    if text == "again":
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "request id in flight")
    if text == "bug":
        await context.abort(grpc.StatusCode.INTERNAL, "a fault")


async def _abort(
    context: grpc.aio.ServicerContext,
    code: grpc.StatusCode,
    message: str,
    *details: Message,
) -> None:
    """Ends the call with the details, and has gRPC's own retries leave it at that."""
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    told = rpc_status.to_status(status).trailing_metadata
    await context.abort(code, message, (*told, ("grpc-retry-pushback-ms", "-1")))


def _accepted(request: Generation, request_id: str) -> pb.Accepted:
    qos = request.qos
    tier = next((tier for tier in TIERS if tier.name == qos.tier), None)
    targets = pb.ResolvedTargets(
        importance=qos.importance or pb.IMPORTANCE_NORMAL,
        source=pb.TARGET_SOURCE_TIER if tier else pb.TARGET_SOURCE_REQUEST,
        tier=qos.tier,
    )
    for name in ("ttft", "tbt"):
        source = qos.interactive if qos.HasField("interactive") else tier
        if source is not None and source.HasField(name):
            getattr(targets, name).CopyFrom(getattr(source, name))
    return pb.Accepted(
        request_id=request_id,
        targets=targets,
        prompt_tokens=_prompt_len(request),
        forecast=pb.Forecast(on_time=True, ttft=Duration(nanos=1_000_000)),
    )


def _prompt_len(request: Generation) -> int:
    return len(request.input.token_ids.ids) or len(request.input.text.split())


def _events(request: Generation) -> list[pb.GenerateStreamResponse]:
    text = request.input.text
    if request.input.HasField("token_ids"):
        words = ["x"] * request.sampling.max_tokens
    elif text.startswith("die"):
        words = ["x"] * int(text.split()[1])
    elif text.startswith("stay"):
        words = text.split()[1:]
    else:
        words = text.split()
    events = [
        pb.GenerateStreamResponse(
            tokens=pb.Tokens(index=index, text=f"{word} ", token_ids=[number])
        )
        for number, word in enumerate(words)
        for index in range(request.sampling.n or 1)
    ]
    if text.startswith("relegate"):
        relegated = pb.Relegated(reason="a long queue", expected_ttlt=Duration(seconds=9))
        events.insert(0, pb.GenerateStreamResponse(relegated=relegated))
    return events


def _finished(request: Generation, index: int) -> pb.Finished:
    ms = 1_000_000
    return pb.Finished(
        index=index,
        reason=pb.FINISH_REASON_LENGTH,
        usage=pb.Usage(prompt_tokens=_prompt_len(request), output_tokens=len(_events(request))),
        timings=pb.Timings(
            queue=Duration(nanos=ms),
            ttft=Duration(nanos=2 * ms),
            mean_tbt=Duration(nanos=3 * ms),
            worst_tbt=Duration(nanos=60 * ms),
            ttlt=Duration(seconds=1),
        ),
        targets=[
            pb.TargetResult(
                name=pb.TARGET_NAME_TTFT,
                target=Duration(nanos=500 * ms),
                actual=Duration(nanos=2 * ms),
                met=True,
            ),
            pb.TargetResult(
                name=pb.TARGET_NAME_TBT,
                target=Duration(nanos=50 * ms),
                actual=Duration(nanos=60 * ms),
                met=False,
            ),
        ],
    )


@contextlib.asynccontextmanager
async def serving(
    servicer: LittleInference, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[str]:
    """Serves on a free port of the loopback while the block lasts; yields HOST:PORT."""
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)
