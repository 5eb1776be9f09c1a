"""The event loop of a process that serves: uvloop's, with fewer turns for gRPC's sake.

grpc.aio has a thread that writes a byte to a socket for every operation that is done. Its reader on
the event loop takes one byte and handles whatever is done by then, so that of n operations done
together n - 1 turns of the loop (an epoll_wait and a recv each) find nothing to do. Here the reader
first takes the bytes that are too many.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from collections.abc import Callable
from typing import Any

import uvloop
from grpc._cython import cygrpc


class ServingLoop(uvloop.Loop):
    """For `uvloop.run(..., loop_factory=ServingLoop)`."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, cygrpc.PollerCompletionQueue) and isinstance(fd, socket.socket):
            callback = _reader(fd, callback)
        super().add_reader(fd, callback, *args)


def _reader(sock: socket.socket, handle: Callable[[], None]) -> Callable[[], None]:
    """`handle`, which takes one byte, after all bytes but one were taken.

    A byte is written after its operation can be seen: none is missed. One must be left, since
    `handle` would wait for it.
    """
    num_bytes = array.array("i", [0])

    def read() -> None:
        fcntl.ioctl(sock, termios.FIONREAD, num_bytes)
        if num_bytes[0] > 1:
            sock.recv(num_bytes[0] - 1)
        handle()

    return read
