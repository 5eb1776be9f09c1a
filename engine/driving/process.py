"""Starts and ends the engine process.

A fresh interpreter, not a fork: the front end runs gRPC's threads, and CUDA survives no fork. The
engine holds one end of a socket pair and exits when the other closes, so it does not outlive who
started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys

from engine.computing.host import environment
from engine.driving.config import EngineConfig
from engine.driving.messages import pack

# Room for the reports of many iterations, so that a busy front end does not hold up the engine.
_SOCKET_BYTES = 1 << 22


class EngineProcess:
    """A running engine process and `socket`, the front end's end of the pipe. Raises OSError when
    the system starts no process."""

    def __init__(self, config: EngineConfig, is_shared: bool = False) -> None:
        """A shared engine has a door, through which it is handed connections of front ends."""
        ours, theirs = _pair()
        self._door: socket.socket | None = None
        their_door: socket.socket | None = None
        if is_shared:
            self._door, their_door = socket.socketpair()
        with theirs, their_door or contextlib.nullcontext():
            fds = [theirs.fileno()] + ([their_door.fileno()] if their_door is not None else [])
            command = [sys.executable, "-m", "engine.driving", *map(str, fds)]
            try:
                self._child = subprocess.Popen(
                    command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment()
                )
            except OSError:
                ours.close()
                self._close_door()
                raise
        ours.sendall(pack(config))
        self.socket = ours

    @property
    def pid(self) -> int:
        return self._child.pid

    def connect(self) -> socket.socket:
        """The front end's end of a new connection. Raises OSError where the engine is gone."""
        assert self._door is not None
        ours, theirs = _pair()
        with theirs:
            try:
                socket.send_fds(self._door, [b"\0"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    async def ended(self, patience_s: float) -> int:
        """Waits for it to exit, which it does by itself once the pipe is closed; kills it when it
        takes longer than `patience_s`. Returns its exit code, negative for a signal.
        """
        self._close_door()
        try:
            return await asyncio.to_thread(self._child.wait, patience_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return await asyncio.to_thread(self._child.wait)

    def kill(self) -> None:
        """Waits for its end, which takes seconds where a GPU's memory must be freed: not for the
        event loop.
        """
        self._child.kill()
        self._child.wait()

    def _close_door(self) -> None:
        if self._door is not None:
            self._door.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return pair
