"""Several front ends before one engine: `--frontends N`.

This process starts the engine and N front-end processes (`server.frontends.worker`), and serves no
call. The front ends share the port (SO_REUSEPORT: the kernel deals connections out) and have a
connection to the engine each, so that no token passes here. What they share is kept here: the
ledger that admission asks, the metrics, health by way of the engine's life. A front end that dies
is started again, and only its calls are lost; when this process ends, however it does, all of them
end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable

import structlog
from prometheus_client import Counter
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from engine.linking.process import KILL_PATIENCE_S
from engine.linking.streams import DuplicateRequest
from engine.messages import EngineInfo
from engine.processes.backoff import Backoff
from engine.processes.pulse import BEATS_PER_PATIENCE, NO_TURN
from engine.processes.spawn import spawn
from engine.processes.standard_streams import DROPPED
from engine.processes.watch import Condition, Watch
from engine.processes.wire import Wire, open_wire
from server.admission.ledger import FrontEndCalls, Ledger
from server.config import ServerConfig
from server.engine import EngineOwner
from server.errors import Refused
from server.frontend import LAST_WORDS_S
from server.frontends.control import (
    COUNTERS_FOLDER,
    Attached,
    CannotStart,
    Detached,
    Displaced,
    Drain,
    EngineSilent,
    Enter,
    FromFrontEnd,
    FromSupervisor,
    Leave,
    LinesDropped,
    Listening,
    Reconfigure,
    Resize,
    Start,
    Started,
    Verdict,
)
from server.listening.ports import reserve
from server.metrics import QueueMetrics
from server.startup import StartError, read_admin, read_configuration

log = structlog.get_logger()

FIRST_DELAY_S = 0.5  # before a lost front end is started again; doubled for each quick loss
EXIT_PATIENCE_S = 5.0  # beyond the time to drain


class FrontEndProcess:
    """A child that runs `server.frontends.worker`: its control socket and its door."""

    def __init__(self, start: Start, calls: FrontEndCalls, counters: str) -> None:
        """Raises OSError when the system starts no process."""
        self.calls = calls  # in the ledger
        self.problem = ""  # why it cannot start
        self.listening = asyncio.Event()  # once it listens, or has a problem, or has ended
        self.attached = asyncio.Event()  # once it has served, or has ended
        self.is_connected = False  # to an engine, as far as it has said
        self._has_ended = False
        environment = {**os.environ, COUNTERS_FOLDER: counters}
        self._child, (self._control, self._door), self._pulse = spawn(
            "server.frontends.worker", start, 2, environment
        )
        self._watch = Watch(start.config.engine.heartbeat_s)
        self._wire: Wire | None = None

    async def follow(self, receive: Callable[[FrontEndProcess, FromFrontEnd], None]) -> None:
        """Hands on what it says until it has ended."""

        def received(messages: list[FromFrontEnd]) -> None:
            for message in messages:
                receive(self, message)

        self._wire = await open_wire(self._control, received, lambda: None)
        try:
            await self._wire.closed.wait()
            ending = await asyncio.to_thread(self._ending)
            self.problem = self.problem or ending
        finally:
            self._door.close()
            self._pulse.close()
            self._has_ended = True
            self.listening.set()
            self.attached.set()

    def post(self, message: FromSupervisor) -> None:
        if self._wire is not None:
            self._wire.post(message)

    def attach(self, connection: socket.socket) -> None:
        """Gives it a connection to the engine."""
        self.is_connected = True
        with connection, contextlib.suppress(OSError):  # of a front end that has just ended
            socket.send_fds(self._door, [b"\0"], [connection.fileno()])

    def look(self) -> Condition:
        """For every `heartbeat_s` / BEATS_PER_PATIENCE; a sign of life of this side too."""
        if self._has_ended:
            return Condition.WELL
        self._pulse.beat()
        beats, is_loading = self._pulse.others_beats, not self.listening.is_set()
        return self._watch.look(beats, NO_TURN, is_loading, time.monotonic())

    def kill(self) -> None:
        """For any thread."""
        self._child.kill()

    def end(self) -> None:
        """Its connection ends with it, or after a while by our hand: the system cannot end a
        process in the middle of a call that does not return.
        """
        self.kill()
        if self._wire is not None:
            asyncio.get_running_loop().call_later(KILL_PATIENCE_S, self._wire.close)

    def _ending(self) -> str:
        try:
            return f"the front end ended with code {self._child.wait(EXIT_PATIENCE_S)}"
        except subprocess.TimeoutExpired:
            return "the front end does not end"


class Supervisor:
    """As `server.app.Server`: `start`, serve, `drain`, `stop`."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises StartError for a configuration file that is no good."""
        self.config = config
        self._configuration = read_configuration(config)
        self._admin = read_admin(config)
        self.port = 0
        self.ledger = Ledger(config.max_requests, config.most_queued_tokens)
        self._front_ends: dict[int, FrontEndProcess] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._has_started = False
        self._ending = asyncio.Event()
        self._holder: socket.socket | None = None
        self._counters = _temporary_folder()
        self._watching: asyncio.Task[None] | None = None
        self._owner = EngineOwner(config, self._engine_ready, self._engine_in_doubt, is_shared=True)
        self.engine = self._owner.client
        MultiProcessCollector(self._owner.registry, path=self._counters.name)
        self._owner.registry.register(QueueMetrics(self.ledger.admission))
        self._losses = Counter(
            "niyama_frontend_losses", "Times a front end was lost", registry=self._owner.registry
        )

    async def start(self) -> EngineInfo:
        """Returns when every front end serves. Raises StartError."""
        self._holder = reserve(self.config.host, self.config.port)
        self.port = self._holder.getsockname()[1]
        self._owner.listen()
        for number in range(self.config.frontends):
            try:
                self._launch(number)
            except OSError as error:
                raise StartError(f"a front-end process cannot be started: {error}") from error
            self._keepers.append(asyncio.create_task(self._keep(number)))
        self._watching = asyncio.create_task(self._watch())
        starting = asyncio.create_task(self._owner.start())
        try:
            for front_end in list(self._front_ends.values()):
                await front_end.listening.wait()
                if front_end.problem:
                    raise StartError(front_end.problem)
            info = await starting
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        for front_end in self._front_ends.values():
            await front_end.attached.wait()
        for front_end in self._front_ends.values():  # one may have ended since it was attached
            if front_end.problem:
                raise StartError(front_end.problem)
        self._has_started = True
        return info

    async def drain(self) -> None:
        """Has the front ends refuse new calls and finish the running ones, for `drain_s`. One that
        does not listen yet has none.
        """
        self._ending.set()
        for front_end in self._front_ends.values():
            if front_end.listening.is_set():
                front_end.post(Drain())
            else:
                front_end.end()
        patience_s = self.config.drain_s + LAST_WORDS_S + EXIT_PATIENCE_S
        await asyncio.wait(self._keepers, timeout=patience_s)

    async def stop(self) -> None:
        """Ends what still runs."""
        self._ending.set()
        for front_end in self._front_ends.values():
            front_end.end()
        await asyncio.gather(*self._keepers)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._owner.stop()
        if self._holder is not None:
            self._holder.close()
        self._counters.cleanup()

    def reconfigure(self, text: str) -> list[str]:
        """As of a `Server`; also of the front ends that will be started again."""
        changes = self._configuration.take(text)
        for front_end in self._front_ends.values():
            front_end.post(Reconfigure(text))
        return changes

    def kill(self) -> None:
        """Ends the engine and the front ends at once; this process is to follow. For any thread."""
        for front_end in list(self._front_ends.values()):
            front_end.kill()
        self.engine.kill()
        self._counters.cleanup()

    def _launch(self, number: int) -> None:
        """Raises OSError when the system starts no process."""
        text, digest = self._configuration.text, self._admin.digest
        start = Start(self.config, self.port, number, text, digest)
        front_end = FrontEndProcess(start, FrontEndCalls(self.ledger), self._counters.name)
        self._front_ends[number] = front_end

    async def _keep(self, number: int) -> None:
        """Follows one front end, and each that takes its place."""
        backoff = Backoff(FIRST_DELAY_S)
        while True:
            started_at, front_end = time.monotonic(), self._front_ends[number]
            await front_end.follow(self._received)
            front_end.calls.release()  # the engine has been told by the end of the connection
            mark_process_dead(number, self._counters.name)
            if self._ending.is_set() or not self._has_started:
                return
            log.error("front end lost", frontend=number, reason=front_end.problem)
            self._losses.inc()
            backoff.lost(time.monotonic() - started_at)
            is_launched = False
            while not is_launched:
                if await self._ends_within(backoff.next_s()):
                    return
                is_launched = self._relaunch(number)
            log.info("front end started again", frontend=number)

    async def _watch(self) -> None:
        """Kills a front end that has stopped or whose event loop hangs: its port takes connections
        that nobody serves, and the engine computes for nobody.
        """
        heartbeat_s = self.config.engine.heartbeat_s
        silent: set[FrontEndProcess] = set()
        while True:
            await asyncio.sleep(heartbeat_s / BEATS_PER_PATIENCE)
            before, silent = silent, set()
            for number, front_end in self._front_ends.items():
                condition = front_end.look()
                if condition is Condition.WELL:
                    continue
                silent.add(front_end)
                if front_end not in before:
                    log.warning(
                        "front end silent",
                        frontend=number,
                        note=f"no sign of life for {heartbeat_s:g} s",
                    )
                if condition is Condition.STOPPED and not front_end.problem:
                    front_end.problem = "the front end gave no sign of life: it has stopped"
                    front_end.end()

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)
        return self._ending.is_set()

    def _relaunch(self, number: int) -> bool:
        try:
            self._launch(number)
        except OSError as error:  # no memory or no file descriptors, at the moment
            log.error("front end not started", frontend=number, reason=str(error))
            return False
        return True

    def _engine_ready(self, info: EngineInfo) -> None:
        self._configuration.propose(info.tiers)
        for front_end in self._front_ends.values():
            self._connect(front_end)

    def _engine_in_doubt(self) -> None:
        is_silent = self.engine.info is not None and not self.engine.serves
        for front_end in self._front_ends.values():
            front_end.post(EngineSilent(is_silent))

    def _connect(self, front_end: FrontEndProcess) -> None:
        """Where there is no engine at the moment, the next one is connected."""
        if self.engine.info is not None and not front_end.is_connected:
            with contextlib.suppress(OSError):  # the engine has just been lost
                front_end.attach(self.engine.connect())

    def _received(self, front_end: FrontEndProcess, message: FromFrontEnd) -> None:
        if isinstance(message, Enter):
            front_end.post(Verdict(message.number, _judge(front_end, message)))
        elif isinstance(message, Resize):
            front_end.calls.resize(message.key, message.tokens)
        elif isinstance(message, Started):
            front_end.calls.start(message.key)
        elif isinstance(message, Leave):
            front_end.calls.leave(message.key)
        elif isinstance(message, Attached):
            front_end.attached.set()
        elif isinstance(message, Detached):
            front_end.is_connected = False
            self._connect(front_end)
        elif isinstance(message, LinesDropped):
            DROPPED.add(message.n)
        elif isinstance(message, Listening):
            front_end.listening.set()
            if self._configuration.text is not None:  # it may have changed in the meantime
                front_end.post(Reconfigure(self._configuration.text))
            self._connect(front_end)
        else:
            assert isinstance(message, CannotStart)
            front_end.problem = message.line
            front_end.listening.set()
            front_end.end()


def _judge(front_end: FrontEndProcess, call: Enter) -> Exception | None:
    """Enters the call, or says why not. Raises nothing."""
    entry, now = call.entry, time.monotonic()

    def displace(error: Refused) -> None:
        front_end.post(Displaced(entry.key, error))

    try:
        if call.only_asks:
            return front_end.calls.refusal(entry, now)
        front_end.calls.admit(entry, displace, now)
    except (Refused, DuplicateRequest) as error:
        return error
    return None


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Raises StartError."""
    try:
        return tempfile.TemporaryDirectory(prefix="niyama-")
    except OSError as error:
        raise StartError(f"no temporary folder for metrics: {error.strerror}") from error
