"""How the target that the flags ask for is opened and closed."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from engine.deciding.policies import POLICIES
from loadgen import simulation_flags
from loadgen.arguments import Arguments
from loadgen.simulation_flags import SimulationFlags
from loadgen.targets import live, local_server
from loadgen.targets.live import LiveTarget
from loadgen.targets.simulated import SimulatedTarget
from loadgen.targets.target import Target
from loadgen.workload import logged
from loadgen.workload.spec import DEFAULT_SEED, Spec
from niyama.client.options import ConnectionOptions


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens the targets of one command. `server` is the module of the servers that it starts."""

    arguments: Arguments
    spec: Spec
    server: str = local_server.MODULE

    @contextlib.contextmanager
    def opened(self, contender: str | None = None) -> Iterator[Target]:
        """Opens a target for as long as the block lasts.

        A contender of a comparison is NAME=HOST:PORT, a server that runs already, or the name of a
        policy, for which a server is started here, or simulated. Raises Unreachable, or ValueError.
        """
        if self.arguments.simulation is not None:
            yield self._simulated(self.arguments.simulation, contender)
            return
        name, _, address = (contender or "").partition("=")
        if contender is None or address:
            arguments = self.arguments
            yield self._live(address or arguments.target.target, arguments.connection)
            return
        # The contender's policy last: then it holds, whatever the flags say.
        started = [*shlex.split(self.arguments.mode.server_flags), "--policy", name]
        with local_server.serving(started, self.server) as own:
            yield self._live(own, ConnectionOptions())

    def check(self) -> None:
        """Raises ValueError where one of the contenders cannot be opened, before the first runs."""
        for contender in self.arguments.mode.compare:
            if self.arguments.simulation is not None:
                self._simulated(self.arguments.simulation, contender)
                continue
            name, _, address = contender.partition("=")
            if not address and name not in POLICIES:
                raise ValueError(
                    f"unknown policy {name!r}: one of {', '.join(POLICIES)}, or NAME=HOST:PORT"
                )

    def _live(self, address: str, connection: ConnectionOptions) -> LiveTarget:
        flags = self.arguments.target
        drain_s = live.DRAIN_S if flags.drain is None else flags.drain
        fleet = flags.routing, flags.pin
        return LiveTarget(address, flags.channels, drain_s, connection, *fleet)

    def _simulated(self, flags: SimulationFlags, contender: str | None) -> Target:
        drain_s, spec = self.arguments.target.drain, self.spec
        log = None if spec.logs is None else logged.load(spec.logs)
        setup = flags.setup(
            drain_s=math.inf if drain_s is None else drain_s,
            prefix_caching=any(tier.prefix for tier in (spec.everyone, *spec.tiers.values()))
            or (log is not None and log.has_prefixes),
            stated_output=spec.planned_stated,
            seed=self.arguments.load.seed or DEFAULT_SEED,
            keeps_series=self.arguments.report.html is not None,
            routing=self.arguments.target.routing,
            pinned=self.arguments.target.pin,
            log=log,
        )
        if contender is None:
            return SimulatedTarget(setup)
        return simulation_flags.contender(setup, contender, flags.silo)
