"""What the services of a front end share: how a call is placed, read, admitted, begun and answered.

A bad request ends here, before any engine state exists. `server/calls.py` has received a call's
message before, and ends the call afterwards; what is asked and how it is answered is each service's
own (`server/service.py`, `server/smg/service.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from engine.checkpoint.tokenizer import Tokenizer
from engine.deciding.questions import AnswerT, Question, Stats
from engine.deciding.request import Sampling, key_of
from engine.linking.errors import DuplicateRequest, EngineLost, Unanswered
from engine.linking.link import EngineLink
from engine.messages import EngineInfo
from engine.rights import NotAllowed
from engine.tiers import Tiers
from engine.tiers_file import MOST_NAME_BYTES
from niyama.v1 import inference_pb2 as pb
from server import errors
from server.admission.ledger import LedgerLink
from server.admission.quota import Caller, Quota
from server.bounded import shorten
from server.call import Call
from server.calls import Calls
from server.config import ServerConfig
from server.convert import gateway, inbound
from server.convert.gateway import Heard
from server.convert.inbound import Asked, Limits
from server.convert.input import Bounds
from server.convert.work import entry_of, work
from server.errors import CallError
from server.generation import Generation, Output, Text
from server.inferring import Inferring
from server.listening.orca import CallReports
from server.loads import Loads
from server.reading.messages import SHORT_BYTES, Parse
from server.reading.prompts import Prompts, Received
from server.unserved import UnservedCalls, unserved
from server.violations import InvalidRequest, Violation

MAX_QUESTIONS = 256  # in the engine at once
REPEATED = "~"  # between an id that is in flight and what makes another of it


class Wording(NamedTuple):
    """How a service's messages that generate are to be taken."""

    parse: Parse  # makes of one the message of `niyama.v1` that asks for the same
    is_bare: bool = False  # its token ids lack those that the model wants around a prompt
    # Its id is a gateway's: it says of the call what it may, repeats, and is cut where it is long.
    is_gateway_s: bool = False


