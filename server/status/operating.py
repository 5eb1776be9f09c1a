"""The metrics port of a server: its pages, from before the engine is ready until it has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from engine.inferring.proposal import Known
from engine.tiers import Shortfall
from server.config import ServerConfig
from server.engine import ServerEngine
from server.identity.identities import Identities
from server.listening.addresses import listen_metrics
from server.listening.exposition import Exposition
from server.status.findings import Parts, Phase
from server.status.site import Site
from server.status.source import Source


class ServingParts(Protocol):
    """Front ends, of which some serve."""

    @property
    def num_serving(self) -> int:
        """Returns how many of them serve calls now."""


class Operating:
    """The pages of one server, where `metrics_port` asks for them. To be made, started and stopped
    on its event loop.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: ServerEngine,
        front_ends: ServingParts,
        identities: Identities,
        shortfalls: Callable[[], Mapping[str, Sequence[Shortfall]]],
        known: Callable[[], Known],
    ) -> None:
        """`shortfalls` returns the targets that cannot be kept, by who has them; `known` what is
        inferred from.
        """
        self._config = config
        self._engine = engine
        self._front_ends = front_ends
        self._identities = identities
        self._shortfalls = shortfalls
        self._known = known
        self._exposition: Exposition | None = None
        self._sampling: asyncio.Task[None] | None = None
        self._has_served = False
        self.is_draining = False

    def start(self) -> None:
        """Serves the pages, where they are wanted. Raises StartError."""
        if not self._config.metrics_port:
            return
        log = self._config.engine.decision_log
        source = Source(self._engine.registry, self._engine.link, self.parts, log, self._known)
        self._exposition = Exposition(Site(self._engine.registry, source, self._identities))
        listen_metrics(self._exposition, self._config)
        self._sampling = asyncio.create_task(source.run())

    async def stop(self) -> None:
        """Stops serving them."""
        if self._sampling is not None:
            self._sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sampling
        if self._exposition is not None:
            await asyncio.to_thread(self._exposition.stop)

    def parts(self) -> Parts:
        """Returns how the server's parts are now."""
        link = self._engine.link
        serving = self._front_ends.num_serving
        self._has_served |= serving > 0
        if self.is_draining:
            phase = Phase.DRAINING
        elif link.info is None:
            phase = Phase.LOST if self._has_served or self._engine.lost_reason else Phase.STARTING
        elif not link.serves:
            phase = Phase.SILENT
        else:
            phase = Phase.SERVING if self._has_served else Phase.STARTING
        too_tight = {name: ", ".join(map(str, short)) for name, short in self._shortfalls().items()}
        return Parts(phase, self._engine.lost_reason, self._config.frontends, serving, too_tight)
