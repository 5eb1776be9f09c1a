"""Receives the messages of the standard services, health and reflection, which are short.

gRPC would receive them without a limit of time and parse them on the event loop. Here they come as
those of our own service do (`server.listening.uploads`), and their calls end with the statuses of
`server.errors`. One that is long, or is no message at all, is INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from server import defects, errors
from server.errors import CallError
from server.listening.uploads import Uploads
from server.violations import InvalidRequest, Violation

MOST_BYTES = 4096
# What is raised where the call is over already, or has just been ended.
OVER = (asyncio.CancelledError, grpc.aio.BaseError)
Admit = Callable[[grpc.aio.ServicerContext[Any, Any]], object]


class ShortMessages:
    """A server as far as generated code registers services with it. The handlers that it passes on
    to the real server parse no long message.
    """

    def __init__(
        self, server: grpc.aio.Server, uploads: Uploads, admit: Admit = lambda context: None
    ) -> None:
        """`admit` raises CallError for a call that is not to be answered, before its message is
        received.
        """
        self._server = server
        self._uploads = uploads
        self._admit = admit

    def add_generic_rpc_handlers(
        self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]
    ) -> None:
        """Registers handlers of a service, with messages that are received as uploads."""
        self._server.add_generic_rpc_handlers(
            [_Short(handler, self._uploads, self._admit) for handler in handlers]
        )

    def add_registered_method_handlers(self, _: str, __: object) -> None:
        """Does nothing: these are the same handlers once more, which an asyncio server ignores."""


class _Short(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """The RPCs of one service, whose messages are received as uploads."""

    def __init__(
        self, inner: grpc.GenericRpcHandler[Any, Any], uploads: Uploads, admit: Admit
    ) -> None:
        self._inner = inner
        self._uploads = uploads
        self._admit = admit

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Returns the handler of an RPC; None for one that is not of this service."""
        inner: Any = self._inner.service(handler_call_details)
        if inner is None:
            return None
        serialize = inner.response_serializer
        if inner.unary_unary:
            answer = self._rpc(inner, inner.unary_unary).once
            return grpc.stream_unary_rpc_method_handler(answer, response_serializer=serialize)
        behavior = inner.unary_stream or inner.stream_stream
        rpc = self._rpc(inner, behavior)
        stream: Any = rpc.once if inner.unary_stream else rpc.each
        return grpc.stream_stream_rpc_method_handler(stream, response_serializer=serialize)

    def _rpc(self, inner: Any, behavior: Any) -> _Rpc:
        return _Rpc(behavior, inner.request_deserializer, self._uploads, self._admit)


class _Rpc:
    """One RPC of a standard service, which `behavior` answers."""

    def __init__(self, behavior: Any, deserialize: Any, uploads: Uploads, admit: Admit) -> None:
        self._behavior = behavior
        self._deserialize = deserialize
        self._uploads = uploads
        self._admit = admit

    async def once(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Answers an RPC whose client sends one message."""
        try:
            self._admit(context)
            raw = await self._uploads.receive(context)
            return await self._behavior(_parse(self._deserialize, raw), context)
        except OVER:
            raise
        except Exception as error:
            await errors.abort(context, _told(error))

    async def each(
        self, _: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Message]:
        """Answers an RPC whose client may send many messages."""
        try:
            self._admit(context)
            async for answer in self._behavior(self._messages(context), context):
                yield answer
        except OVER:
            raise
        except Exception as error:
            await errors.abort(context, _told(error))

    async def _messages(
        self, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Message]:
        async for raw in self._uploads.each(context):
            yield _parse(self._deserialize, raw)


def _told(error: Exception) -> CallError:
    """Returns what a call ends with that has failed so: a defect of ours is logged, not told."""
    return error if isinstance(error, CallError) else defects.noted()


def _parse(deserialize: Callable[[bytes], Message], raw: bytes) -> Message:
    """Raises CallError, INVALID_ARGUMENT."""
    if len(raw) <= MOST_BYTES:
        try:
            return deserialize(raw)
        except DecodeError:
            pass  # which is told as follows
    text = f"the message is none of this RPC's, or has more than {MOST_BYTES} bytes"
    raise errors.invalid(InvalidRequest([Violation("", text)]))
