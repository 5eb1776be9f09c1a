"""The server's parts and their lifetime: start, ready, lost and recovered, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from engine import toml_file
from engine.decision_header import Service
from engine.inferring.habits import Habits, Observed
from engine.inferring.proposal import Known
from engine.messages import EngineInfo
from engine.processes import collector
from engine.tiers import Least, Shortfall, Tiers
from server import logs
from server.admission.ledger import Ledger, linked
from server.admission.places import Use
from server.config import ServerConfig, StartError
from server.configuration import Changes, Configuration, Reconfigure, reloaded_from
from server.ending import REST_S, Ending
from server.engine import ServerEngine
from server.engine_metrics import QueueMetrics, ReloadMetrics
from server.frontend import FrontEnd
from server.frontends.supervisor import Supervisor
from server.identity import files
from server.identity.identities import Identities, unlimited
from server.identity.watching import Expiry, Watch
from server.listening.addresses import host_port, refuse_taken
from server.listening.exposure import exposed, notes
from server.metrics import Metrics
from server.startup import read_configuration, read_identity
from server.status.operating import Operating
from server.tier_port import TierPort

log = structlog.get_logger()

SLOW_START_S = 5.0  # after which the operator is told what takes so long


class FrontEnds(Protocol):
    """What a server does with its front ends, however many there are and wherever they run."""

    async def start(self) -> list[int]:
        """Returns when all of them listen, at which of `ServerConfig.ports`. Raises StartError."""

    async def ready(self) -> None:
        """Returns when all of them serve, after an engine is ready. Raises StartError."""

    def engine_ready(self, info: EngineInfo) -> None:
        """Tells them that an engine can serve, the first or one that takes a lost one's place."""

    @property
    def tiers(self) -> Tiers:
        """The tiers that hold now."""

    @property
    def num_serving(self) -> int:
        """Returns how many of them serve calls now."""

    def show_health(self) -> None:
        """Tells them that the engine is lost, may have stopped, or has not."""

    def reconfigure(self, now: Reconfigure) -> None:
        """Has another configuration hold for the calls to come."""

    async def drain(self) -> None:
        """Refuses new calls and gives the running ones `drain_s` to finish."""

    async def stop(self) -> None:
        """Ends what still runs."""

    def close(self) -> None:
        """Frees what is kept until the engine has ended too, such as metrics that can be read until
        then.
        """

    def kill(self) -> None:
        """Ends their processes at once, from any thread."""


