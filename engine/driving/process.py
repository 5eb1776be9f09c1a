"""Starts and ends the engine process.

A fresh interpreter, not a fork: the front end runs gRPC's threads, and CUDA survives no fork. The
engine holds one end of a socket pair and exits when the other closes, so it outlives no front end.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

from engine.driving.config import EngineConfig
from engine.driving.messages import pack

# Room for the reports of many iterations, so that a busy front end does not hold up the engine.
_SOCKET_BYTES = 1 << 22


class EngineProcess:
    """A running engine process and `socket`, the front end's end of the pipe. Raises OSError when
    the system starts no process."""

    def __init__(self, config: EngineConfig) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            fd = theirs.fileno()
            command = [sys.executable, "-m", "engine.driving", str(fd)]
            # Waiting OpenMP threads must sleep, not spin: the front end shares the cores.
            environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
            try:
                self._child = subprocess.Popen(
                    command, pass_fds=[fd], stdin=subprocess.DEVNULL, env=environment
                )
            except OSError:
                ours.close()
                raise
        ours.sendall(pack(config))
        self.socket = ours

    @property
    def pid(self) -> int:
        return self._child.pid

    async def ended(self, patience_s: float) -> int:
        """Waits for it to exit, which it does by itself once the pipe is closed; kills it when it
        takes longer than `patience_s`. Returns its exit code, negative for a signal.
        """
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
