"""An engine process and the connection to it: started, spoken to, and started again when lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from engine.config import EngineConfig
from engine.linking.link import EngineLink
from engine.linking.process import EngineProcess
from engine.linking.streams import EngineStartError
from engine.messages import EngineInfo, Failed, Ready, Report
from engine.processes.backoff import Backoff
from engine.processes.pulse import BEATS_PER_PATIENCE
from engine.processes.watch import GIVEN_UP_AFTER, LOADING_S, Condition, Stillness
from engine.processes.wire import open_wire

FIRST_DELAY_S = 0.1  # before a lost engine is started again; doubled for each quick loss
EXIT_PATIENCE_S = 5.0


class EngineClient(EngineLink):
    """Owns an engine process: starts it, talks to it, starts it again when it is lost.

    `on_lost(line)` and `on_ready(info)` are told of each later loss and recovery, `on_failed` of an
    engine that reports why it cannot go on, and `on_notice(line)` of what belongs in the log. An
    engine that shows no sign of life for `config.heartbeat_s` is given nothing new (`on_silence`),
    and if it does not for as long again it is killed, hence lost; and so is one that has been at
    one iteration for `config.patience_s`. A shared engine also takes connections of others
    (`connect`).
    """

    def __init__(
        self,
        config: EngineConfig,
        on_ready: Callable[[EngineInfo], None] = lambda info: None,
        on_lost: Callable[[str], None] = lambda line: None,
        on_failed: Callable[[Failed], None] = lambda failed: None,
        on_notice: Callable[[str], None] = lambda line: None,
        on_silence: Callable[[bool], None] = lambda is_silent: None,
        *,
        is_shared: bool = False,
    ) -> None:
        super().__init__(on_notice, config.rerun_s)
        self._config = config
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_failed = on_failed
        self._on_silence = on_silence
        self._is_shared = is_shared
        self._process: EngineProcess | None = None
        self._first: asyncio.Future[Ready | Failed | None] | None = None
        self._tasks: list[asyncio.Task[None]] = []  # while the engine is kept alive
        self._undead: list[EngineProcess] = []  # killed, and not yet ended
        self._period_s = config.heartbeat_s / BEATS_PER_PATIENCE
        self._quiet = Stillness(self._period_s)
        self._started_at = 0.0

    async def start(self) -> EngineInfo:
        """Returns when the engine can serve. Raises EngineStartError when it cannot."""
        self._tasks = [asyncio.create_task(self._watch())]
        info = await self._launch()
        self._tasks.append(asyncio.create_task(self._supervise()))
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
        """Kills an engine that has stopped or hangs; the supervisor then starts another."""
        while True:
            await asyncio.sleep(self._period_s)
            if self._process is None:
                continue
            condition = self._look(self._process)
            is_loading = self.info is None
            if not is_loading and self.note_silence("engine", condition is not Condition.WELL):
                self._on_silence(condition is not Condition.WELL)
            if condition in (Condition.STOPPED, Condition.STUCK):
                self._on_notice(self._why(condition, is_loading))
                await self._end_hanging(self._process)

    def _look(self, process: EngineProcess) -> Condition:
        """Also stuck is an engine that beats, waits for work, and does not tell of what it has."""
        condition = process.look(is_loading=self.info is None)
        is_busy = self.info is not None and self._is_busy
        quiet_s = self._quiet.look(self._heard_at if is_busy else None, time.monotonic())
        if condition is Condition.WELL and is_busy and quiet_s >= self._config.patience_s:
            return Condition.STUCK
        return condition

    def _why(self, condition: Condition, is_loading: bool) -> str:
        if condition is Condition.STUCK:
            patience_s = self._config.patience_s
            return f"the engine beats and has been at one iteration for {patience_s:g} s"
        since_s = LOADING_S if is_loading else GIVEN_UP_AFTER * self._config.heartbeat_s
        return f"no sign of life from the engine for {since_s:g} s: it has stopped"

    async def _end_hanging(self, process: EngineProcess) -> None:
        """Its connection ends with it, or by our hand where the system cannot end it."""
        is_ended = await asyncio.to_thread(process.kill)
        if not is_ended and process is self._process and self._wire is not None:
            self._wire.close()
        while process is self._process:  # noqa: ASYNC110  # until the supervisor has let go of it
            await asyncio.sleep(self._period_s)

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
        raise EngineStartError(outcome.line if outcome else _ending(code))

    async def _end_process(self) -> int | None:
        if self._wire is not None:
            self._wire.close()
            await self._wire.closed.wait()
            self._wire = None
        process = self._process
        if process is None:
            return None
        code = await process.ended(EXIT_PATIENCE_S)
        self._process = None
        self._undead = [each for each in self._undead if not each.is_gone()]
        if code is None:
            self._on_notice(f"engine process {process.pid} was killed and does not end")
            self._undead.append(process)
        return code

    async def _supervise(self) -> None:
        backoff = Backoff(FIRST_DELAY_S)
        while True:
            assert self._wire is not None
            await self._wire.closed.wait()
            backoff.lost(time.monotonic() - self._started_at)
            self._lose("the engine was lost")
            self._on_lost(_ending(await self._end_process()))
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


def _ending(code: int | None) -> str:
    return (
        "the engine process does not end"
        if code is None
        else (f"the engine process ended with code {code}")
    )
