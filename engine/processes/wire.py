"""One end of a socket pair on the event loop: frames in, frames out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from engine.processes.frames import Unpacker, pack


class Wire(asyncio.Protocol):
    """A wire calls `receive` with each message that comes. Those that are posted in one turn of the
    event loop leave together, as one frame with a list of them, at its end or with `flush`.
    """

    def __init__(
        self, sock: socket.socket, receive: Callable[[Any], None], on_closed: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
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
        """Sends the message at the end of this turn of the event loop."""
        if not self._outbox:
            self._loop.call_soon(self.flush)
        self._outbox.append(message)

    def flush(self) -> None:
        """Sends what was posted, now: the transport may wait for the end of the turn."""
        outbox, self._outbox = self._outbox, []
        if not outbox or self._transport is None or self._transport.is_closing():
            return
        frame = pack(outbox)
        if not self._transport.get_write_buffer_size():  # nothing is before it
            frame = frame[self._send(frame) :]
        if frame:
            self._transport.write(frame)

    def _send(self, frame: bytes) -> int:
        """Returns how many bytes the socket took; what is amiss the transport finds out."""
        try:
            return self._socket.send(frame)
        except OSError:
            return 0

    def close(self) -> None:
        """Sends what was posted, then ends the connection; `closed` says when it has."""
        if self._transport is not None:
            self.flush()
            self._transport.close()


async def open_wire(
    sock: socket.socket, receive: Callable[[Any], None], on_closed: Callable[[], None]
) -> Wire:
    """Returns a wire that has taken the socket over."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    _, wire = await loop.create_unix_connection(lambda: Wire(sock, receive, on_closed), sock=sock)
    return wire
