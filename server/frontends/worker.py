"""One of several front ends, as their supervisor starts it.

That is `python -m server.frontends.worker CONTROL DOOR PULSE NAME`. CONTROL carries the messages of
`server.frontends.control`; through DOOR come connections to the engine. It leaves signals to the
supervisor, so that a signal to the whole group still drains, and ends at once when the supervisor
does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import time

import structlog
import uvloop
from prometheus_client import CollectorRegistry, values

from engine.deciding.outcome import Fate
from engine.inferring.habits import Learnt
from engine.linking.link import EngineLink
from engine.messages import Ready
from engine.processes import collector, standard_streams
from engine.processes.door import let_in
from engine.processes.frames import receive, send
from engine.processes.pulse import BEATS_PER_PATIENCE, NO_TURN, Pulse
from engine.processes.spawn import leave_signals, parent_of
from engine.processes.standard_streams import DROPPED
from engine.processes.watch import Condition, Watch
from engine.processes.wire import open_wire
from server import logs
from server.admission.ledger import LedgerLink
from server.config import StartError
from server.configuration import Configuration, Reconfigure
from server.frontend import FrontEnd
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
from server.metrics import Metrics

log = structlog.get_logger()

ORPHANED = 3  # exit code
ASK_AGAIN_S = 0.5  # after a connection to the engine that could not be had


class Worker:
    """Runs a front end between its supervisor and an engine that comes and goes."""

    def __init__(
        self, start: Start, control: socket.socket, door: socket.socket, pulse: Pulse
    ) -> None:
        """Raises StartError for a model folder that is no good."""
        self._start = start
        self._pulse = pulse
        self._control = control
        self._door = door
        self._ledger = LedgerLink(self._post)
        self._asked_to_stop = asyncio.Event()
        self._has_ended = False
        self._attaching: asyncio.Task[None] | None = None
        self._engine = EngineLink(
            self._engine_ready,
            self._engine_lost,
            lambda line: log.warning("engine", notice=line),
            start.config.engine.rerun_s,
        )
        # Files by this front end's number, so that one that takes its place goes on with them.
        values.ValueClass = values.MultiProcessValue(lambda: start.number)
        metrics = Metrics(CollectorRegistry())
        for entry in start.lost:
            metrics.count(entry.tier, entry.importance, entry.share, Fate.FAILED)
        self._configuration = Configuration(start.config.config, start.configuration)
        self._identities = Identities(start.identity, lambda: self._configuration.tiers)
        self._front_end = FrontEnd(
            start.config,
            self._engine,
            metrics,
            self._ledger,
            self._configuration,
            self._identities,
            self._post,
            shares_port=True,
        )

    async def serve(self) -> None:
        """Serves until the supervisor asks for the end."""
        self._wire = await open_wire(self._control, self._received, self._orphaned)
        self._loop = asyncio.get_running_loop()
        DROPPED.on_dropped = self._tell_dropped
        beating = asyncio.create_task(self._beat())
        try:
            await self._front_end.start()
        except StartError as error:
            self._post(CannotStart(str(error)))  # the supervisor ends this process
        else:
            self._post(Listening())
        self._door.setblocking(False)
        self._loop.add_reader(self._door, self._let_in)
        collector.settle()
        await self._asked_to_stop.wait()
        await self._front_end.drain()
        await self._front_end.stop()
        self._loop.remove_reader(self._door)
        await self._engine.stop()
        self._has_ended = True
        beating.cancel()

    async def _beat(self) -> None:
        """Shows the supervisor that this event loop runs, and looks whether it does: without it no
        call can be entered in the ledger, so that they had better go elsewhere.
        """
        heartbeat_s = self._start.config.engine.heartbeat_s
        watch = Watch(heartbeat_s)
        while True:
            self._pulse.beat()
            condition = watch.look(self._pulse.others_beats, NO_TURN, False, time.monotonic())
            if self._engine.note_silence("supervisor", condition is not Condition.WELL):
                log.warning("supervisor", is_silent=condition is not Condition.WELL)
                self._front_end.show_health()
            await asyncio.sleep(heartbeat_s / BEATS_PER_PATIENCE)

    def _tell_dropped(self, num_lines: int) -> None:
        """Is called from whichever thread wrote them."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._post, LinesDropped(num_lines))

    def _received(self, messages: list[FromSupervisor]) -> None:
        for message in messages:
            if isinstance(message, Drain):
                self._asked_to_stop.set()
            elif isinstance(message, EngineSilent):
                self._engine.note_silence("engine", message.is_silent)
                self._front_end.show_health()
            elif isinstance(message, Reconfigure):
                self._reconfigure(message)
            elif isinstance(message, Learnt):
                self._front_end.learn(message)
            else:
                self._ledger.receive(message)

    def _reconfigure(self, now: Reconfigure) -> None:
        """Has hold what the supervisor has found good."""
        if now.text is not None:
            self._configuration.take(self._configuration.read(now.text))
        self._identities.take(now.identity)
        logs.set_level(now.config.log_level)
        self._front_end.reconfigure(now)

    def _post(self, message: FromFrontEnd) -> None:
        self._wire.post(message)

    def _let_in(self) -> None:
        """Takes a connection to the engine."""
        try:
            sock = let_in(self._door)
        except EOFError:  # the supervisor is gone, as the other socket says too
            self._loop.remove_reader(self._door)
        except OSError as error:
            self._attaching = asyncio.create_task(self._ask_again(error))
        else:
            self._attaching = asyncio.create_task(self._attach(sock))

    async def _attach(self, sock: socket.socket) -> None:
        try:
            await self._engine.attach(sock)
        except OSError as error:
            await self._ask_again(error)

    async def _ask_again(self, error: OSError) -> None:
        """Asks for another connection, as this one cannot be had."""
        log.error("engine not connected", reason=error.strerror)
        await asyncio.sleep(ASK_AGAIN_S)
        self._post(Detached())

    def _engine_ready(self, ready: Ready) -> None:
        self._front_end.engine_ready(ready.info)
        self._post(Attached())

    def _engine_lost(self) -> None:
        self._front_end.show_health()
        self._post(Detached())

    def _orphaned(self) -> None:
        if not self._has_ended:
            remove_counters()
            os._exit(ORPHANED)


def remove_counters() -> None:
    """Removes the folder of the metrics, as the supervisor does if it can. Every orphan does this,
    so that the last one leaves nothing, whatever another has written in the meantime.
    """
    shutil.rmtree(os.environ[COUNTERS_FOLDER], ignore_errors=True)


async def run(start: Start, control: socket.socket, door: socket.socket, pulse: Pulse) -> None:
    """Serves, with the front end's number in every line of the log. Raises StartError."""
    structlog.contextvars.bind_contextvars(frontend=start.number)
    await Worker(start, control, door, pulse).serve()


def main(argv: list[str]) -> int:
    """Returns the exit code, of which the supervisor says no more than what it is."""
    leave_signals()
    standard_streams.guard()
    (control, door), pulse = parent_of(argv[1:])
    try:
        start: Start = receive(control)
    except EOFError:
        remove_counters()
        return ORPHANED
    logs.configure(start.config.log_format, start.config.log_level)
    try:
        uvloop.run(run(start, control, door, pulse))
    except StartError as error:
        send(control, [CannotStart(str(error))])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
