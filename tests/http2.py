"""An HTTP/2 client made by hand, for what no well-behaved gRPC client does: windows of 0, streams
that are never read, connections that say nothing. Blocking, on one socket.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Mapping
from types import MappingProxyType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
MAX_CONCURRENT_STREAMS = 3


class Frame:
    """One frame as it came: `kind`, `flags`, `stream` and `payload`."""

    def __init__(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.kind, self.flags, self.stream, self.payload = kind, flags, stream, payload


class Http2:
    """A connection whose streams begin with a window of `window` bytes."""

    def __init__(self, address: str, window: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), 60)
        self._next_stream = 1
        self._received = b""
        self.send_raw(PREFACE)
        self.send(SETTINGS, 0, 0, struct.pack("!HI", INITIAL_WINDOW_SIZE, window))

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send_raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        head = struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream)
        self.send_raw(head + payload)

    def call(self, method: str, message: bytes) -> int:
        """Opens a stream with one gRPC message, the only one; returns its number."""
        stream = self.open(method)
        self.send(DATA, END_STREAM, stream, struct.pack("!BI", 0, len(message)) + message)
        return stream

    def open(self, method: str, more: Mapping[str, str] = MappingProxyType({})) -> int:
        """A stream of which no message has come yet, with `more` headers; returns its number."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
            **more,
        }
        block = b"".join(_field(name, value) for name, value in headers.items())
        self.send(HEADERS, END_HEADERS, stream, block)
        return stream

    def widen(self, stream: int, by: int) -> None:
        """Lets the server send so many bytes more on a stream."""
        self.send(WINDOW_UPDATE, 0, stream, struct.pack("!I", by))

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame; None when none has come, or the server has closed the connection.
        Settings and pings are answered on the way.
        """
        until = time.monotonic() + timeout_s
        while (frame := self._whole()) is None:
            readable, _, _ = select.select([self.socket], [], [], max(0, until - time.monotonic()))
            if not readable or not (data := self._receive()):
                return None
            self._received += data
        if frame.kind in (SETTINGS, PING) and not frame.flags & ACK:
            self.send(frame.kind, ACK, 0, frame.payload if frame.kind == PING else b"")
        return frame

    def until(self, kind: int, stream: int | None, timeout_s: float = 60) -> Frame | None:
        """The next frame of that kind and stream (None: of any), or None."""
        until = time.monotonic() + timeout_s
        while (frame := self.read(max(0, until - time.monotonic()))) is not None:
            if frame.kind == kind and stream in (None, frame.stream):
                return frame
        return None

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def _whole(self) -> Frame | None:
        if len(self._received) < 9:
            return None
        (length,) = struct.unpack("!I", b"\0" + self._received[:3])
        if len(self._received) < 9 + length:
            return None
        kind, flags, stream = struct.unpack("!BBI", self._received[3:9])
        payload = self._received[9 : 9 + length]
        self._received = self._received[9 + length :]
        return Frame(kind, flags, stream & 0x7FFFFFFF, payload)


def _field(name: str, value: str) -> bytes:
    """HPACK (RFC 7541, 6.2.2): a literal field with a new name, not indexed."""
    return b"\0" + _sized(name.encode()) + _sized(value.encode())


def _sized(text: bytes) -> bytes:
    """A string without Huffman coding, shorter than 127 bytes."""
    assert len(text) < 127
    return bytes([len(text)]) + text
