"""One end of a socket pair on the event loop: frames in, frames out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from engine.driving.messages import Unpacker, pack


class Wire(asyncio.Protocol):
    """Calls `receive` with each message; those posted in one turn of the event loop leave together,
    as one frame with a list of them.
    """

    def __init__(self, receive: Callable[[Any], None], on_closed: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._on_closed = on_closed
        self._unpacker = Unpacker()
        self._outbox: list[Any] = []
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, which is one

    def data_received(self, data: bytes) -> None:
        for message in self._unpacker.feed(data):
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._on_closed()

    def post(self, message: Any) -> None:
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(outbox))

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()


async def open_wire(
    sock: socket.socket, receive: Callable[[Any], None], on_closed: Callable[[], None]
) -> Wire:
    """Takes the socket over."""
    loop = asyncio.get_running_loop()
    _, wire = await loop.create_unix_connection(lambda: Wire(receive, on_closed), sock=sock)
    return wire
