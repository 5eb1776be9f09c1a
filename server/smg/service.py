"""`vllm.grpc.engine.VllmEngine`: the service that SMG speaks with the engines behind it.

A call that generates goes the way of every call (`server/serving.py`): same admission, identity,
tenants, limits, metrics, decision record and log line. What cannot be served is refused before its
first message, with statuses that the gateway holds against nobody who is merely busy. RPCs that are
not among those here are UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import grpc
import structlog
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import common_pb2 as common

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.tokenizer_archive import tokenizer_archive
from engine.deciding.request import Sampling
from engine.linking.errors import EngineLost
from engine.messages import EngineInfo
from server import errors
from server.admission.quota import Quota
from server.call import Call
from server.convert.gateway import TRACESTATE, Heard
from server.convert.inbound import names_tenant
from server.identity.identities import Identity
from server.listening.deliveries import Deliveries
from server.reading.messages import SHORT_BYTES, parse
from server.serving import Serving, Wording, stream
from server.smg import inbound
from server.smg.kv_events import Context, KvEvents
from server.smg.loads import to_loads
from server.smg.outbound import Responses
from server.smg.tokenizer import pieces
from server.violations import InvalidRequest, Violation

log = structlog.get_logger()

DESCRIPTOR = vllm.DESCRIPTOR.services_by_name["VllmEngine"]
NOWHERE = "niyama://"  # what begins so is no path on the gateway's disk: it asks for the tokenizer
SERVER_TYPE = "vllm-grpc"  # by which the gateway knows whose protocol it is
MOST_SENDING = 64  # tokenizers, of a front end
PIECE_S = 0.001  # a piece of a tokenizer: at most so many a second, of all that are being sent
_WORDING = Wording(inbound.parse, is_bare=True, is_gateway_s=True)
_BELIEVED = frozenset({TRACESTATE})  # nothing else that a gateway sets can carry targets here
# Of our defaults of sampling, those that the gateway may be told of.
_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens")


class VllmEngine:
    """The RPCs of VllmEngine, which `file` describes."""

    file = vllm.DESCRIPTOR

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._started_at = time.monotonic()
        self._calls: set[Call] = set()  # that generate
        self._sending = Quota("tokenizers that are being sent", MOST_SENDING, 8)
        self.tokenizer: asyncio.Task[list[Any]] | None = None  # packed; empty where it cannot be

    def handler(self, port_tier: str = "") -> grpc.GenericRpcHandler[Any, Any]:
        """Returns the handler of the service's RPCs, for a port whose calls get that tier where
        nobody states another, if it names one.
        """
        answers: dict[str, Callable[[Call], Awaitable[Any]]] = {
            "Generate": self._generate,
            "Abort": self._abort,
            "HealthCheck": self._health_check,
            "GetModelInfo": self._get_model_info,
            "GetServerInfo": self._get_server_info,
            "GetLoads": self._get_loads,
            "GetTokenizer": self._get_tokenizer,
        }
        return self._serving.handler(DESCRIPTOR, answers, Heard(port_tier, _BELIEVED))

    def kv_events(
        self, deliveries: Deliveries, identify: Callable[[Context], Identity]
    ) -> KvEvents:
        """Returns SubscribeKvEvents, which is served apart: such a call has no end of its own, and
        no drain is to wait for it.
        """
        serving = self._serving
        return KvEvents(serving.engine, deliveries, serving.tokenizer.bos_id, identify)

    def start(self) -> None:
        """Has the tokenizer packed, by a thread."""
        self.tokenizer = asyncio.create_task(asyncio.to_thread(self._packed))

    async def stop(self) -> None:
        """Waits for that thread."""
        if self.tokenizer is not None:
            await asyncio.gather(self.tokenizer, return_exceptions=True)

    def _packed(self) -> list[Any]:
        try:
            return pieces(tokenizer_archive(self._serving.config.engine.model))
        except CheckpointError as error:
            log.error("no tokenizer for gateways", reason=str(error))
            return []

    async def _generate(self, call: Call) -> None:
        self._calls.add(call)
        try:
            await self._serving.begin(call, _WORDING)
            responses = Responses(call)
            if call.is_streamed:
                await stream(call, responses.to_message)
            else:
                await _write(call, await responses.gather())
        except InvalidRequest as error:
            raise inbound.renamed(error) from error
        finally:
            self._calls.discard(call)

    async def _abort(self, call: Call) -> Any:
        """Ends the calls of these ids that the same caller has made at this front end, where all of
        its connection are. Nobody is told whether there were any.

        Of several that share an id nobody knows which is meant. They end once each may be: when
        there have been as many Aborts.
        """
        ids = set(_read(call, vllm.AbortRequest).request_ids)
        meant: dict[str, list[Call]] = {}
        for each in self._calls:
            if each.stated_id and each.stated_id in ids and _may_abort(call, each):
                each.num_aborts += 1
                meant.setdefault(each.stated_id, []).append(each)
        for same in meant.values():
            if all(each.num_aborts >= len(same) for each in same):
                for each in same:
                    each.abort()
        return vllm.AbortResponse()

    async def _health_check(self, call: Call) -> Any:
        """Answers where calls would be served, and else ends UNAVAILABLE: to a gateway that is told
        that a server is there and not healthy, it is one that has no name and no tokenizer.
        """
        _read(call, vllm.HealthCheckRequest)
        self._serving.calls.refuse_when_draining()
        self._serving.ready()
        return vllm.HealthCheckResponse(healthy=True)

    async def _get_model_info(self, call: Call) -> Any:
        _read(call, vllm.GetModelInfoRequest)
        info, serving = self._info(), self._serving
        limits = serving.limits(info)
        longest = min(info.context_len, info.kv_len)
        bos_id = serving.tokenizer.bos_id
        return vllm.GetModelInfoResponse(
            model_path=f"{NOWHERE}{info.model_name}",
            tokenizer_path=f"{NOWHERE}{info.model_name}",
            served_model_name=_served_name(info.model_name, call.heard.port_tier),
            is_generation=True,
            max_context_length=longest,
            max_req_input_len=longest - 1,
            vocab_size=info.vocab_size,
            architectures=[info.architecture],
            eos_token_ids=sorted(limits.eos_token_ids),
            bos_token_id=0 if bos_id is None else bos_id,
            default_sampling_params_json=_defaults(serving.sampling),
        )

    async def _get_server_info(self, call: Call) -> Any:
        _read(call, vllm.GetServerInfoRequest)
        info, speaks = self._info(), call.identity.speaks_for_others
        theirs = [each for each in self._calls if speaks or each.identity == call.identity]
        return vllm.GetServerInfoResponse(
            active_requests=len(theirs),
            uptime_seconds=time.monotonic() - self._started_at,
            server_type=SERVER_TYPE,
            data_parallel_size=1,
            block_size=info.page_size,
            model_dtype=info.dtype,
            # Whatever may wait here: a gateway that holds back what does not run at once would keep
            # from the scheduler here what it is to put in order.
            max_num_seqs=self._serving.config.max_requests,
        )

    async def _get_loads(self, call: Call) -> Any:
        if not call.identity.speaks_for_others:
            raise errors.not_for_tenants()
        _read(call, vllm.GetLoadsRequest)
        load = await self._serving.loads.now()
        if load is None:
            raise EngineLost("the engine is starting")
        port_tier = self._serving.tiers.tiers.get(call.heard.port_tier)
        return to_loads(load, self._serving.config.max_requests, port_tier)

    async def _get_tokenizer(self, call: Call) -> None:
        _read(call, common.GetTokenizerRequest)
        assert self.tokenizer is not None
        with self._sending.hold(self._serving.caller(call), 1):
            messages = await asyncio.shield(self.tokenizer)
            if not messages:
                raise errors.no_tokenizer()
            for message in messages:
                await _write(call, [message])
                await _rest(self._sending.total)

    def _info(self) -> EngineInfo:
        if self._serving.info is None:
            raise EngineLost("the engine is starting")
        return self._serving.info


def _read(call: Call, kind: Any) -> Any:
    """Returns the message of a call that generates nothing, which is short. Raises
    InvalidRequest.
    """
    if len(call.raw) > SHORT_BYTES:
        text = f"must be at most {SHORT_BYTES} bytes long, got {len(call.raw)}"
        raise InvalidRequest([Violation("", text)])
    return parse(kind, call.raw)


async def _write(call: Call, messages: list[Any]) -> None:
    for message in messages:
        call.delivery.pending = message
        await call.context.write(message)
        call.delivery.pending = None


async def _rest(num_sending: int) -> None:
    """Waits after a piece of a tokenizer, of so many that are being sent: tokens come before."""
    await asyncio.sleep(num_sending * PIECE_S)


def _may_abort(caller: Call, call: Call) -> bool:
    """Returns whether a call is its caller's to end: made by the same, and of the same tenant where
    it names one.
    """
    metadata = caller.context.invocation_metadata() or ()
    is_named = names_tenant(metadata) or caller.gateway.tenant
    return call.identity == caller.identity and (not is_named or call.tenant == caller.tenant)


def _served_name(model: str, port_tier: str) -> str:
    """Returns the model's name for a gateway. At a port with a tier it is another one, so that who
    can choose nothing but a model chooses the tier by it.
    """
    return f"{model}:{port_tier}" if port_tier else model


def _defaults(sampling: Sampling) -> str:
    """Returns the sampling of requests that leave it out, as JSON."""
    return json.dumps({name: asdict(sampling)[name] for name in _DEFAULTS})
