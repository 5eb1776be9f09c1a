"""The calls of one front end: each from the arrival of its message to its line in the log.

Messages are received here and not by gRPC, which would wait for them for ever and parse them on the
event loop, however long that takes. The arrival of a call is stamped here, once. Whatever ends a
call, a client that leaves or a deadline included, frees what the engine holds for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from engine.deciding.sequence import FinishReason
from engine.linking.errors import DuplicateRequest, EngineLost
from engine.rights import NotAllowed
from server import defects, errors
from server.call import Call
from server.convert import trace_context
from server.errors import CallError
from server.generation import GenerationFailed
from server.identity.identities import ANYBODY, Identity
from server.listening.deliveries import Deliveries
from server.listening.uploads import Uploads
from server.metrics import Metrics
from server.tracing import Tracing
from server.violations import InvalidRequest

FAILURES = (CallError, InvalidRequest, NotAllowed, DuplicateRequest, GenerationFailed, EngineLost)
# How grpc.aio tells a handler that its call is over: it cancels the task, and where the task writes
# before that it raises InternalError (a failed batch) or UsageError (a status was sent).
DEAD = (asyncio.CancelledError, grpc.aio.BaseError)
Context = grpc.aio.ServicerContext[Any, Any]
ResponseT = TypeVar("ResponseT")
OWN = "niyama.v1.Inference"


class Calls:
    """Receives, answers and ends calls. `idle` is set while no call is being served."""

    def __init__(
        self,
        metrics: Metrics,
        deliveries: Deliveries,
        uploads: Uploads,
        identify: Callable[[Context], Identity] = lambda context: ANYBODY,
    ) -> None:
        """`identify` returns who makes a call, or raises CallError; nothing of a message is
        received before.
        """
        self._metrics = metrics
        self._identify = identify
        self._deliveries = deliveries
        self.uploads = uploads
        self._num_calls = 0
        self._is_draining = False
        self._is_stopping = False
        self.tracing: Tracing | None = None
        self.on_over: Callable[[Call], None] = lambda call: None  # is told of each that is closed
        self.idle = asyncio.Event()
        self.idle.set()

    def handler(
        self, service: ServiceDescriptor, answers: Mapping[str, Callable[[Call], Awaitable[Any]]]
    ) -> grpc.GenericRpcHandler[Any, Any]:
        """Returns the handler of those of a service's RPCs that `answers` has the functions of, by
        name. To all others gRPC answers UNIMPLEMENTED.

        Each function returns the response to its call, as a message or as the bytes of one. That of
        an RPC that streams writes the messages itself, and returns nothing.
        """
        rpcs = {}
        for name, answer in answers.items():
            method = service.methods_by_name[name]
            kind = "stream_stream" if method.server_streaming else "stream_unary"
            make = getattr(grpc, f"{kind}_rpc_method_handler")
            behavior = partial(self._receive_and_serve, rpc_name(service.full_name, name), answer)
            rpcs[name] = make(behavior, response_serializer=_serialize)
        return grpc.method_handlers_generic_handler(service.full_name, rpcs)

    async def drain(self) -> None:
        """Has `refuse_when_draining` refuse from now on; returns when all calls have ended."""
        self._is_draining = True
        await self.idle.wait()

    def stop(self) -> None:
        """Has calls that gRPC ends from now on counted as ended by the server."""
        self._is_stopping = True

    def refuse_when_draining(self) -> None:
        """Raises CallError, UNAVAILABLE, once the server drains."""
        if self._is_draining:
            raise errors.draining()

    async def _receive_and_serve(
        self,
        rpc: str,
        answer: Callable[[Call], Awaitable[ResponseT]],
        _: object,
        context: Context,
    ) -> ResponseT:
        """Waits for the message, then serves the call. Draining waits only for calls whose message
        has come.
        """
        try:
            return await self._serve(await self._received(rpc, context), answer)
        except DEAD:
            raise
        except Exception:  # in ending it: gRPC would tell the caller all of that
            await errors.abort(context, defects.noted(rpc=rpc))

    async def _received(self, rpc: str, context: Context) -> Call:
        """Returns the call, once its message has come. Where none comes, the call ends here, and
        what gRPC then raises is raised.
        """
        allowed_s = context.time_remaining()
        try:
            identity = self._identify(context)
            raw = await self.uploads.receive(context)
        except CallError as error:
            call = self._without_message(rpc, context, allowed_s)
            call.fail(error)
            if call.has_expired():  # gRPC does not say so
                call.outcome = grpc.StatusCode.DEADLINE_EXCEEDED.name
            elif error.reason == "NO_MESSAGE":  # most have left, and are told nothing
                call.outcome = grpc.StatusCode.CANCELLED.name
            call.close()
            await errors.abort(context, error)
        except DEAD:
            call = self._without_message(rpc, context, allowed_s)
            call.leave()
            call.close()
            raise
        return Call(rpc, time.monotonic(), context, self._metrics, allowed_s, raw, identity)

    def _without_message(self, rpc: str, context: Context, allowed_s: float | None) -> Call:
        call = Call(rpc, time.monotonic(), context, self._metrics, allowed_s)
        call.delivery = self._deliveries.begin(context, call.give_up)
        return call

    async def _serve(self, call: Call, answer: Callable[[Call], Awaitable[ResponseT]]) -> ResponseT:
        """Serves a call from its arrival to its log line. Afterwards the engine holds nothing for
        it.
        """
        context = call.context
        call.trace = trace_context.read(context.invocation_metadata() or ())
        if self.tracing is not None:
            self.tracing.begin(call)
        call.delivery = delivery = self._deliveries.begin(context, call.give_up)
        self._num_calls += 1
        self.idle.clear()
        self._metrics.in_flight.inc(call.generates)
        try:
            return await answer(call)
        except FAILURES as error:
            failure = _translate(error)
            failure.about = {**call.about(), **failure.about}
            call.fail(failure)
            await errors.abort(context, failure, call.request_id)
        except DEAD:
            (call.cut if self._is_stopping else call.leave)()
            raise
        except Exception:  # a defect of ours, of which gRPC would tell the caller
            failure = defects.noted(rpc=call.rpc, request_id=call.request_id)
            call.fail(failure)
            await errors.abort(context, failure)
        finally:
            call.close()
            self.on_over(call)
            if self.tracing is not None:
                self.tracing.end(call)
            delivery.pending = call  # of which gRPC may still have something to send
            self._metrics.in_flight.dec(call.generates)
            self._num_calls -= 1
            if not self._num_calls:
                self.idle.set()


def rpc_name(service: str, method: str) -> str:
    """Returns an RPC's name as metrics and logs have it: bare where it is of our own service."""
    return method if service == OWN else f"{service}/{method}"


def _serialize(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _translate(error: Exception) -> CallError:
    """Returns the status that an exception stands for. No other place knows."""
    if isinstance(error, CallError):
        return error
    if isinstance(error, InvalidRequest):
        return errors.invalid(error)
    if isinstance(error, NotAllowed):
        return errors.not_allowed(error)
    if isinstance(error, DuplicateRequest):
        return errors.in_flight(str(error))
    if isinstance(error, GenerationFailed):
        if error.reason is FinishReason.REJECTED:
            return errors.rejected(str(error), error.retry_s)
        if error.reason is FinishReason.WOULD_BE_LATE and error.expected is not None:
            return errors.would_be_late(str(error), error.retry_s, error.expected)
        if error.reason is FinishReason.DISPLACED:
            return errors.waited_too_long(str(error), error.retry_s)
        is_error = error.reason is FinishReason.ERROR
        return (errors.engine_error if is_error else errors.cancelled)(str(error))
    return errors.engine_lost(str(error))
