"""A front end: gRPC, its services and their health, before an engine that others look after.

What it needs of its surroundings is handed to it: a link to the engine, a link to the ledger, a
registry for its metrics, and word of each engine that is ready, is lost or may have stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.inferring.habits import Learnt, Observed
from engine.linking.link import EngineLink
from engine.messages import EngineInfo
from engine.tiers import Tiers
from niyama.v1 import inference_pb2
from server import errors
from server.admission.ledger import LedgerLink
from server.calls import Calls
from server.config import ServerConfig, StartError
from server.configuration import Configuration, Reconfigure, reloaded_from
from server.identity.identities import Identities, Identity
from server.identity.tokens import KEY
from server.inferring import Inferring
from server.listening import orca
from server.listening.channelz import add_channelz, is_local
from server.listening.deliveries import Deliveries
from server.listening.health import Health
from server.listening.ports import ports_of
from server.listening.reflecting import add_reflection
from server.listening.standard import ShortMessages
from server.listening.uploads import Uploads
from server.metrics import Metrics
from server.service import InferenceService
from server.serving import Serving
from server.startup import default_sampling, load_tokenizer
from server.tracing import Tracing, provider_of

if TYPE_CHECKING:
    from server.smg.service import VllmEngine

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
LAST_WORDS_S = 0.5
STOP_S = 2.0  # beyond those, for gRPC to end its calls


class FrontEnd:
    """A front end is to be started, serves from `engine_ready` on, whenever the engine does, and is
    to be drained and stopped. Where it is alone, it is all of `server.app.FrontEnds`.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: EngineLink,
        metrics: Metrics,
        ledger: LedgerLink,
        configuration: Configuration,
        identities: Identities,
        observe: Callable[[Observed], None],
        *,
        shares_port: bool = False,
    ) -> None:
        """`observe` is told how calls that state no targets end. `shares_port` lets other front
        ends listen at the same port. Raises StartError for a model folder that is no good.
        """
        self._config = config
        self._engine = engine
        self._configuration = configuration
        self.metrics = metrics
        self._has_served = asyncio.Event()
        tokenizer = load_tokenizer(config.engine.model)
        try:
            sampling = default_sampling(config)
        except (ValueError, OSError) as error:
            raise StartError(str(error)) from error
        self._deliveries = Deliveries(config.write_timeout_s)
        self._uploads = Uploads(config.receive_timeout_s, config.max_message_bytes)
        self._sweeping: list[asyncio.Task[None]] = []
        self._identities = identities
        self._ports = ports_of(config, identities.files.tls, shares_port)
        calls = Calls(metrics, self._deliveries, self._uploads, self.identify)
        inferring = Inferring(config.infer, metrics, observe)
        self.learn: Callable[[Learnt], None] = inferring.learn
        self.serving = Serving(
            *(config, engine, tokenizer, sampling, configuration.tiers, ledger, calls, inferring)
        )
        inference = InferenceService(self.serving, identities)
        self.smg = _smg_service(self.serving) if config.smg else None
        self._health = Health(("", SERVICE), self._deliveries)
        self._kv_events = None
        if self.smg is not None and config.kv_events != "off":
            self._kv_events = self.smg.kv_events(self._deliveries, self.identify)
        for port in self._ports:
            port.server.add_generic_rpc_handlers((inference.handler(port.tier),))
            if self.smg is not None:
                port.server.add_generic_rpc_handlers((self.smg.handler(port.tier),))
            if self._kv_events is not None:
                of_watchers: Any = ShortMessages(port.server, self._uploads, self._admit_watcher)
                of_watchers.add_generic_rpc_handlers((self._kv_events.handler(),))
            self._add_standard_services(port.server, config)
        if config.traces:
            try:
                provider = provider_of()
            except ValueError as error:
                raise StartError(str(error)) from error
            calls.tracing = Tracing(provider, engine.ask, config.engine.served_name)

    def _add_standard_services(self, server: grpc.aio.Server, config: ServerConfig) -> None:
        """Adds health, reflection and what else was asked for to a port's server, each for those
        who may ask. Raises StartError.
        """
        standard: Any = ShortMessages(server, self._uploads)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, standard)
        files = [inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR]
        if self.smg is not None:
            files.append(self.smg.file)
        if config.load_reports:
            self.serving.reports = orca.CallReports(self.serving.loads.newest)
            open_rca = orca.OpenRca(self.serving.loads.now, self._deliveries)
            of_speakers: Any = ShortMessages(server, self._uploads, self._admit_speaker)
            of_speakers.add_generic_rpc_handlers((open_rca.handler(),))
            files.append(orca.DESCRIPTOR)
        if config.channelz:
            try:
                files.append(add_channelz(standard, self._admit_operator))
            except ValueError as error:
                raise StartError(str(error)) from error
        of_known: Any = ShortMessages(server, self._uploads, self.identify)
        add_reflection(files, of_known)

    async def start(self) -> list[int]:
        """Listens; returns the numbers of its ports, the main one's first. Raises StartError."""
        numbers = [port.listen() for port in self._ports]
        self.serving.start()
        if self.smg is not None:
            self.smg.start()
        self._sweeping = [
            asyncio.create_task(each.run()) for each in (self._deliveries, self._uploads)
        ]
        for port in self._ports:
            await port.server.start()
        return numbers

    def identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
        """Returns who makes a call. Raises CallError, UNAUTHENTICATED."""
        metadata = context.invocation_metadata() or ()
        return self._identities.identify(metadata, context.auth_context)

    def _admit_speaker(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises CallError for who may not know the load: a tenant that speaks for itself alone."""
        if not self.identify(context).speaks_for_others:
            raise errors.not_for_tenants()

    def _admit_watcher(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises CallError for who may not be told what prompts there are: where callers are asked,
        a tenant that speaks for itself alone, and else who is not the operator, unless anybody may.
        """
        if self._identities.are_asked:
            self._admit_speaker(context)
        elif self._config.kv_events != "any":
            self._admit_operator(context)

    def _admit_operator(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises CallError for a call that is not the operator's: by who makes it where callers are
        asked, else by the token where there is one, else by coming from this machine.
        """
        if self._identities.are_asked:
            if not self.identify(context).is_operator:
                raise errors.not_for_tenants()
            return
        metadata = context.invocation_metadata() or ()
        if self._identities.is_operator(str(value) for key, value in metadata if key == KEY):
            return
        if self._identities.has_operator:
            raise errors.wrong_token()
        if not is_local(context.peer(), metadata):
            raise errors.not_local()

    def engine_ready(self, info: EngineInfo) -> None:
        """Takes over the tiers that the engine proposes for the model on this machine."""
        self.serving.adopt(info, self._configuration.propose(info.tiers))
        if self._kv_events is not None:
            self._kv_events.engine_ready(info)
        self.metrics.expect(self._configuration.tiers)
        self.show_health()
        self._has_served.set()

    async def ready(self) -> None:
        """Returns when an engine has been ready."""
        await self._has_served.wait()

    @property
    def tiers(self) -> Tiers:
        """Returns the tiers that hold now."""
        return self._configuration.tiers

    @property
    def num_serving(self) -> int:
        """Returns 1 while it serves calls."""
        return int(self._has_served.is_set() and self._engine.serves)

    def show_health(self) -> None:
        """Says by health whether it serves. To be called when that may have changed."""
        self._health.set(serving=self._engine.serves)

    def reconfigure(self, now: Reconfigure) -> None:
        """Has another configuration hold for the calls to come, after it has been taken as that of
        this process.
        """
        self._config = reloaded_from(self._config, now.config)
        self._deliveries.timeout_s = self._config.write_timeout_s
        self._uploads.timeout_s = self._config.receive_timeout_s
        for port in self._ports:
            port.take(now.identity.tls)
        self.serving.reconfigure(self._config, self._configuration.tiers)
        self.metrics.expect(self._configuration.tiers)

    async def drain(self) -> None:
        """Refuses new calls and gives the running ones `drain_s` to finish."""
        self._health.shut_down()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.serving.calls.drain(), self._config.drain_s)

    async def stop(self) -> None:
        """Ends what still runs; a client that does not read is left behind."""
        for sweeping in self._sweeping:
            sweeping.cancel()
        await asyncio.gather(*self._sweeping, return_exceptions=True)
        await self.serving.loads.stop()
        self.serving.calls.stop()
        # The grace is for the last status of calls that have just finished.
        stopping = [
            asyncio.create_task(port.server.stop(grace=LAST_WORDS_S)) for port in self._ports
        ]
        await asyncio.wait(stopping, timeout=LAST_WORDS_S + STOP_S)
        await self.serving.stop()
        if self._kv_events is not None:
            self._kv_events.stop()
        if self.smg is not None:
            await self.smg.stop()
        if self.serving.calls.tracing is not None:
            await self.serving.calls.tracing.stop()

    def close(self) -> None:
        """Does nothing: its metrics are kept in memory."""

    def kill(self) -> None:
        """Does nothing: this process is about to end, and nothing of the front end outlives it."""


def _smg_service(serving: Serving) -> VllmEngine | None:
    """Returns the service that SMG speaks; None without its package (extra `gateway`)."""
    if find_spec("smg_grpc_proto") is None:
        return None
    from server.smg.service import VllmEngine

    return VllmEngine(serving)