class Server:
    """One engine, the front ends before it, and the ledger that they share: `start`, serve,
    `drain`, `stop`. Everything runs on the event loop that it is made on.
    """

    def __init__(self, config: ServerConfig, configuration: Configuration | None = None) -> None:
        """`configuration` is what has been read of the operator's file; else that is read now.
        Raises StartError for a model folder or a file that is no good.
        """
        self.config = config
        self.configuration = configuration or read_configuration(config)
        self.identities = Identities(read_identity(config), lambda: self.configuration.tiers)
        self.ledger = Ledger(config.max_requests, config.most_queued_tokens)
        self._limit()
        self.habits = Habits()  # of calls that state no targets, at all front ends
        self.engine = ServerEngine(
            config,
            lambda: self.front_ends.tiers,
            self._engine_ready,
            lambda: self.front_ends.show_health(),
        )
        self.engine.registry.register(QueueMetrics(self.ledger.admission))
        self.reloads = ReloadMetrics(self.engine.registry)
        self.reloads.told(True, time.time())
        self.front_ends = self._front_ends()
        self.operating = Operating(
            *(config, self.engine, self.front_ends, self.identities),
            shortfalls=lambda: self._warned,
            known=lambda: Known(list(self.habits.known()), self.front_ends.tiers),
        )
        self.port = 0
        self.tier_ports: Sequence[TierPort] = ()
        self._reading = asyncio.Lock()
        self._watching: list[asyncio.Task[None]] = []
        self._least: Least | None = None  # that the engine can keep, as far as it is known
        self._warned: Mapping[str, list[Shortfall]] = {}  # what the operator has been told of tiers
        self._unlimited = ""  # and of tenants

    def _engine_ready(self, info: EngineInfo) -> None:
        self.front_ends.engine_ready(info)
        self._least = info.least
        self._describe()
        self._warn()

    def _warn(self) -> None:
        """Tells the operator of tiers that cannot be kept, and of tenants that may have anything
        though others may not, once of each.
        """
        note = unlimited(self.identities.files, self.configuration.tiers)
        if note and note != self._unlimited:
            log.warning("tenants not named", note=note)
        self._unlimited = note
        found = {} if self._least is None else self.configuration.tiers.shortfalls(self._least)
        told, self._warned = self._warned, found
        for name, short in found.items():
            for each in short if told.get(name) != short else ():
                log.warning(
                    "tier cannot be kept",
                    tier=name,
                    note=str(each),
                    target=each.target,
                    stated_s=each.stated_s,
                    least_s=each.alone_s,
                    least_loaded_s=each.loaded_s,
                )

    def _limit(self) -> None:
        """Tells the ledger how much may wait, in all and of single tenants."""
        config, rights = self.config, self.configuration.tiers.rights
        of_shares = {
            name: Use(each.max_requests, each.max_queued_tokens) for name, each in rights.items()
        }
        self.ledger.limit(config.max_requests, config.most_queued_tokens, of_shares)

    def _describe(self) -> None:
        """Tells the engine what its decision log is to say of the service."""
        tiers, config = self.front_ends.tiers, self.config
        limits = config.max_requests, config.most_queued_tokens
        self.engine.link.describe(Service.of(tiers, *limits).described())

    async def start(self) -> EngineInfo:
        """Listens, then waits for the engine. Raises StartError."""
        if why := exposed(self.config):
            raise StartError(f"--host {why}")
        for port in self.config.ports:
            refuse_taken(self.config.host, port)
        for note in notes(self.config):
            log.warning("exposed", note=note)
        watch = Watch(lambda: files.paths_of(self.config), self._reread_identity)
        expiry = Expiry().run(lambda: self.identities.files.tls)
        self._watching = [asyncio.create_task(each) for each in (watch.run(), expiry)]
        self.operating.start()
        starting = asyncio.create_task(self.engine.start())
        try:
            listening = self.config.at(await self.front_ends.start())
            self.port, self.tier_ports = listening.port, listening.tier_port
            info = await starting
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        await self.front_ends.ready()
        return info

    async def drain(self) -> None:
        """Refuses new calls and gives the running ones `drain_s` to finish."""
        self.operating.is_draining = True
        await self.front_ends.drain()

    async def stop(self) -> None:
        """Ends what still runs, and the engine, whatever goes wrong with the former."""
        for watching in self._watching:
            watching.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        try:
            await self.front_ends.stop()
        finally:
            await self.engine.stop()
            await self.operating.stop()
            self.front_ends.close()

    @property
    def has_files(self) -> bool:
        """Returns whether there is anything that can be read again."""
        return self.configuration.path is not None or bool(files.paths_of(self.config))

    async def reload(self) -> Changes:
        """Reads the operator's file and those of identities again; what they say holds for the
        calls to come, as far as it can without a restart. Returns what differs. Raises ValueError,
        and then all is as before.
        """
        async with self._reading:
            return await self._reload()

    async def _reload(self) -> Changes:
        configuration, config, reading = self.configuration, self.config, None
        if configuration.path is not None:
            text = await asyncio.to_thread(toml_file.read, configuration.path)
            reading = await asyncio.to_thread(configuration.read, text)
            if reading.config is not None:
                config = reloaded_from(config, reading.config)
        identity = await asyncio.to_thread(files.read, config)
        changes = Changes([], []) if reading is None else configuration.take(reading)
        differing = files.differing(self.identities.files, identity)
        changes.made.extend(each for each in differing if each not in changes.made)
        self.config = config
        self.identities.take(identity)
        self._limit()
        logs.set_level(config.log_level)
        self.front_ends.reconfigure(Reconfigure(configuration.text, config, identity))
        self._describe()
        self._warn()
        return changes

    async def _reread_identity(self) -> None:
        """Reads the files of identities again, which have changed. Raises ValueError, and then all
        is as before.
        """
        async with self._reading:
            identity = await asyncio.to_thread(files.read, self.config)
            if differing := files.differing(self.identities.files, identity):
                self.identities.take(identity)
                self.front_ends.reconfigure(
                    Reconfigure(self.configuration.text, self.config, identity)
                )
                log.info("identity read", changes=differing)
                self._warn()

    def kill(self) -> None:
        """Ends the engine and the front ends at once, whatever they do; this process is to follow.
        For any thread.
        """
        try:
            self.front_ends.kill()
        finally:
            self.engine.keeper.kill()

    def _front_ends(self) -> FrontEnds:
        """Nobody else asks how many there are: one runs in this process, more in processes of their
        own. Raises StartError.
        """
        config, engine, ledger = self.config, self.engine, self.ledger
        if config.frontends > 1:
            return Supervisor(
                config, engine, ledger, self.configuration, self.identities, self.habits
            )
        metrics = Metrics(engine.registry)

        def observe(observed: Observed) -> None:
            for learnt in self.habits.observe(observed):
                front_end.learn(learnt)

        front_end = FrontEnd(
            *(config, engine.link, metrics, linked(ledger), self.configuration, self.identities),
            observe,
        )
        return front_end


