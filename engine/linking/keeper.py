"""The keeper of an engine process: it starts the process, and starts it again when it is lost.

The process holds the far end of the keeper's own link, of a door through which it is handed further
connections, and of a page in which both sides show that they live.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

from engine.config import EngineConfig
from engine.linking.errors import EngineStartError
from engine.linking.link import EngineLink
from engine.messages import EngineInfo, Failed, Ready
from engine.processes.backoff import Backoff
from engine.processes.door import hand_in
from engine.processes.environment import environment
from engine.processes.pulse import BEATS_PER_PATIENCE
from engine.processes.spawn import socket_pair, spawn
from engine.processes.watch import GIVEN_UP_AFTER, LOADING_S, Condition, Stillness, Watch

FIRST_DELAY_S = 0.1  # before a lost engine is started again; doubled for each quick loss
EXIT_PATIENCE_S = 5.0
KILL_PATIENCE_S = 30.0  # a GPU's memory takes seconds to free; a driver that hangs, for ever


class EngineProcess:
    """An engine process that runs. `socket` is the near end of its first connection."""

    def __init__(self, config: EngineConfig) -> None:
        """Starts it. Raises OSError when the system starts no process."""
        self._child, (self.socket, self._door), self._pulse = spawn(
            "engine.driving", "engine", config, 2, environment()
        )
        self._watch = Watch(config.heartbeat_s, config.patience_s)

    @property
    def pid(self) -> int:
        return self._child.pid

    def look(self, is_loading: bool) -> Condition:
        """Says how it is, and shows a sign of life of this side too. To be called every
        `heartbeat_s` / BEATS_PER_PATIENCE.
        """
        pulse = self._pulse
        pulse.beat()
        return self._watch.look(pulse.others_beats, pulse.turn, is_loading, time.monotonic())

    def connect(self) -> socket.socket:
        """Returns the near end of a new connection. Raises OSError where the engine is gone."""
        ours, theirs = socket_pair()
        with theirs:
            try:
                hand_in(self._door, theirs)
            except OSError:
                ours.close()
                raise
        return ours

    async def ended(self, patience_s: float) -> int | None:
        """Waits for it to exit, which it does by itself once its first connection is closed; kills
        it when it takes longer than `patience_s`. Returns its exit code, negative for a signal;
        None for one that does not end even so.
        """
        self._door.close()
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


class EngineKeeper:
    """Keeps one engine process alive, and hands out connections to it (`connect`). `link` is the
    keeper's own, through which a server's only front end serves too.

    `on_ready(info)` and `on_lost(line)` are told of each later recovery and loss, `on_failed` of an
    engine that says why it cannot go on, `on_notice(line)` of what belongs in the log, and
    `on_starting(doing)` of what one does until it can serve. An engine that shows no sign of life
    for `config.heartbeat_s` is given nothing new (`on_silence`), and if it does not for as long
    again it is killed, hence lost; and so is one that has been at one iteration for
    `config.patience_s`.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_ready: Callable[[EngineInfo], None] = lambda info: None,
        on_lost: Callable[[str], None] = lambda line: None,
        on_failed: Callable[[Failed], None] = lambda failed: None,
        on_notice: Callable[[str], None] = lambda line: None,
        on_silence: Callable[[bool], None] = lambda is_silent: None,
        on_starting: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self.config = config  # of the next engine
        self.link = EngineLink(
            self._serves,
            self._disconnected,
            on_notice,
            config.rerun_s,
            self._failed,
            on_starting,
        )
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_failed = on_failed
        self._on_notice = on_notice
        self._on_silence = on_silence
        self._process: EngineProcess | None = None
        self._outcome: asyncio.Future[Ready | Failed | None] | None = None  # of the last start
        self._is_disconnected = asyncio.Event()
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
        if self.link.info is None:  # it loads, and looks at the link when it has
            await asyncio.to_thread(self.kill)
        await self.link.stop()
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
        """Returns the near end of a new connection. Raises OSError where the engine is gone."""
        assert self._process is not None
        return self._process.connect()

    async def _watch(self) -> None:
        """Kills an engine that has stopped or hangs; `_supervise` then starts another."""
        while True:
            await asyncio.sleep(self._period_s)
            if self._process is None:
                continue
            condition = self._look(self._process)
            is_loading = self.link.info is None
            is_well = condition is Condition.WELL
            if not is_loading and self.link.note_silence("engine", not is_well):
                self._on_silence(not is_well)
            if condition in (Condition.STOPPED, Condition.STUCK):
                self._on_notice(self._why(condition, is_loading))
                await self._end_hanging(self._process)

    def _look(self, process: EngineProcess) -> Condition:
        """Says how it is. An engine that beats, waits for work, and does not tell of what it has is
        stuck as well.
        """
        condition = process.look(is_loading=self.link.info is None)
        waits_since = self.link.waits_since
        quiet_s = self._quiet.look(waits_since, time.monotonic())
        is_quiet = waits_since is not None and quiet_s >= self.config.patience_s
        return Condition.STUCK if condition is Condition.WELL and is_quiet else condition

    def _why(self, condition: Condition, is_loading: bool) -> str:
        if condition is Condition.STUCK:
            patience_s = self.config.patience_s
            return f"the engine beats and has been at one iteration for {patience_s:g} s"
        since_s = LOADING_S if is_loading else GIVEN_UP_AFTER * self.config.heartbeat_s
        return f"no sign of life from the engine for {since_s:g} s: it has stopped"

    async def _end_hanging(self, process: EngineProcess) -> None:
        """Kills it. Its connection ends with it, or by our hand where the system cannot end it."""
        is_ended = await asyncio.to_thread(process.kill)
        if not is_ended and process is self._process:
            await self.link.detach()
        while process is self._process:  # noqa: ASYNC110  # until `_supervise` has let go of it
            await asyncio.sleep(self._period_s)

    async def _launch(self) -> EngineInfo:
        outcome = self._outcome = asyncio.get_running_loop().create_future()
        self._is_disconnected.clear()
        try:
            self._process = process = EngineProcess(self._next_config())
        except OSError as error:  # no memory or no file descriptors, at the moment
            raise EngineStartError(f"the engine process cannot be started: {error}") from error
        self._started_at = time.monotonic()
        await self.link.attach(process.socket)
        found = await outcome
        if isinstance(found, Ready):
            if self.config.pinned is None:  # the first engine has chosen for all after it
                self.config = replace(self.config, pinned=found.pinned)
            return found.info
        code = await self._end_process()
        raise EngineStartError(found.line if found else _ending(code))

    def _next_config(self) -> EngineConfig:
        """Returns what to start with: all that the first engine chose, and what the last learnt."""
        pinned, learnt = self.config.pinned, self.link.learnt
        if pinned is None or not learnt:
            return self.config
        return replace(self.config, pinned=pinned._replace(learnt=learnt))

    async def _end_process(self) -> int | None:
        await self.link.detach()
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
            await self._is_disconnected.wait()
            backoff.lost(time.monotonic() - self._started_at)
            self._on_lost(_ending(await self._end_process()))
            info = None
            while info is None:
                await asyncio.sleep(backoff.next_s())
                try:
                    info = await self._launch()
                except EngineStartError as error:
                    self._on_lost(str(error))
            self._on_ready(info)

    # What its link is told

    def _serves(self, ready: Ready) -> None:
        self._settle(ready)

    def _failed(self, failed: Failed) -> None:
        self._on_failed(failed)
        self._settle(failed)

    def _disconnected(self) -> None:
        self._is_disconnected.set()
        self._settle(None)

    def _settle(self, outcome: Ready | Failed | None) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(outcome)


def _ending(code: int | None) -> str:
    if code is None:
        return "the engine process does not end"
    return f"the engine process ended with code {code}"
