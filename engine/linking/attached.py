"""A front end's engine whose process is another's: the connection comes, goes and comes again."""

from __future__ import annotations

import socket
from collections.abc import Callable

from engine.linking.link import EngineLink
from engine.messages import EngineInfo, Ready, Report
from engine.processes.wire import open_wire


class AttachedEngine(EngineLink):
    """Serves through one connection at a time, each handed to `attach`.

    `on_ready(info)` is told when one begins to serve, `on_lost()` when it has ended.
    """

    def __init__(
        self,
        on_ready: Callable[[EngineInfo], None],
        on_lost: Callable[[], None],
        on_notice: Callable[[str], None],
        rerun_s: float = 0.0,
    ) -> None:
        super().__init__(on_notice, rerun_s)
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._is_stopping = False
        self._announced: EngineInfo | None = None

    async def stop(self) -> None:
        """Ends the connection, whereupon the engine ends what it is at work on for it."""
        self._is_stopping = True
        self._fail_all("the server is stopping")
        if self._wire is not None:
            self._wire.close()
            await self._wire.closed.wait()

    async def attach(self, sock: socket.socket) -> None:
        """The connection to an engine, new or the same: it takes the place of the one before."""
        if self._wire is not None:
            self._wire.close()
            await self._wire.closed.wait()
        self._wire = await open_wire(sock, self._received, self._closed)
        if self._announced is not None:  # before the wire was ours to send by
            self._serve(self._announced)

    def _received(self, message: Report | Ready) -> None:
        if isinstance(message, Report):
            self._deliver(message)
        elif self._wire is None:
            self._announced = message.info
        else:
            self._serve(message.info)

    def _serve(self, info: EngineInfo) -> None:
        self._announced = None
        self.info = info
        self._resume()
        self._on_ready(info)

    def _closed(self) -> None:
        """The one before is told of before the next is opened."""
        self._wire = self._announced = None
        if self._is_stopping:
            return
        if self.info is not None:  # else it never served, and those who wait go on waiting
            self._lose("the engine was lost")
        self._on_lost()
