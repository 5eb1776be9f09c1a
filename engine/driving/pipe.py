"""The engine's end of the socket pair: blocking, with a choice of how long to wait."""

from __future__ import annotations

import select
import socket
from typing import Any

from engine.messages import Command, Unpacker, missing_bytes, pack

_READ_BYTES = 1 << 18


class SocketPipe:
    """Speaks frames of `engine.messages`. EOFError means that the other end is gone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._unpacker = Unpacker()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def receive(self, timeout_s: float | None) -> list[Command]:
        """The commands posted so far; waits up to `timeout_s` (None: for ever) for the first."""
        commands: list[Command] = []
        timeout_ms = None if timeout_s is None else timeout_s * 1000
        while self._poll.poll(timeout_ms):
            for batch in self._unpacker.feed(self._read()):
                commands += batch
            if commands:
                timeout_ms = 0
        return commands

    def receive_first(self) -> Any:
        """The first message of all, which says what to build; what follows may be read elsewhere,
        and is left in the socket.
        """
        received = bytearray()
        while (missing := missing_bytes(received)) > 0:
            received += self._read(missing)
        (message,) = self._unpacker.feed(received)
        return message

    def send(self, message: object) -> None:
        """Waits while the socket is full: the front end always reads on."""
        try:
            self._socket.sendall(pack(message))
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError("the front end is gone") from None

    def _read(self, most: int = _READ_BYTES) -> bytes:
        try:
            data = self._socket.recv(most)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError("the front end is gone")
        return data
