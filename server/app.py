"""The server's parts and their lifetime: start, ready, lost and recovered, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import replace

import structlog

from engine import tiers_file
from engine.messages import EngineInfo
from engine.processes import collector
from server.admission.ledger import OwnLedger
from server.config import ServerConfig
from server.ending import Ending
from server.engine import EngineOwner
from server.frontend import FrontEnd
from server.frontends.supervisor import Supervisor
from server.listening.ports import host_port, refuse_taken
from server.metrics import Metrics, QueueMetrics
from server.startup import read_admin, read_configuration

log = structlog.get_logger()

SLOW_START_S = 5.0  # after which the operator is told what takes so long


class Server:
    """The front end of this process before an engine of its own: `start`, serve, `drain`, `stop`.
    Everything runs on the event loop that it is made on.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Raises StartError for a model folder or a configuration file that is no good."""
        self.config = config
        self.ledger = ledger = OwnLedger(config.max_requests, config.most_queued_tokens)
        self.owner = EngineOwner(config, self._engine_ready, self._show_health)
        self.owner.registry.register(QueueMetrics(ledger.admission))
        self.engine = self.owner.client
        self.metrics = Metrics(self.owner.registry)
        configuration = read_configuration(config)
        self._front_end = FrontEnd(
            config, self.engine, self.metrics, ledger, configuration, read_admin(config)
        )
        self.service = self._front_end.service
        self.port = 0

    async def start(self) -> EngineInfo:
        """Listens, then waits for the engine. Raises StartError."""
        refuse_taken(self.config.host, self.config.port)
        self.port = await self._front_end.start(self.config.port)
        self.owner.listen()
        return await self.owner.start()

    async def drain(self) -> None:
        """Refuses new calls and gives the running ones `drain_s` to finish."""
        await self._front_end.drain()

    async def stop(self) -> None:
        """Ends what still runs, and the engine."""
        await self._front_end.stop()
        await self.owner.stop()

    def reconfigure(self, text: str) -> list[str]:
        """Another text of the configuration file: what differs. Raises ValueError, and then all is
        as before.
        """
        return self._front_end.reconfigure(text)

    def kill(self) -> None:
        """Ends the engine at once, whatever it does; this process is to follow."""
        self.engine.kill()

    def _engine_ready(self, info: EngineInfo) -> None:
        self._front_end.engine_ready(info)

    def _show_health(self) -> None:
        self._front_end.show_health()


async def serve(config: ServerConfig, ending: Ending) -> int:
    """Serves until it is asked to end, then drains; returns the exit code. SIGHUP reads the
    configuration file again. With `save_profile` it ends as soon as that is written: on a port of
    its own, so that a server that runs is not in its way. Raises StartError.
    """
    saved = config.engine.save_profile
    if saved is not None:
        config = replace(config, host="127.0.0.1", port=0, metrics_port=0, frontends=1)
    server = Server(config) if config.frontends == 1 else Supervisor(config)
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    ending.kill = server.kill
    ending.on_asked = lambda: _tell(loop, asked_to_stop)
    if ending.is_asked:  # a moment ago
        asked_to_stop.set()
    asked_to_reload = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, asked_to_reload.set)
    reloading = asyncio.create_task(_reload_when_asked(server, asked_to_reload))
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
            log.info("draining", seconds=config.drain_s)
            await server.drain()
    finally:
        reassuring.cancel()
        for task in (starting, stopping, reloading):
            task.cancel()
        await asyncio.gather(starting, stopping, reloading, return_exceptions=True)
        await server.stop()
    return 0


def _reassure() -> None:
    log.info(
        "starting",
        note="the first start of a model measures and compiles it, for a minute or two",
    )


async def _reload_when_asked(server: Server | Supervisor, asked: asyncio.Event) -> None:
    """A file that is no good leaves what was, and a terminal that closes ends no server: what does
    not read a file ignores that signal, as under nohup.
    """
    path = server.config.config
    while True:
        await asked.wait()
        asked.clear()
        if path is None:
            log.info("SIGHUP ignored", note="there is no --config to read again")
            continue
        try:
            changes = server.reconfigure(await asyncio.to_thread(tiers_file.read, path))
        except ValueError as error:
            log.error("configuration not read", reason=str(error))
        else:
            log.info("configuration read", changes=changes)


def _tell(loop: asyncio.AbstractEventLoop, asked_to_stop: asyncio.Event) -> None:
    """From the thread that waits for signals."""
    with contextlib.suppress(RuntimeError):  # the event loop has ended, and the process is about to
        loop.call_soon_threadsafe(asked_to_stop.set)


def _announce(server: Server | Supervisor, info: EngineInfo) -> None:
    """The ready line, for people and for scripts that wait for it."""
    print(
        f"niyama ready on {host_port(server.config.host, server.port)}: {info.model_name}"
        f" ({info.num_parameters / 1e6:.1f} M parameters, {info.dtype}, {info.device}),"
        f" policy {info.policy}",
        flush=True,
    )