class Serving:
    """The state that services share, in front of an engine that comes and goes.

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
        calls: Calls,
        inferring: Inferring,
    ) -> None:
        self.config = config
        self.engine = engine
        self.tokenizer = tokenizer
        self.sampling = sampling  # of requests that leave it out
        self.ledger = ledger
        self._eos_ids = frozenset() if tokenizer.eos_id is None else {tokenizer.eos_id}
        spelling = tokenizer.spelling
        self._longest_token = max((len(spelling.of(i)) for i in range(len(spelling))), default=0)
        self.prompts = Prompts(tokenizer, config)
        self.questions = Quota("questions to the engine", MAX_QUESTIONS)
        self.calls = calls
        self.inferring = inferring
        self.calls.on_over = self._over
        self._unserved = UnservedCalls(engine.tell, _later)
        self.tiers = tiers
        self.reports: CallReports | None = None  # for the trailers of calls
        self.info: EngineInfo | None = None  # of the last engine that was ready
        self.loads = Loads(lambda: engine.ask(Stats(self.tiers.asked())), lambda: self.info)

    def adopt(self, info: EngineInfo, tiers: Tiers) -> None:
        """Takes over what an engine that is ready says of itself, and the tiers from now on."""
        self.info, self.tiers = info, tiers

    def reconfigure(self, config: ServerConfig, tiers: Tiers) -> None:
        """Takes other limits and tiers for the calls to come."""
        self.config, self.tiers = config, tiers
        self.inferring.mode = config.infer

    def start(self) -> None:
        """Starts the processes that read long messages."""
        self.prompts.start()

    async def stop(self) -> None:
        """Ends the processes that read long messages, and tells the engine what is untold."""
        self._unserved.flush()
        await self.prompts.stop()

    def handler(
        self,
        service: ServiceDescriptor,
        answers: Mapping[str, Callable[[Call], Awaitable[Any]]],
        heard: Heard,
    ) -> grpc.GenericRpcHandler[Any, Any]:
        """Returns the handler of a service's RPCs at one port, as `Calls.handler` does; `heard` is
        what there is believed of calls besides their messages.
        """
        placed = {name: partial(self._answer, heard, answer) for name, answer in answers.items()}
        return self.calls.handler(service, placed)

    async def _answer(
        self, heard: Heard, answer: Callable[[Call], Awaitable[Any]], call: Call
    ) -> Any:
        """Answers a call once it is known whose it is."""
        call.heard = heard
        self._place(call)
        response = await answer(call)
        if self.reports is not None and call.generates and call.identity.speaks_for_others:
            call.context.set_trailing_metadata(self.reports.trailers(call.cost()))
        return response

    def _place(self, call: Call, request_id: str = "") -> None:
        """Notes what a gateway says of a call and whose it is; `request_id` is what it may say that
        by, once the message has been read. Raises InvalidRequest and CallError.
        """
        metadata, heard = call.context.invocation_metadata() or (), call.heard
        call.gateway = gateway.read(
            metadata,
            self.tiers,
            keys=gateway.KEYS if self.config.gateway_metadata else heard.keys,
            request_id=request_id,
            port_tier=heard.port_tier,
        )
        call.tenant = _tenant(call, metadata)
        call.share = self.tiers.share_of(call.tenant)

    # What a question needs

    def caller(self, call: Call) -> Caller:
        """Returns whose turn and whose quota the call takes."""
        return Caller(call.share.name, call.tenant)

    def ready(self) -> EngineInfo:
        """Returns what the engine that serves now says of itself. Raises EngineLost where none
        does, and until the first is adopted, since calls are to have the tiers that it proposes.
        """
        if self.info is None:
            raise EngineLost("the engine is starting")
        return self.engine.ready()

    def limits(self, info: EngineInfo) -> Limits:
        """Returns what the model allows that this engine serves."""
        eos_ids = info.eos_token_ids | self._eos_ids
        return Limits(info.context_len, info.kv_len, info.vocab_size, eos_ids, self.sampling)

    def bounds(self, info: EngineInfo | Limits | None, vocab_size: int) -> Bounds:
        """Returns what a prompt may hold; None: no engine has been ready, and nobody can say what
        fits.
        """
        if info is None:
            return Bounds(vocab_size)
        return Bounds.of(vocab_size, min(info.context_len, info.kv_len), self._longest_token)

    async def receive(self, call: Call, parse: Parse) -> Any:
        """Returns the call's message, of a kind that has no input. Raises InvalidRequest and
        CallError.
        """
        caller = self.caller(call)
        with self.prompts.hold(call.raw, caller):
            return (await self.prompts.receive(parse, call.raw, caller, Bounds(0))).message

    async def ask(self, call: Call, question: Question[AnswerT]) -> AnswerT:
        """Returns the engine's answer; where it has none, the reason becomes a status, here and
        nowhere else.
        """
        try:
            with self.questions.hold(self.caller(call), 1):
                return await self.engine.ask(question)
        except Unanswered as error:
            raise errors.unanswered(error.failure, str(error)) from error

    # What generates

    async def begin(self, call: Call, wording: Wording) -> None:
        """Has the engine begin with a call that generates. Raises one of `calls.FAILURES`."""
        try:
            self.calls.refuse_when_draining()
            limits = self.limits(self.ready())
        except (CallError, EngineLost):
            self._glimpse(call, wording)
            raise
        with self.prompts.hold(call.raw, self.caller(call)):
            asked, prompt = await self._admit(call, wording, limits)
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
            detokenizer = self.tokenizer.detokenizer(spelled)
            return Text(detokenizer, requests[index].sampling, asked.stop)

        texts = [text_of(index) for index in range(asked.n)]
        is_seen_whole = not call.is_streamed
        stream = self.engine.submit(requests, is_seen_whole)
        renew = text_of if is_seen_whole else None
        call.begin(Generation(stream, len(prompt), texts, renew))

    def _glimpse(self, call: Call, wording: Wording) -> None:
        """Notes what a call asks for that is turned away unread, so that its tier counts it, where
        that takes no time to see.
        """
        if len(call.raw) <= SHORT_BYTES:
            with contextlib.suppress(InvalidRequest, NotAllowed):
                message = wording.parse(call.raw)
                if wording.is_gateway_s:
                    self._place(call, message.request_id)
                said, timeout_s = call.gateway.said, call.timeout_s()
                call.quality = inbound.read_quality(
                    message, self.tiers, timeout_s, call.tenant, said
                )

    async def _admit(
        self, call: Call, wording: Wording, limits: Limits
    ) -> tuple[Asked, Sequence[int]]:
        """Checks the call, enters it in the ledger and tokenizes its prompt, in this order, so that
        a call which the queue has no room for costs no more than its check. Returns what it asks
        for and the prompt's token ids. Raises one of `calls.FAILURES`.
        """
        bounds = self.bounds(limits, limits.vocab_size)
        caller = self.caller(call)
        received = await self.prompts.receive(wording.parse, call.raw, caller, bounds)
        message = received.message
        call.is_streamed = isinstance(message, pb.GenerateStreamRequest)
        call.stated_id = message.request_id
        if wording.is_gateway_s:
            self._place(call, message.request_id)
            message.request_id = message.request_id[:MOST_NAME_BYTES]
        request_id = message.request_id or secrets.token_hex(8)
        call.request_id = shorten(request_id, MOST_NAME_BYTES)  # a longer one is refused
        asked = inbound.read_generate(
            message,
            self.tiers,
            limits.vocab_size,
            call.timeout_s(),
            call.tenant,
            bounds,
            received.prompt,
            call.gateway.said,
            self.inferring.inferred(call, message, self.tiers),
        )
        own = self.tiers.rights_of(call.tenant).max_requests or math.inf
        if asked.n > (most := min(self.config.max_requests, own)):
            text = f"must be at most {most}, as many as may wait or run here; got {asked.n}"
            raise InvalidRequest([Violation("sampling.n", text)])
        self.inferring.note(call, asked, self.tiers)
        await self._enter(call, asked, wording, limits)
        return asked, await self._encode(call, received, asked, wording, bounds)

    async def _enter(self, call: Call, asked: Asked, wording: Wording, limits: Limits) -> None:
        """Enters the call in the ledger, under another id where its own is in flight and may be.
        Raises Refused or DuplicateRequest.
        """
        if wording.is_gateway_s and self._is_ending(call, asked):
            call.request_id = _another(call.request_id)
        entry = entry_of(asked, call.request_id, len(call.raw), limits)
        try:
            await call.enter(asked, entry, self.ledger)
        except DuplicateRequest:
            if not wording.is_gateway_s:
                raise
            call.request_id = _another(call.request_id)
            await call.enter(asked, entry._replace(request_id=call.request_id), self.ledger)

    def _is_ending(self, call: Call, asked: Asked) -> bool:
        """Returns whether the engine may have a request of the call's id, be it one that it has
        been told to end: whoever left with it, the ledger knows it no more.
        """
        indexes = [None] if asked.n == 1 else range(asked.n)
        return any(self.engine.has(key_of(call.tenant, call.request_id, i)) for i in indexes)

    async def _encode(
        self, call: Call, received: Received, asked: Asked, wording: Wording, bounds: Bounds
    ) -> Sequence[int]:
        """Returns the prompt's token ids. Raises InvalidRequest and CallError."""
        with call.reading():
            ids = await self.prompts.encode(received, asked.input, self.caller(call), bounds)
        is_bare = wording.is_bare and asked.input.field == "input.token_ids"
        return self.tokenizer.surrounded(ids) if is_bare else ids

    def _first_spelled(self, prompt: Sequence[int]) -> Sequence[int]:
        """Returns the part of the prompt that an output's text depends on: its first token that
        spells anything, if any. It may stand late in the prompt, so it is looked for once for all
        completions.
        """
        found = next(filter(self.tokenizer.spelling.of, prompt), None)
        return () if found is None else (found,)

    def _over(self, call: Call) -> None:
        """Tells the engine of a call whose requests it never had, and how one ended that stated
        nothing.
        """
        self.inferring.over(call)
        for each in unserved(call, self.sampling.max_tokens, time.monotonic()):
            self._unserved.add(each)


async def stream(call: Call, to_message: Callable[[Output], Message | None]) -> None:
    """Streams a call's output, in messages that `to_message` makes, None for nothing to tell. What
    comes while messages are being written goes out next, as one message for each completion.

    Every token passes here, so this waits on the bare future and not through a coroutine.
    """
    generation, write, delivery = call.generation, call.context.write, call.delivery
    while True:
        if outputs := generation.take():
            for output in outputs:
                message = to_message(output)
                if message is not None:
                    delivery.pending = message
                    await write(message)
                    delivery.pending = None
                call.is_awaited = False  # until all that came meanwhile is taken
        elif generation.is_done:
            return
        else:
            await generation.arrival()
            call.is_awaited = True


def _another(request_id: str) -> str:
    """Returns an id that nobody has, which begins as that one does."""
    suffix = REPEATED + secrets.token_hex(8)
    return request_id[: MOST_NAME_BYTES - len(suffix)] + suffix


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
