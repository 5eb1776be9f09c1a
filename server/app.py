"""The server's parts and their lifetime: start, ready, lost and recovered, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Coroutine, Sequence

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.driving.client import CallFailed, EngineClient, EngineLost, EngineStartError
from engine.driving.messages import EngineInfo, Failed, TierInfo
from engine.tokenizer import Tokenizer
from proto.niyama.v1 import inference_pb2, inference_pb2_grpc
from server import collector, tiers
from server.config import ServerConfig
from server.metrics import Metrics
from server.service import InferenceService
from server.tiers import Tier, Tiers

log = structlog.get_logger()

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
LAST_WORDS_S = 0.5
METRICS_S = 1.0  # how old the scheduler's metrics may be
EXIT_AT_ONCE = 128 + signal.SIGTERM


class StartError(Exception):
    """The server cannot start; the message is one line for the operator."""


class Server:
    """`start`, serve, `drain`, `stop`. Everything runs on the event loop that it is made on."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises StartError for a model folder or a configuration file that is no good."""
        self.config = config
        self.metrics = Metrics()
        self.engine = EngineClient(
            config.engine,
            self._engine_ready,
            self._engine_lost,
            self._engine_failed,
            lambda line: log.warning("engine", notice=line),
        )
        if not config.engine.model.is_dir():
            raise StartError(f"no checkpoint folder {config.engine.model}")
        try:
            tokenizer = Tokenizer.load(config.engine.model)
            known = choose_tiers(config, ())
        except (ValueError, OSError) as error:
            raise StartError(str(error)) from error
        self.service = InferenceService(config, self.engine, tokenizer, known, self.metrics)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in the stubs
        self._tasks: set[asyncio.Task[None]] = set()
        self._poll: asyncio.Task[None] | None = None
        self._grpc = grpc.aio.server(options=_options(config))
        inference_pb2_grpc.add_InferenceServicer_to_server(self.service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        self.port = 0

    async def start(self) -> EngineInfo:
        """Listens, then waits for the engine. Raises StartError."""
        await self._set_health(serving=False)
        self._listen()
        await self._grpc.start()
        try:
            info = await self.engine.start()
        except EngineStartError as error:
            raise StartError(str(error)) from error
        self._adopt(info)
        await self._set_health(serving=True)
        if self.config.metrics_port:
            self._poll = asyncio.create_task(self._poll_metrics())
        return info

    def _listen(self) -> None:
        host, port, metrics_port = self.config.host, self.config.port, self.config.metrics_port
        try:
            _refuse_taken(host, port)
            self.port = self._grpc.add_insecure_port(f"{host}:{port}")
        except (RuntimeError, OSError) as error:
            raise StartError(f"cannot listen on {host}:{port}: {_reason(error)}") from error
        try:
            if metrics_port:
                self.metrics.serve(host, metrics_port)
        except OSError as error:
            raise StartError(f"cannot listen on {host}:{metrics_port}: {_reason(error)}") from error

    async def drain(self) -> None:
        """Refuses new calls and gives the running ones `drain_s` to finish."""
        await self._health.enter_graceful_shutdown()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.service.drain(), self.config.drain_s)

    async def stop(self) -> None:
        """Ends what still runs, and the engine."""
        # The grace is for the last status of calls that have just finished.
        await self._grpc.stop(grace=LAST_WORDS_S)
        if self._poll is not None:
            self._poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poll
        await self.engine.stop()
        await asyncio.to_thread(self.metrics.stop)
        await asyncio.gather(*self._tasks)

    async def refresh_metrics(self) -> None:
        """Asks the engine for the scheduler's counters; without an answer there are none."""
        try:
            self.metrics.scheduler.stats = await self.engine.call("stats")
        except (EngineLost, CallFailed):
            self.metrics.scheduler.stats = None

    async def _poll_metrics(self) -> None:
        while True:
            await self.refresh_metrics()
            await asyncio.sleep(METRICS_S)

    def _adopt(self, info: EngineInfo) -> None:
        """Takes over the tiers that the engine proposes for the model on this machine."""
        if info.context_note:
            log.warning("context", note=info.context_note)
        if info.calibration is not None:
            log.info("calibration", **info.calibration.log_fields())
        self.service.adopt(info, choose_tiers(self.config, info.tiers))

    def _engine_ready(self, info: EngineInfo) -> None:
        log.info("engine recovered", engine_pid=info.pid)
        self._adopt(info)
        self._spawn(self._set_health(serving=True))

    def _engine_lost(self, line: str) -> None:
        log.error("engine lost", reason=line)
        self.metrics.engine_losses.inc()
        self._spawn(self._set_health(serving=False))

    def _engine_failed(self, failed: Failed) -> None:
        if failed.trace:
            log.error("engine failed", reason=failed.line, trace=failed.trace)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)


def choose_tiers(config: ServerConfig, proposed: Sequence[TierInfo]) -> Tiers:
    """Of the configuration file; else those that the engine proposes; else the built-in ones."""
    built_in = tuple(Tier(*tier) for tier in proposed) or tiers.BUILT_IN
    if config.config is not None:
        return tiers.load(config.config, built_in)
    return Tiers({tier.name: tier for tier in built_in}, built_in[0].name)


def _refuse_taken(host: str, port: int) -> None:
    """Raises OSError where no address of the host can be bound, as gRPC does with a line of its own
    on stderr and without the reason.
    """
    refusal: OSError | None = None
    addresses = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return
        except OSError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return "address in use" if error.errno == errno.EADDRINUSE else error.strerror


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # a unary answer is as long as was asked for
        ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, and should fail
        # Gateways ping every 30 s, also when idle; gRPC's default answers "too many pings".
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        # A client that vanished without a word must not hold memory for ever.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


async def serve(config: ServerConfig) -> int:
    """Serves until a signal; returns the exit code.

    SIGTERM or SIGINT drains, a second one leaves at once. Raises StartError.
    """
    server = Server(config)
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server, asked_to_stop)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(asked_to_stop.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            _announce(server, starting.result())
            collector.settle()
            await stopping
            log.info("draining", seconds=config.drain_s)
            await server.drain()
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await server.stop()
    return 0


def _stop(server: Server, asked_to_stop: asyncio.Event) -> None:
    if asked_to_stop.is_set():
        server.engine.kill()
        os._exit(EXIT_AT_ONCE)
    asked_to_stop.set()


def _announce(server: Server, info: EngineInfo) -> None:
    """The ready line, for people and for scripts that wait for it."""
    print(
        f"niyama ready on {server.config.host}:{server.port}: {info.model_name}"
        f" ({info.num_parameters / 1e6:.1f} M parameters, {info.dtype}, {info.device}),"
        f" policy {info.policy}",
        flush=True,
    )
