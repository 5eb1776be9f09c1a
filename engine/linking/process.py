"""The engine process as its parent holds it: started, connected to, ended."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time

from engine.config import EngineConfig
from engine.processes.environment import environment
from engine.processes.spawn import socket_pair, spawn
from engine.processes.watch import Condition, Watch

KILL_PATIENCE_S = 30.0  # a GPU's memory takes seconds to free; a driver that hangs, for ever


class EngineProcess:
    """A running engine process and `socket`, the front end's end of the pipe. Raises OSError when
    the system starts no process."""

    def __init__(self, config: EngineConfig, is_shared: bool = False) -> None:
        """A shared engine has a door, through which it is handed connections of front ends."""
        num_sockets = 2 if is_shared else 1
        self._child, near, self._pulse = spawn("engine.driving", config, num_sockets, environment())
        self._watch = Watch(config.heartbeat_s, config.patience_s)
        self.socket = near[0]
        self._door = near[1] if is_shared else None

    @property
    def pid(self) -> int:
        return self._child.pid

    def look(self, is_loading: bool) -> Condition:
        """For every `heartbeat_s` / BEATS_PER_PATIENCE; a sign of life of this side too."""
        pulse = self._pulse
        pulse.beat()
        return self._watch.look(pulse.others_beats, pulse.turn, is_loading, time.monotonic())

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

    async def ended(self, patience_s: float) -> int | None:
        """Waits for it to exit, which it does by itself once the pipe is closed; kills it when it
        takes longer than `patience_s`. Returns its exit code, negative for a signal; None for one
        that does not end even so.
        """
        self._close_door()
        code: int | None
        try:
            code = await asyncio.to_thread(self._child.wait, patience_s)
        except subprocess.TimeoutExpired:
            await asyncio.to_thread(self.kill)
            code = self._child.poll()
        self._pulse.close()
        return code

    def kill(self) -> bool:
        """Waits for its end, which takes seconds where a GPU's memory must be freed: not for the
        event loop. Returns whether it has come to it: the system cannot end a process that is in
        the middle of a call that does not return.
        """
        self._child.kill()
        try:
            self._child.wait(KILL_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def is_gone(self) -> bool:
        return self._child.poll() is not None

    def _close_door(self) -> None:
        if self._door is not None:
            self._door.close()
