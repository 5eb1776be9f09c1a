"""An engine process and the connection to it: started, spoken to, and started again when lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from engine.driving.backoff import Backoff
from engine.driving.config import EngineConfig
from engine.driving.link import EngineLink
from engine.driving.messages import EngineInfo, Failed, Ready, Report
from engine.driving.process import EngineProcess
from engine.driving.streams import EngineStartError
from engine.driving.wire import open_wire

FIRST_DELAY_S = 0.1  # before a lost engine is started again; doubled for each quick loss
EXIT_PATIENCE_S = 5.0


class EngineClient(EngineLink):
    """Owns an engine process: starts it, talks to it, starts it again when it is lost.

    `on_lost(line)` and `on_ready(info)` are told of each later loss and recovery, `on_failed` of an
    engine that reports why it cannot go on, and `on_notice(line)` of what belongs in the log. An
    engine that has work and gives no sign of life for `config.patience_s` is killed, hence lost. A
    shared engine also takes connections of others (`connect`).
    """

    def __init__(
        self,
        config: EngineConfig,
        on_ready: Callable[[EngineInfo], None] = lambda info: None,
        on_lost: Callable[[str], None] = lambda line: None,
        on_failed: Callable[[Failed], None] = lambda failed: None,
        on_notice: Callable[[str], None] = lambda line: None,
        on_freed: Callable[[str], None] = lambda tenant: None,
        *,
        is_shared: bool = False,
    ) -> None:
        super().__init__(on_notice, on_freed, config.rerun_s)
        self._config = config
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_failed = on_failed
        self._is_shared = is_shared
        self._process: EngineProcess | None = None
        self._first: asyncio.Future[Ready | Failed | None] | None = None
        self._tasks: list[asyncio.Task[None]] = []  # while the engine is kept alive
        self._started_at = 0.0

    async def start(self) -> EngineInfo:
        """Returns when the engine can serve. Raises EngineStartError when it cannot."""
        info = await self._launch()
        self._tasks = [
            asyncio.create_task(self._supervise()),
            asyncio.create_task(self._watch()),
        ]
        return info

    async def stop(self) -> None:
        """Ends the engine process; streams still open fail with EngineLost."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self.info is None:  # it is still loading, and looks at the pipe only when it is done
            await asyncio.to_thread(self.kill)
        self._fail_all("the server is stopping")
        await self._end_process()

    def kill(self) -> None:
        """Ends the engine process from any state and waits for its end, which blocks: for a front
        end that leaves at once, and for threads.
        """
        if self._process is not None:
            self._process.kill()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def connect(self) -> socket.socket:
        """The other end of a new connection to a shared engine. Raises OSError where it is gone."""
        assert self._process is not None
        return self._process.connect()

    async def _watch(self) -> None:
        """Kills an engine that has work and hangs; the supervisor then starts another."""
        patience_s = self._config.patience_s
        while True:
            await asyncio.sleep(patience_s / 4)
            is_busy = self.info is not None and self._is_busy
            if is_busy and time.monotonic() - self._heard_at > patience_s:
                self._on_notice(f"no sign of life from the engine for {patience_s:g} s")
                await asyncio.to_thread(self.kill)

    async def _launch(self) -> EngineInfo:
        loop = asyncio.get_running_loop()
        first = self._first = loop.create_future()
        try:
            self._process = process = EngineProcess(self._config, self._is_shared)
        except OSError as error:  # no memory or no file descriptors, at the moment
            raise EngineStartError(f"the engine process cannot be started: {error}") from error
        self._started_at = time.monotonic()
        self._wire = await open_wire(process.socket, self._received, self._closed)
        outcome = await first
        if isinstance(outcome, Ready):
            self.info = outcome.info
            if self._config.pinned is None:  # the first engine has chosen for all after it
                self._config = replace(self._config, pinned=outcome.pinned)
            return outcome.info
        code = await self._end_process()
        line = outcome.line if outcome else f"the engine process ended with code {code}"
        raise EngineStartError(line)

    async def _end_process(self) -> int | None:
        if self._wire is not None:
            self._wire.close()
            await self._wire.closed.wait()
            self._wire = None
        process, self._process = self._process, None
        return None if process is None else await process.ended(EXIT_PATIENCE_S)

    async def _supervise(self) -> None:
        backoff = Backoff(FIRST_DELAY_S)
        while True:
            assert self._wire is not None
            await self._wire.closed.wait()
            backoff.lost(time.monotonic() - self._started_at)
            self._lose("the engine was lost")
            code = await self._end_process()
            self._on_lost(f"the engine process ended with code {code}")
            info = None
            while info is None:
                await asyncio.sleep(backoff.next_s())
                try:
                    info = await self._launch()
                except EngineStartError as error:
                    self._on_lost(str(error))
            self._resume()
            self._on_ready(info)

    def _received(self, message: Report | Ready | Failed) -> None:
        self._heard_at = time.monotonic()
        if isinstance(message, Report):
            if message.learnt:
                self._keep_learnt(message.learnt)
            self._deliver(message)
            return
        if isinstance(message, Failed):
            self._on_failed(message)
        self._settle_start(message)

    def _keep_learnt(self, learnt: tuple[float, ...]) -> None:
        """For the engine that may have to take this one's place."""
        pinned = self._config.pinned
        if pinned is not None:
            self._config = replace(self._config, pinned=pinned._replace(learnt=learnt))

    def _closed(self) -> None:
        self._settle_start(None)

    def _settle_start(self, outcome: Ready | Failed | None) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(outcome)
