"""Several front ends before one engine: `--frontends N`.

This process starts the engine and N front-end processes (`server.frontends.worker`), and serves no
call. The front ends share the port (SO_REUSEPORT: the kernel deals connections out) and have a
connection to the engine each, so that no token passes here. What they share is kept here: the
ledger, the metrics, health by way of the engine's life. A front end that dies is started again, and
only its calls are lost; when this process ends, however it does, all of them end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence

import structlog
from prometheus_client import Counter
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from engine.inferring.habits import Habits, Learnt, Observed
from engine.linking.keeper import KILL_PATIENCE_S
from engine.messages import EngineInfo
from engine.processes.backoff import Backoff
from engine.processes.door import hand_in
from engine.processes.pulse import BEATS_PER_PATIENCE, NO_TURN
from engine.processes.spawn import spawn
from engine.processes.standard_streams import DROPPED
from engine.processes.watch import Condition, Watch
from engine.processes.wire import Wire, open_wire
from engine.tiers import Tiers
from server.admission.ledger import FrontEndCalls, Ledger
from server.admission.places import Entry
from server.config import ServerConfig, StartError
from server.configuration import Configuration, Reconfigure, reloaded_from
from server.engine import ServerEngine
from server.frontend import LAST_WORDS_S
from server.frontends.control import (
    COUNTERS_FOLDER,
    Attached,
    CannotStart,
    Detached,
    Drain,
    EngineSilent,
    FromFrontEnd,
    FromSupervisor,
    LinesDropped,
    Listening,
    Start,
)
from server.identity.identities import Identities
from server.listening.addresses import reserve

log = structlog.get_logger()

FIRST_DELAY_S = 0.5  # before a lost front end is started again; doubled for each quick loss
EXIT_PATIENCE_S = 5.0  # beyond the time to drain


class FrontEndProcess:
    """A child that runs `server.frontends.worker`. It is told what it is to do through a control
    socket, and given connections to the engine through a door.
    """

    def __init__(self, start: Start, ledger: Ledger, counters: str) -> None:
        """Starts it; its metrics are files in the folder `counters`. Raises OSError when the system
        starts no process.
        """
        self.calls = FrontEndCalls(ledger, self.post)
        self.problem = ""  # why it cannot start
        self.listening = asyncio.Event()  # once it listens, or has a problem, or has ended
        self.attached = asyncio.Event()  # once it has served, or has ended
        self.is_connected = False  # to an engine, as far as it has said
        self._has_ended = False
        environment = {**os.environ, COUNTERS_FOLDER: counters}
        self._child, (self._control, self._door), self._pulse = spawn(
            "server.frontends.worker", f"frontend-{start.number}", start, 2, environment
        )
        self._watch = Watch(start.config.engine.heartbeat_s)
        self._wire: Wire | None = None

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def serves(self) -> bool:
        return self.is_connected and self.attached.is_set() and not self._has_ended

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
            hand_in(self._door, connection)

    def look(self) -> Condition:
        """Says how it is, and shows a sign of life of this side too. To be called every
        `heartbeat_s` / BEATS_PER_PATIENCE.
        """
        if self._has_ended:
            return Condition.WELL
        self._pulse.beat()
        beats, is_loading = self._pulse.others_beats, not self.listening.is_set()
        return self._watch.look(beats, NO_TURN, is_loading, time.monotonic())

    def kill(self) -> None:
        """Ends it at once, from any thread."""
        self._child.kill()

    def end(self) -> None:
        """Kills it. Its connection ends with it, or after a while by our hand: the system cannot
        end a process in the middle of a call that does not return.
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
    """Supervises several front ends: these are `server.app.FrontEnds`."""

    def __init__(
        self,
        config: ServerConfig,
        engine: ServerEngine,
        ledger: Ledger,
        configuration: Configuration,
        identities: Identities,
        habits: Habits,
    ) -> None:
        """Raises StartError where there is no folder for the metrics of the front ends."""
        self._config = config
        self._engine = engine
        self._ledger = ledger
        self._configuration = configuration
        self._identities = identities
        self._habits = habits
        self.processes: dict[int, FrontEndProcess] = {}  # by the number of the front end
        self._keepers: list[asyncio.Task[None]] = []
        self._has_started = False
        self._ending = asyncio.Event()
        self._holders: list[socket.socket] = []  # of the ports
        self._counters = _temporary_folder()
        self._watching: asyncio.Task[None] | None = None
        MultiProcessCollector(engine.registry, path=self._counters.name)
        self._losses = Counter(
            "niyama_frontend_losses", "Times a front end was lost", registry=engine.registry
        )

    async def start(self) -> list[int]:
        """Returns when every front end listens, at which ports. Raises StartError."""
        for port in self._config.ports:
            self._holders.append(reserve(self._config.host, port))
        ports = [int(holder.getsockname()[1]) for holder in self._holders]
        self._config = self._config.at(ports)
        for number in range(self._config.frontends):
            try:
                self._launch(number)
            except OSError as error:
                raise StartError(f"a front-end process cannot be started: {error}") from error
            self._keepers.append(asyncio.create_task(self._keep(number)))
        self._watching = asyncio.create_task(self._watch())
        for front_end in list(self.processes.values()):
            await front_end.listening.wait()
            if front_end.problem:
                raise StartError(front_end.problem)
        return ports

    async def ready(self) -> None:
        """Returns when every front end serves. Raises StartError."""
        for front_end in self.processes.values():
            await front_end.attached.wait()
        for front_end in self.processes.values():  # one may have ended since it was attached
            if front_end.problem:
                raise StartError(front_end.problem)
        self._has_started = True

    def engine_ready(self, info: EngineInfo) -> None:
        """Connects all of them to it."""
        self._configuration.propose(info.tiers)
        for front_end in self.processes.values():
            self._connect(front_end)

    @property
    def tiers(self) -> Tiers:
        """Returns the tiers that hold now."""
        return self._configuration.tiers

    @property
    def num_serving(self) -> int:
        """Returns how many of them serve calls, as far as they have said."""
        return sum(front_end.serves for front_end in self.processes.values())

    def show_health(self) -> None:
        """Tells them what they cannot know by the end of their connection."""
        is_silent = self._engine.link.info is not None and not self._engine.link.serves
        for front_end in self.processes.values():
            front_end.post(EngineSilent(is_silent))

    def reconfigure(self, now: Reconfigure) -> None:
        """Has another configuration hold for the front ends that there are and those that will be
        started again.
        """
        self._config = reloaded_from(self._config, now.config)
        for front_end in self.processes.values():
            front_end.post(now)

    async def drain(self) -> None:
        """Has the front ends refuse new calls and finish the running ones, for `drain_s`. One that
        does not listen yet has none.
        """
        self._ending.set()
        for front_end in self.processes.values():
            if front_end.listening.is_set():
                front_end.post(Drain())
            else:
                front_end.end()
        patience_s = self._config.drain_s + LAST_WORDS_S + EXIT_PATIENCE_S
        await asyncio.wait(self._keepers, timeout=patience_s)

    async def stop(self) -> None:
        """Ends what still runs."""
        self._ending.set()
        for front_end in self.processes.values():
            front_end.end()
        await asyncio.gather(*self._keepers)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def close(self) -> None:
        """Gives up the ports, and the metrics of the front ends that have ended."""
        for holder in self._holders:
            holder.close()
        self._counters.cleanup()

    def kill(self) -> None:
        """Ends their processes at once; this one is to follow. For any thread."""
        for front_end in list(self.processes.values()):
            front_end.kill()
        self._counters.cleanup()

    def _launch(self, number: int, lost: Sequence[Entry] = ()) -> None:
        """Starts one of them, in the place of one with which these calls were lost. Raises OSError
        when the system starts no process.
        """
        text, files = self._configuration.text, self._identities.files
        start = Start(self._config, number, text, files, tuple(lost))
        self.processes[number] = FrontEndProcess(start, self._ledger, self._counters.name)

    async def _keep(self, number: int) -> None:
        """Follows one front end, and each that takes its place."""
        backoff = Backoff(FIRST_DELAY_S)
        while True:
            started_at, front_end = time.monotonic(), self.processes[number]
            await front_end.follow(self._received)
            # The engine has been told by the end of the connection.
            lost = front_end.calls.release()
            mark_process_dead(number, self._counters.name)
            if self._ending.is_set() or not self._has_started:
                return
            log.error("front end lost", frontend=number, reason=front_end.problem, calls=len(lost))
            self._losses.inc()
            backoff.lost(time.monotonic() - started_at)
            is_launched = False
            while not is_launched:
                if await self._ends_within(backoff.next_s()):
                    return
                is_launched = self._relaunch(number, lost)
            log.info("front end started again", frontend=number)

    async def _watch(self) -> None:
        """Kills a front end that has stopped or whose event loop hangs: its port takes connections
        that nobody serves, and the engine computes for nobody.
        """
        heartbeat_s = self._config.engine.heartbeat_s
        silent: set[FrontEndProcess] = set()
        while True:
            await asyncio.sleep(heartbeat_s / BEATS_PER_PATIENCE)
            before, silent = silent, set()
            for number, front_end in self.processes.items():
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

    def _relaunch(self, number: int, lost: Sequence[Entry]) -> bool:
        try:
            self._launch(number, lost)
        except OSError as error:  # no memory or no file descriptors, at the moment
            log.error("front end not started", frontend=number, reason=str(error))
            return False
        return True

    def _connect(self, front_end: FrontEndProcess) -> None:
        """Connects it to the engine; where there is none at the moment, the next one is."""
        if self._engine.link.info is not None and not front_end.is_connected:
            with contextlib.suppress(OSError):  # the engine has just been lost
                front_end.attach(self._engine.keeper.connect())

    def _received(self, front_end: FrontEndProcess, message: FromFrontEnd) -> None:
        if isinstance(message, Attached):
            front_end.attached.set()
        elif isinstance(message, Detached):
            front_end.is_connected = False
            self._connect(front_end)
        elif isinstance(message, LinesDropped):
            DROPPED.add(message.n)
        elif isinstance(message, Observed):
            for learnt in self._habits.observe(message):
                for each in self.processes.values():
                    each.post(learnt)
        elif isinstance(message, Listening):
            front_end.listening.set()
            text, files = self._configuration.text, self._identities.files
            front_end.post(Reconfigure(text, self._config, files))  # changed in the meantime?
            for site, habit in self._habits.known():
                front_end.post(Learnt(site, habit.need))
            self._connect(front_end)
        elif isinstance(message, CannotStart):
            front_end.problem = message.line
            front_end.listening.set()
            front_end.end()
        else:
            front_end.calls.receive(message)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Returns a new folder for metrics. Raises StartError."""
    try:
        return tempfile.TemporaryDirectory(prefix="niyama-")
    except OSError as error:
        raise StartError(f"no temporary folder for metrics: {error.strerror}") from error