async def serve(
    config: ServerConfig, ending: Ending, configuration: Configuration | None = None
) -> int:
    """Serves until it is asked to end, then drains; returns the exit code. SIGHUP reads the
    operator's files again, of which `configuration` is what has been read already. With
    `save_profile` it ends as soon as that is written: on a port of its own, so that a server that
    runs is not in its way. Raises StartError.
    """
    saved = config.engine.save_profile
    if saved is not None:
        config = replace(
            config, host="127.0.0.1", port=0, metrics_port=0, frontends=1, tier_port=()
        )
    server = Server(config, configuration)
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    ending.kill = server.kill
    ending.on_asked = lambda: _tell(loop, asked_to_stop)
    if ending.is_asked:  # a moment ago
        asked_to_stop.set()
    asked_to_reload = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, asked_to_reload.set)
    reloading = asyncio.create_task(_reload_when_asked(server, ending, asked_to_reload))
    following = asyncio.create_task(follow(config, asked_to_reload))
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(asked_to_stop.wait())
    reassuring = loop.call_later(SLOW_START_S, _reassure)
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        reassuring.cancel()
        if starting.done() and saved is not None:
            starting.result()
            print(f"niyama profile saved in {saved}", flush=True)
        elif starting.done():
            _announce(server, starting.result())
            collector.settle()
            await stopping
            log.info("draining", seconds=server.config.drain_s)
            await server.drain()
    finally:
        reassuring.cancel()
        tasks = starting, stopping, reloading, following
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()
    return 0


def _reassure() -> None:
    log.info(
        "starting",
        note="the first start of a model measures and compiles it, for a minute or two",
    )


async def _reload_when_asked(server: Server, ending: Ending, asked: asyncio.Event) -> None:
    """Reads the operator's files again whenever it is asked to, until it is cancelled.

    A file that is no good changes nothing. A server without any ignores the signal, as under nohup,
    so that a terminal that closes does not end it.
    """
    while True:
        await asked.wait()
        asked.clear()
        if not server.has_files:
            log.info("SIGHUP ignored", note="there is no --config to read again")
            continue
        try:
            changes = await server.reload()
        except ValueError as error:
            server.reloads.told(False, time.time())
            log.error("configuration not read", reason=str(error))
            continue
        server.reloads.told(True, time.time())
        ending.patience_s = server.config.drain_s + REST_S
        log.info("configuration read", changes=changes.made)
        if changes.need_restart:
            log.warning("configuration needs a restart", settings=changes.need_restart)


async def follow(config: ServerConfig, asked: asyncio.Event) -> None:
    """Asks for the operator's file to be read again whenever it has changed, where it is to be
    followed, until it is cancelled.
    """
    path = config.config

    async def ask() -> None:
        asked.set()

    if config.follow_config and path is not None:
        await Watch(lambda: [path], ask).run()


def _tell(loop: asyncio.AbstractEventLoop, asked_to_stop: asyncio.Event) -> None:
    """Sets the event. It is for the thread that waits for signals."""
    with contextlib.suppress(RuntimeError):  # the event loop has ended, and the process is about to
        loop.call_soon_threadsafe(asked_to_stop.set)


def _announce(server: Server, info: EngineInfo) -> None:
    """Prints the ready line, for people and for scripts that wait for it."""
    tier_ports = "".join(f", tier port {each}" for each in server.tier_ports)
    print(
        f"niyama ready on {host_port(server.config.host, server.port)}: {info.model_name}"
        f" ({info.num_parameters / 1e6:.1f} M parameters, {info.dtype}, {info.device}),"
        f" policy {info.policy}{tier_ports}",
        flush=True,
    )
