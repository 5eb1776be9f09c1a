"""The engine of a server: started, logged, counted, ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry

from engine.deciding.questions import Stats
from engine.linking.errors import EngineLost, EngineStartError, Unanswered
from engine.linking.keeper import EngineKeeper
from engine.linking.link import EngineLink
from engine.messages import EngineInfo, Failed
from engine.tiers import Tiers
from server.config import ServerConfig, StartError
from server.engine_metrics import EngineMetrics

log = structlog.get_logger()

METRICS_S = 1.0  # how old the scheduler's metrics may be


class ServerEngine:
    """The engine that a server's front ends share. Its operator is told in the log what befalls it,
    and by metrics how it does (`registry`, to which the front ends add theirs).

    `tiers()` are those in force, of which the engine is asked what their requests have to expect.
    `on_ready(info)` is told of each engine process that can serve, the first included, `on_doubt()`
    when it is lost, may have stopped, or has not.
    """

    def __init__(
        self,
        config: ServerConfig,
        tiers: Callable[[], Tiers],
        on_ready: Callable[[EngineInfo], None],
        on_doubt: Callable[[], None],
    ) -> None:
        self._config = config
        self._tiers = tiers
        self._on_ready = on_ready
        self._on_doubt = on_doubt
        self._polls = bool(config.metrics_port)
        self._poll: asyncio.Task[None] | None = None
        self._compile_note = ""  # of the first engine
        self.registry = CollectorRegistry()
        self.metrics = EngineMetrics(self.registry, config, tiers, lambda: self.link.serves)
        self.lost_reason = ""  # of the last engine that was lost
        self.keeper = EngineKeeper(
            config.engine,
            self._recovered,
            self._lost,
            self._failed,
            lambda line: log.warning("engine", notice=line),
            self._silent,
            lambda doing: log.info("starting", doing=doing),
        )

    @property
    def link(self) -> EngineLink:
        """Returns this process's link, which the only front end serves through, or by which the
        supervisor of several knows whether the engine serves.
        """
        return self.keeper.link

    async def start(self) -> EngineInfo:
        """Returns when the engine can serve. Raises StartError."""
        try:
            info = await self.keeper.start()
        except EngineStartError as error:
            raise StartError(str(error)) from error
        self._announce(info)
        self.metrics.reported.info = info
        self._on_ready(info)
        if self._polls:
            self._poll = asyncio.create_task(self._poll_metrics())
        return info

    async def stop(self) -> None:
        """Ends the engine process; what it still has at work is lost."""
        if self._poll is not None:
            self._poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poll
        await self.keeper.stop()

    async def refresh_metrics(self) -> None:
        """Asks the engine for the scheduler's counters; without an answer there are none."""
        try:
            self.metrics.reported.stats = await self.link.ask(Stats(self._tiers().asked()))
        except (EngineLost, Unanswered):
            self.metrics.reported.stats = None

    async def _poll_metrics(self) -> None:
        while True:
            await self.refresh_metrics()
            await asyncio.sleep(METRICS_S)

    def _announce(self, info: EngineInfo) -> None:
        if info.context_note:
            log.warning("context", note=info.context_note)
        self._compile_note = info.compile_note
        if info.compile_note:
            log.warning("compile", note=info.compile_note)
        if info.calibration is not None:
            say = log.warning if info.calibration.note else log.info
            say("calibration", **info.calibration.log_fields())

    def _recovered(self, info: EngineInfo) -> None:
        """It is as the first one was, of which all has been said, unless it could not be compiled
        again.
        """
        log.info("engine recovered", engine_pid=info.pid)
        if info.compile_note != self._compile_note:
            log.warning("compile", note=info.compile_note)
        self.metrics.reported.info = info
        self._on_ready(info)

    def _lost(self, line: str) -> None:
        log.error("engine lost", reason=line)
        self.lost_reason = line
        self.metrics.losses.inc()
        self._on_doubt()

    def _silent(self, is_silent: bool) -> None:
        heartbeat_s = self._config.engine.heartbeat_s
        if is_silent:
            log.warning("engine silent", note=f"no sign of life for {heartbeat_s:g} s, or stuck")
        else:
            log.info("engine heard again")
        self._on_doubt()

    def _failed(self, failed: Failed) -> None:
        if failed.trace:
            log.error("engine failed", reason=failed.line, trace=failed.trace)
