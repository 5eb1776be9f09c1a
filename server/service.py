"""The Inference service: what each RPC answers.

A bad request ends here, before any engine state exists. `server/calls.py` has received a call's
message before, and ends the call afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import grpc

from engine.checkpoint.tokenizer import Tokenizer
from engine.deciding.forecast import lateness
from engine.deciding.questions import AnswerT, Question
from engine.deciding.request import Sampling
from engine.linking.errors import EngineLost, Unanswered
from engine.linking.link import EngineLink
from engine.messages import EngineInfo
from engine.rights import NotAllowed
from engine.tiers import Tiers
from engine.tiers_file import MOST_NAME_BYTES
from niyama.v1 import inference_pb2 as pb
from server import errors
from server.admission.ledger import LedgerLink
from server.admission.quota import Caller, Quota
from server.answer import Answer
from server.bounded import shorten
from server.call import Call
from server.calls import Calls
from server.config import ServerConfig
from server.convert import gateway, inbound, outbound
from server.convert.inbound import Asked, Limits
from server.convert.input import Bounds, read_input
from server.convert.work import entry_of, entry_of_estimate, work
from server.errors import CallError
from server.explaining import Stories
from server.generation import Ended, Generation, Piece, RestartedAt, Text
from server.identity.identities import Identities
from server.identity.tokens import KEY
from server.inferring import Inferring
from server.listening.orca import CallReports
from server.reading.messages import SHORT_BYTES, parse
from server.reading.prompts import Prompts
from server.unserved import UnservedCalls, unserved
from server.violations import InvalidRequest, Violation

_SERVICE = pb.DESCRIPTOR.services_by_name["Inference"]
MAX_QUESTIONS = 256  # in the engine at once
GenerateMessage = pb.GenerateRequest | pb.GenerateStreamRequest


class InferenceService:
    """The RPCs of `niyama.v1.Inference`, in front of an engine that comes and goes.

    `tiers` change when an engine proposes others (`adopt`) and when the operator's file does.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: EngineLink,
        tokenizer: Tokenizer,
        sampling: Sampling,
        tiers: Tiers,
        ledger: LedgerLink,
        identities: Identities,
        calls: Calls,
        inferring: Inferring,
    ) -> None:
        self._config = config
        self._engine = engine
        self._tokenizer = tokenizer
        self._sampling = sampling  # of requests that leave it out
        self._eos_ids = frozenset() if tokenizer.eos_id is None else {tokenizer.eos_id}
        spelling = tokenizer.spelling
        self._longest_token = max((len(spelling.of(i)) for i in range(len(spelling))), default=0)
        self._prompts = Prompts(tokenizer, config)
        self._questions = Quota("questions to the engine", MAX_QUESTIONS)
        self._stories = Stories(engine.ask, config.engine.decision_log)
        self._ledger = ledger
        self._identities = identities
        self.calls = calls
        self.inferring = inferring
        self.calls.on_over = self._over
        self._unserved = UnservedCalls(engine.tell, _later)
        self.tiers = tiers
        self.reports: CallReports | None = None  # for the trailers of calls
        self.info: EngineInfo | None = None  # of the last engine that was ready

    def adopt(self, info: EngineInfo, tiers: Tiers) -> None:
        """Takes over what an engine that is ready says of itself, and the tiers from now on."""
        self.info, self.tiers = info, tiers

    def reconfigure(self, config: ServerConfig, tiers: Tiers) -> None:
        """Takes other limits and tiers for the calls to come."""
        self._config, self.tiers = config, tiers
        self.inferring.mode = config.infer

    def start(self) -> None:
        """Starts the processes that read long messages."""
        self._prompts.start()

    async def stop(self) -> None:
        """Ends the processes that read long messages, and tells the engine what is untold."""
        self._unserved.flush()
        await self._prompts.stop()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Returns the handler of the service's RPCs."""
        answers: dict[str, Callable[[Call], Awaitable[Any]]] = {
            "Generate": self._generate,
            "GenerateStream": self._generate_stream,
            "Estimate": self._estimate,
            "Explain": self._explain,
            "CountTokens": self._count_tokens,
            "GetServerInfo": self._get_server_info,
        }
        return self.calls.handler(
            _SERVICE, {name: partial(self._answer, answer) for name, answer in answers.items()}
        )

    async def _answer(self, answer: Callable[[Call], Awaitable[Any]], call: Call) -> Any:
        """Answers a call once it is known whose it is."""
        metadata = call.context.invocation_metadata() or ()
        if self._config.gateway_metadata:
            call.gateway = gateway.read(metadata, self.tiers)
        call.tenant = _tenant(call, metadata)
        call.share = self.tiers.share_of(call.tenant)
        response = await answer(call)
        if self.reports is not None and call.generates and call.identity.speaks_for_others:
            call.context.set_trailing_metadata(self.reports.trailers(call.cost()))
        return response

    # RPCs

    async def _generate_stream(self, call: Call) -> None:
        await self._start(call, pb.GenerateStreamRequest)
        await _stream(call)

    async def _generate(self, call: Call) -> pb.GenerateResponse:
        await self._start(call, pb.GenerateRequest)
        return await _gather(call)

    async def _count_tokens(self, call: Call) -> bytes:
        self.calls.refuse_when_draining()
        bounds = self._bounds(self.info, self._tokenizer.vocab_size)
        with self._prompts.hold(call.raw, self._caller(call)):
            kind = pb.CountTokensRequest
            received = await self._prompts.receive(kind, call.raw, self._caller(call), bounds)
            asked = received.prompt or read_input(received.message.input, bounds)
            return await self._prompts.count(received, asked, self._caller(call), bounds)

    async def _get_server_info(self, call: Call) -> pb.GetServerInfoResponse:
        await self._receive(call, pb.GetServerInfoRequest)
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
        tiers = self.tiers.seen_by(call.tenant)
        return outbound.to_server_info(
            version("niyama"), info, tiers, limits, self._sampling, has_chat
        )

    async def _estimate(self, call: Call) -> pb.EstimateResponse:
        self.calls.refuse_when_draining()
        request = await self._receive(call, pb.EstimateRequest)
        limits = self._limits(self._ready())
        question, quality = inbound.read_estimate(
            request, self.tiers, limits, call.tenant, call.gateway.said
        )
        refusal = await self._ledger.refusal(entry_of_estimate(question, call.share))
        forecast = await self._ask(call, question)
        if refusal is None and forecast.refusal:
            refusal = errors.rejected(forecast.refusal, forecast.retry_s)
        elif refusal is None and request.qos.refuse_if_late and not forecast.on_time:
            why, expected = lateness(question.targets, forecast), (forecast.ttft_s, forecast.ttlt_s)
            refusal = errors.would_be_late(why, forecast.on_time_in_s, expected)
        return outbound.to_estimate(quality, forecast, refusal)

    async def _explain(self, call: Call) -> pb.ExplainResponse:
        request = await self._receive(call, pb.ExplainRequest)
        call.request_id = inbound.read_request_id(request)
        metadata = call.context.invocation_metadata() or ()
        is_operator = call.identity.is_operator
        if not self._identities.are_asked:  # but the operator may say that it is he
            shown = (str(value) for key, value in metadata if key == KEY)
            is_operator = self._identities.is_operator(shown)
        is_anybody_s = is_operator and not inbound.names_tenant(metadata)
        tenant = None if is_anybody_s else call.tenant
        caller = self._caller(call)
        with self._questions.hold(caller, 1):
            return await self._stories.tell(call.request_id, tenant, caller, is_operator)

    # What they share

    def _over(self, call: Call) -> None:
        """Tells the engine of a call whose requests it never had, and how one ended that stated
        nothing.
        """
        self.inferring.over(call)
        for each in unserved(call, self._sampling.max_tokens, time.monotonic()):
            self._unserved.add(each)

    def _caller(self, call: Call) -> Caller:
        """Returns whose turn and whose quota the call takes."""
        return Caller(call.share.name, call.tenant)

    def _ready(self) -> EngineInfo:
        """Returns what the engine that serves now says of itself. Raises EngineLost where none
        does, and until the first is adopted, since calls are to have the tiers that it proposes.
        """
        if self.info is None:
            raise EngineLost("the engine is starting")
        return self._engine.ready()

    def _limits(self, info: EngineInfo) -> Limits:
        """Returns what the model allows that this engine serves."""
        eos_ids = info.eos_token_ids | self._eos_ids
        return Limits(info.context_len, info.kv_len, info.vocab_size, eos_ids, self._sampling)

    def _bounds(self, info: EngineInfo | Limits | None, vocab_size: int) -> Bounds:
        """Returns what a prompt may hold; None: no engine has been ready, and nobody can say what
        fits.
        """
        if info is None:
            return Bounds(vocab_size)
        return Bounds.of(vocab_size, min(info.context_len, info.kv_len), self._longest_token)

    async def _receive(self, call: Call, kind: Any) -> Any:
        """Returns the call's message, of a kind that has no input. Raises InvalidRequest and
        CallError.
        """
        caller = self._caller(call)
        with self._prompts.hold(call.raw, caller):
            return (await self._prompts.receive(kind, call.raw, caller, Bounds(0))).message

    async def _ask(self, call: Call, question: Question[AnswerT]) -> AnswerT:
        """Returns the engine's answer; where it has none, the reason becomes a status, here and
        nowhere else.
        """
        try:
            with self._questions.hold(self._caller(call), 1):
                return await self._engine.ask(question)
        except Unanswered as error:
            raise errors.unanswered(error.failure, str(error)) from error

    async def _start(self, call: Call, kind: type[GenerateMessage]) -> None:
        """Has the engine begin with a call that generates. Raises one of `calls.FAILURES`."""
        try:
            self.calls.refuse_when_draining()
            limits = self._limits(self._ready())
        except (CallError, EngineLost):
            self._glimpse(call, kind)
            raise
        with self._prompts.hold(call.raw, self._caller(call)):
            asked, prompt = await self._admit(call, kind, limits)
            call.raw = b""
        call.resize(work(asked, len(prompt), limits))
        requests = inbound.engine_requests(
            asked,
            call.request_id,
            prompt,
            limits,
            secrets.randbits(63),
            call.arrived_at,
            "" if call.trace is None else call.trace.trace_id,
        )
        spelled = self._first_spelled(prompt)

        def text_of(index: int) -> Text:
            detokenizer = self._tokenizer.detokenizer(spelled)
            return Text(detokenizer, requests[index].sampling, asked.stop)

        texts = [text_of(index) for index in range(asked.n)]
        is_seen_whole = kind is pb.GenerateRequest
        stream = self._engine.submit(requests, is_seen_whole)
        renew = text_of if is_seen_whole else None
        call.begin(Generation(stream, len(prompt), texts, renew))

    def _glimpse(self, call: Call, kind: type[GenerateMessage]) -> None:
        """Notes what a call asks for that is turned away unread, so that its tier counts it, where
        that takes no time to see.
        """
        if len(call.raw) <= SHORT_BYTES:
            with contextlib.suppress(InvalidRequest, NotAllowed):
                message, said = parse(kind, call.raw), call.gateway.said
                call.quality = inbound.read_quality(
                    message, self.tiers, call.timeout_s(), call.tenant, said
                )

    async def _admit(
        self, call: Call, kind: type[GenerateMessage], limits: Limits
    ) -> tuple[Asked, Sequence[int]]:
        """Checks the call, enters it in the ledger and tokenizes its prompt, in this order, so that
        a call which the queue has no room for costs no more than its check. Returns what it asks
        for and the prompt's token ids. Raises one of `calls.FAILURES`.
        """
        bounds = self._bounds(limits, limits.vocab_size)
        received = await self._prompts.receive(kind, call.raw, self._caller(call), bounds)
        request_id = received.message.request_id or secrets.token_hex(8)
        call.request_id = shorten(request_id, MOST_NAME_BYTES)  # a longer one is refused
        asked = inbound.read_generate(
            received.message,
            self.tiers,
            limits.vocab_size,
            call.timeout_s(),
            call.tenant,
            bounds,
            received.prompt,
            call.gateway.said,
            self.inferring.inferred(call, received.message, self.tiers),
        )
        own = self.tiers.rights_of(call.tenant).max_requests or math.inf
        if asked.n > (most := min(self._config.max_requests, own)):
            text = f"must be at most {most}, as many as may wait or run here; got {asked.n}"
            raise InvalidRequest([Violation("sampling.n", text)])
        entry = entry_of(asked, call.request_id, len(call.raw), limits)
        self.inferring.note(call, asked, self.tiers)
        await call.enter(asked, entry, self._ledger)
        caller = self._caller(call)
        with call.reading():
            return asked, await self._prompts.encode(received, asked.input, caller, bounds)

    def _first_spelled(self, prompt: Sequence[int]) -> Sequence[int]:
        """Returns the part of the prompt that an output's text depends on: its first token that
        spells anything, if any. It may stand late in the prompt, so it is looked for once for all
        completions.
        """
        found = next(filter(self._tokenizer.spelling.of, prompt), None)
        return () if found is None else (found,)


