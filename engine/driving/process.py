"""The engine process as its parent holds it: started, connected to, ended."""

from __future__ import annotations

import asyncio
import socket
import subprocess

from engine.computing.host import environment
from engine.driving.config import EngineConfig
from engine.driving.spawn import socket_pair, spawn


class EngineProcess:
    """A running engine process and `socket`, the front end's end of the pipe. Raises OSError when
    the system starts no process."""

    def __init__(self, config: EngineConfig, is_shared: bool = False) -> None:
        """A shared engine has a door, through which it is handed connections of front ends."""
        num_sockets = 2 if is_shared else 1
        self._child, near = spawn("engine.driving", config, num_sockets, environment())
        self.socket = near[0]
        self._door = near[1] if is_shared else None

    @property
    def pid(self) -> int:
        return self._child.pid

    def connect(self) -> socket.socket:
        """The front end's end of a new connection. Raises OSError where the engine is gone."""
        assert self._door is not None
        ours, theirs = socket_pair()
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
