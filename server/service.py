"""The Inference service: every RPC from its message to its last byte, and its line in the log.

Arrival is stamped here, once. A bad request ends here, before any engine state exists; whatever
ends a call, a client that leaves or a deadline included, frees what the engine holds for it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeVar

import grpc

from engine.deciding.sequence import FinishReason
from engine.driving.link import EngineLink
from engine.driving.messages import EngineInfo
from engine.driving.streams import CallFailed, DuplicateRequest, EngineLost
from engine.tiers import Tiers
from engine.tokenizer import Tokenizer
from proto.niyama.v1 import inference_pb2 as pb
from proto.niyama.v1 import inference_pb2_grpc
from server import errors
from server.call import Call
from server.config import ServerConfig
from server.convert import inbound, outbound
from server.convert.inbound import Limits
from server.convert.input import read_input
from server.convert.violations import InvalidRequest
from server.errors import CallError
from server.generation import Ended, Generation, GenerationFailed, Piece, RestartedAt, Text
from server.ledger import Entries
from server.metrics import Metrics
from server.prompts import Prompts

FAILURES = (CallError, InvalidRequest, DuplicateRequest, GenerationFailed, EngineLost)
# How grpc.aio tells a handler that its call is over: it cancels the task, and where the task writes
# before that it raises InternalError (a failed batch) or UsageError (a status was sent).
DEAD = (asyncio.CancelledError, grpc.aio.BaseError)
Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext
GenerateMessage = pb.GenerateRequest | pb.GenerateStreamRequest


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """`tiers` are replaced when an engine proposes others (`adopt`); everything else stays."""

    def __init__(
        self,
        config: ServerConfig,
        engine: EngineLink,
        tokenizer: Tokenizer,
        tiers: Tiers,
        metrics: Metrics,
        ledger: Entries,
    ) -> None:
        self._config = config
        self._engine = engine
        self._tokenizer = tokenizer
        self._eos_ids = frozenset() if tokenizer.eos_id is None else {tokenizer.eos_id}
        self._prompts = Prompts(tokenizer)
        self._metrics = metrics
        self._ledger = ledger
        self._num_calls = 0
        self._draining = False
        self.idle = asyncio.Event()  # no call that generates is being served
        self.idle.set()
        self.tiers = tiers
        self.info: EngineInfo | None = None  # of the last engine that was ready

    def adopt(self, info: EngineInfo, tiers: Tiers) -> None:
        """An engine is ready."""
        self.info, self.tiers = info, tiers

    async def drain(self) -> None:
        """Refuses new calls from now on; returns when the running ones have ended."""
        self._draining = True
        await self.idle.wait()

    # RPCs

    async def GenerateStream(self, request: pb.GenerateStreamRequest, context: Context) -> None:
        await self._serve(request, context, _stream)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        return await self._serve(request, context, _gather)

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: Context
    ) -> pb.CountTokensResponse:
        async with _aborting(context):
            asked = read_input(request.input, self._tokenizer.vocab_size)
            ids = await self._prompts.encode(asked)
        return pb.CountTokensResponse(count=len(ids), token_ids=ids)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        async with _aborting(context):
            if self.info is None:
                raise EngineLost("the engine is starting")
            info = self.info
        limits = pb.Limits(
            max_requests=self._config.max_requests,
            max_batch_size=info.max_batch_size,
            kv_tokens=info.kv_len,
            max_message_bytes=self._config.max_message_bytes,
        )
        has_chat = self._tokenizer.has_chat_template
        return outbound.to_server_info(version("niyama"), info, self.tiers, limits, has_chat)

    async def Estimate(self, request: pb.EstimateRequest, context: Context) -> pb.EstimateResponse:
        async with _aborting(context):
            supposed = inbound.read_estimate(request, self.tiers, self._limits(self._ready()))
            quality = supposed.quality
            forecast = await self._ask(
                "estimate",
                prompt_len=supposed.prompt_len,
                output_len=supposed.output_len,
                targets=quality.targets,
                application=supposed.application,
                importance=quality.importance,
                tier=quality.tier,
                tenant=inbound.read_tenant(context.invocation_metadata() or ()),
                default_output_len=supposed.default_output_len,
            )
        return outbound.to_estimate(quality, forecast)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        async with _aborting(context):
            request_id = inbound.read_request_id(request)
            tenant = inbound.read_tenant(context.invocation_metadata() or ())
            timeline = await self._ask("explain", request_id=request_id, tenant=tenant)
        return outbound.to_explanation(timeline)

    # What they share

    def _ready(self) -> EngineInfo:
        """What the engine that serves now says of itself. Raises EngineLost when none does."""
        if self._engine.info is None:
            raise EngineLost("the engine is starting")
        return self._engine.info

    def _limits(self, info: EngineInfo) -> Limits:
        eos_ids = info.eos_token_ids | self._eos_ids
        return Limits(info.context_len, info.kv_len, info.vocab_size, eos_ids)

    async def _ask(self, name: str, **arguments: Any) -> Any:
        """Puts a question to the engine; its refusals become statuses here and nowhere else."""
        try:
            return await self._engine.call(name, **arguments)
        except CallFailed as error:
            raise errors.unanswered(error.failure, str(error)) from error

    async def _serve(
        self,
        request: GenerateMessage,
        context: Context,
        answer: Callable[[Call], Awaitable[Answer]],
    ) -> Answer:
        """From arrival to log line; the engine holds nothing for the call afterwards."""
        call = Call(time.monotonic(), context, self._metrics)
        self._num_calls += 1
        self.idle.clear()
        self._metrics.in_flight.inc()
        try:
            await self._start(call, request)
            return await answer(call)
        except FAILURES as error:
            failure = _translate(error)
            call.outcome, call.error = failure.code.name, failure.message
            await errors.abort(context, failure)
        except DEAD:
            call.leave()
            raise
        except Exception:  # a mistake of ours: gRPC logs its trace
            call.outcome = grpc.StatusCode.INTERNAL.name
            context.set_code(grpc.StatusCode.INTERNAL)
            raise
        finally:
            call.close()
            self._release(call)
            self._metrics.in_flight.dec()
            self._num_calls -= 1
            if not self._num_calls:
                self.idle.set()

    async def _start(self, call: Call, request: GenerateMessage) -> None:
        """Checks the call, enters it in the ledger, tokenizes and submits: what is refused for the
        queue costs no more than its check. Raises what `_aborting` translates.
        """
        call.request_id = request.request_id or secrets.token_hex(8)
        if self._draining:
            raise errors.draining()
        info = self._ready()
        timeout_s = call.context.time_remaining()
        metadata = call.context.invocation_metadata() or ()
        asked = inbound.read_generate(request, self.tiers, info.vocab_size, timeout_s, metadata)
        await self._ledger.enter(call.request_id, asked.tenant, asked.n)
        call.enter(asked)
        prompt = await self._prompts.encode(asked.input)
        requests = inbound.engine_requests(
            asked,
            call.request_id,
            prompt,
            self._limits(info),
            secrets.randbits(63),
            call.arrived_at,
        )

        def text_of(index: int) -> Text:
            detokenizer = self._tokenizer.detokenizer(prompt)
            return Text(detokenizer, requests[index].sampling, asked.stop)

        texts = [text_of(index) for index in range(asked.n)]
        is_seen_whole = isinstance(request, pb.GenerateRequest)
        stream = self._engine.submit(requests, is_seen_whole)
        renew = text_of if is_seen_whole else None
        call.begin(Generation(stream, len(prompt), texts, renew))

    def _release(self, call: Call) -> None:
        """Takes the call off the ledger. What the engine was given it frees itself (`on_freed`)."""
        if not call.is_entered:
            return
        if not call.is_admitted:
            self._ledger.free(call.asked.tenant, call.asked.n)
        self._ledger.leave(call.request_id)


async def _stream(call: Call) -> None:
    """One message per completion for whatever came while the last ones were being written.

    Every token passes here: waits on the bare future, not through coroutines of its own.
    """
    generation, write, to_message = call.generation, call.context.write, call.to_message
    while True:
        if outputs := generation.take():
            for output in outputs:
                await write(to_message(output))
        elif generation.is_done:
            return
        else:
            await generation.arrival()


async def _gather(call: Call) -> pb.GenerateResponse:
    pieces: list[list[Piece]] = [[] for _ in range(call.asked.n)]
    ended: dict[int, pb.Finished] = {}
    while not call.generation.is_done:
        for output in await call.generation.next():
            if isinstance(output, Piece):
                pieces[output.completion].append(output)
            elif isinstance(output, RestartedAt):
                pieces[output.completion].clear()
            elif isinstance(output, Ended):
                ended[output.completion] = call.finish(output)
    return call.to_response(pieces, ended)


@asynccontextmanager
async def _aborting(context: Context) -> AsyncIterator[None]:
    """For RPCs that hold nothing: ends them with the status that an exception stands for."""
    try:
        yield
    except FAILURES as error:
        await errors.abort(context, _translate(error))


def _translate(error: Exception) -> CallError:
    """The only place that knows which status an exception stands for."""
    if isinstance(error, CallError):
        return error
    if isinstance(error, InvalidRequest):
        return errors.invalid(error)
    if isinstance(error, DuplicateRequest):
        return errors.in_flight(str(error))
    if isinstance(error, GenerationFailed):
        is_error = error.reason is FinishReason.ERROR
        return (errors.engine_error if is_error else errors.cancelled)(str(error))
    return errors.engine_lost(str(error))