def _tenant(call: Call, metadata: inbound.Metadata) -> str:
    """Returns on whose behalf the call is made. Raises InvalidRequest, and CallError where its
    caller names a tenant for which it may not speak. What a gateway says makes no call fail.
    """
    caller = call.identity
    of_gateway = call.gateway.tenant if caller.speaks_for_others else ""
    named = inbound.read_tenant(metadata, of_gateway or caller.tenant)
    if named != caller.tenant and not caller.speaks_for_others:
        raise errors.not_yours()
    return named


def _later(seconds: float, function: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, function)


async def _stream(call: Call) -> None:
    """Streams a call's output. What comes while messages are being written goes out next, as one
    message for each completion.

    Every token passes here, so this waits on the bare future and not through a coroutine.
    """
    generation, write, to_message = call.generation, call.context.write, call.to_message
    delivery = call.delivery
    while True:
        if outputs := generation.take():
            for output in outputs:
                delivery.pending = message = to_message(output)
                await write(message)
                delivery.pending = None
                call.is_awaited = False  # until all that came meanwhile is taken
        elif generation.is_done:
            return
        else:
            await generation.arrival()
            call.is_awaited = True


async def _gather(call: Call) -> pb.GenerateResponse:
    """Returns the response to a unary call, once all of its completions have ended."""
    answer = Answer(call.asked.n)
    while not call.generation.is_done:
        for output in await call.generation.next():
            if isinstance(output, Piece):
                call.add(output)
                answer.add(output)
            elif isinstance(output, RestartedAt):
                call.restart(output.completion)
                answer.restart(output.completion)
            elif isinstance(output, Ended):
                answer.end(output.completion, call.finish(output))
    return answer.response(call.request_id, outbound.to_targets(call.asked.quality))
