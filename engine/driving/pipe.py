"""The engine's end of the socket pair: blocking, with a choice of how long to wait."""

from __future__ import annotations

import select
import socket

from engine.messages import Command
from engine.processes.frames import Unpacker, send

_READ_BYTES = 1 << 18


class SocketPipe:
    """EOFError means that the other end is gone."""

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

    def send(self, message: object) -> None:
        """Waits while the socket is full: the front end always reads on."""
        send(self._socket, message)

    def _read(self) -> bytes:
        try:
            data = self._socket.recv(_READ_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError("the front end is gone")
        return data
