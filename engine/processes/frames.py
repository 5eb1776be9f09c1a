"""Messages as bytes between two processes of ours.

A frame is a 4-byte big-endian length and a pickle (protocol 5) of that many bytes. Both ends of a
socket pair are made by the parent, which starts the child, so unpickling trusts nobody else.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("!I")


def pack(message: object) -> bytes:
    """Returns one frame."""
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Turns a byte stream back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[Any]:
        """Takes `data` in and yields every message that is now complete."""
        buffer = self._buffer
        buffer += data
        start, size = 0, len(buffer)
        messages = []
        while size - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if end > size:
                break
            with memoryview(buffer) as view:
                messages.append(pickle.loads(view[start + _LENGTH.size : end]))
            start = end
        del buffer[:start]
        return iter(messages)


def receive(sock: socket.socket) -> Any:
    """Returns the next message of a blocking socket, and leaves what follows it in the socket for
    whoever reads on. Raises EOFError when the other end is gone.
    """
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size))
    return pickle.loads(_read(sock, length))


def send(sock: socket.socket, message: object) -> None:
    """Waits while a blocking socket is full. Raises EOFError when the other end is gone."""
    try:
        sock.sendall(pack(message))
    except (BrokenPipeError, ConnectionResetError):
        raise EOFError("the other end is gone") from None


def _read(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    missing = memoryview(data)
    while missing:
        try:
            num_read = sock.recv_into(missing)
        except ConnectionResetError:
            num_read = 0
        if not num_read:
            raise EOFError("the other end is gone")
        missing = missing[num_read:]
    return data
