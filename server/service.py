"""The Inference service: what each RPC of `niyama.v1` answers (`server/serving.py` has the way)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import grpc

from engine.deciding.forecast import lateness
from engine.linking.errors import EngineLost
from niyama.v1 import inference_pb2 as pb
from server import errors
from server.answer import Answer
from server.call import Call
from server.convert import inbound, outbound
from server.convert.gateway import Heard
from server.convert.input import read_input
from server.convert.load import to_load
from server.convert.work import entry_of_estimate
from server.explaining import Stories
from server.generation import Ended, Piece, RestartedAt
from server.identity.identities import Identities
from server.identity.tokens import KEY
from server.reading.messages import parse
from server.serving import Serving, Wording, stream

_SERVICE = pb.DESCRIPTOR.services_by_name["Inference"]
_WHOLE = Wording(partial(parse, pb.GenerateRequest))
_STREAMED = Wording(partial(parse, pb.GenerateStreamRequest))


class InferenceService:
    """The RPCs of `niyama.v1.Inference`."""

    def __init__(self, serving: Serving, identities: Identities) -> None:
        self._serving = serving
        self._identities = identities
        self._stories = Stories(serving.engine.ask, serving.config.engine.decision_log)

    def handler(self, port_tier: str = "") -> grpc.GenericRpcHandler[Any, Any]:
        """Returns the handler of the service's RPCs, for a port whose calls get that tier where
        nobody states another, if it names one.
        """
        answers: dict[str, Callable[[Call], Awaitable[Any]]] = {
            "Generate": self._generate,
            "GenerateStream": self._generate_stream,
            "Estimate": self._estimate,
            "Explain": self._explain,
            "CountTokens": self._count_tokens,
            "GetServerInfo": self._get_server_info,
            "GetLoad": self._get_load,
        }
        return self._serving.handler(_SERVICE, answers, Heard(port_tier))

    async def _generate_stream(self, call: Call) -> None:
        await self._serving.begin(call, _STREAMED)
        await stream(call, call.to_message)

    async def _generate(self, call: Call) -> pb.GenerateResponse:
        await self._serving.begin(call, _WHOLE)
        return await _gather(call)

    async def _count_tokens(self, call: Call) -> bytes:
        serving = self._serving
        serving.calls.refuse_when_draining()
        bounds = serving.bounds(serving.info, serving.tokenizer.vocab_size)
        caller, prompts = serving.caller(call), serving.prompts
        with prompts.hold(call.raw, caller):
            kind = partial(parse, pb.CountTokensRequest)
            received = await prompts.receive(kind, call.raw, caller, bounds)
            asked = received.prompt or read_input(received.message.input, bounds)
            return await prompts.count(received, asked, caller, bounds)

    async def _get_server_info(self, call: Call) -> pb.GetServerInfoResponse:
        serving = self._serving
        await serving.receive(call, partial(parse, pb.GetServerInfoRequest))
        if serving.info is None:
            raise EngineLost("the engine is starting")
        info = serving.info
        limits = pb.Limits(
            max_requests=serving.config.max_requests,
            max_batch_size=info.max_batch_size,
            kv_tokens=info.kv_len,
            max_message_bytes=serving.config.max_message_bytes,
        )
        has_chat = serving.tokenizer.has_chat_template
        tiers = serving.tiers.seen_by(call.tenant)
        return outbound.to_server_info(
            version("niyama"), info, tiers, limits, serving.sampling, has_chat
        )

    async def _get_load(self, call: Call) -> pb.GetLoadResponse:
        if not call.identity.speaks_for_others:
            raise errors.not_for_tenants()
        await self._serving.receive(call, partial(parse, pb.GetLoadRequest))
        load = await self._serving.loads.now()
        if load is None:
            raise EngineLost("the engine is starting")
        return to_load(load)

    async def _estimate(self, call: Call) -> pb.EstimateResponse:
        serving = self._serving
        serving.calls.refuse_when_draining()
        request = await serving.receive(call, partial(parse, pb.EstimateRequest))
        limits = serving.limits(serving.ready())
        question, quality = inbound.read_estimate(
            request, serving.tiers, limits, call.tenant, call.gateway.said
        )
        refusal = await serving.ledger.refusal(entry_of_estimate(question, call.share))
        forecast = await serving.ask(call, question)
        if refusal is None and forecast.refusal:
            refusal = errors.rejected(forecast.refusal, forecast.retry_s)
        elif refusal is None and request.qos.refuse_if_late and not forecast.on_time:
            why, expected = lateness(question.targets, forecast), (forecast.ttft_s, forecast.ttlt_s)
            refusal = errors.would_be_late(why, forecast.on_time_in_s, expected)
        return outbound.to_estimate(quality, forecast, refusal)

    async def _explain(self, call: Call) -> pb.ExplainResponse:
        request = await self._serving.receive(call, partial(parse, pb.ExplainRequest))
        call.request_id = inbound.read_request_id(request)
        metadata = call.context.invocation_metadata() or ()
        is_operator = call.identity.is_operator
        if not self._identities.are_asked:  # but the operator may say that it is he
            shown = (str(value) for key, value in metadata if key == KEY)
            is_operator = self._identities.is_operator(shown)
        is_anybody_s = is_operator and not inbound.names_tenant(metadata)
        tenant = None if is_anybody_s else call.tenant
        caller = self._serving.caller(call)
        with self._serving.questions.hold(caller, 1):
            return await self._stories.tell(call.request_id, tenant, caller, is_operator)


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
