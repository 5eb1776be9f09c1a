"""The standard services beside ours, health and reflection: what they are asked is short.

gRPC parses their messages, on the event loop. One that is long, or none at all, is read as a
question for something that nobody knows, and answered so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

MOST_BYTES = 4096
# In each of their messages field 1 is a text: the service, or the host.
UNKNOWN = b"\x0a\x01?"


class ShortQuestions:
    """A server as their stubs register with it; its handlers parse no long message."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_Short(handler) for handler in handlers])

    def add_registered_method_handlers(self, _: str, __: object) -> None:
        """The same once more, which an asyncio server does not look at."""


class _Short(grpc.GenericRpcHandler):
    def __init__(self, inner: grpc.GenericRpcHandler) -> None:
        self._inner = inner

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler: Any = self._inner.service(handler_call_details)
        if handler is None:
            return None
        return handler._replace(request_deserializer=partial(_parse, handler.request_deserializer))


def _parse(deserialize: Callable[[bytes], Message], raw: bytes) -> Message:
    if len(raw) <= MOST_BYTES:
        try:
            return deserialize(raw)
        except DecodeError:
            pass  # what it is read as follows
    return deserialize(UNKNOWN)
