"""The decision log of a simulation: what a server's would say if it had served those requests. Unix
time begins with the simulation.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.deciding.request import Importance, Share, Targets
from engine.deciding.scheduler_config import SchedulerConfig
from engine.decision_header import Service, described
from engine.decision_lines import line_of
from engine.tiers import Tier as ServerTier
from engine.tiers import Tiers
from loadgen.targets.profiles import Profile
from niyama.client.values import Tier


class DecisionLines:
    """Writes the entries of simulated schedulers to a file, anew."""

    def __init__(
        self, path: Path, config: SchedulerConfig, profile: Profile, weights: dict[str, float]
    ) -> None:
        """Raises OSError where the file cannot be written."""
        self._file = path.open("w", encoding="utf-8")
        tiers = {tier.name: server_tier(tier) for tier in profile.tiers}
        shares = {name: Share(name, weight) for name, weight in weights.items()}
        default = next(iter(tiers), "")
        service = Service.of(Tiers(tiers, default, tenants=shares)) if tiers else Service(())
        says = described(
            config,
            profile.latency,
            service,
            version=version("niyama"),
            model=profile.name,
            started_unix_s=0.0,
        )
        self.write({"kind": "engine", "at": 0.0, **says})

    def write(self, entry: dict[str, Any]) -> None:
        """Writes an entry, as a scheduler's decision sink. Raises OSError."""
        self._file.write(line_of(entry, 0.0))

    def close(self) -> None:
        """Raises OSError where the last of it cannot be written."""
        self._file.close()


def server_tier(tier: Tier) -> ServerTier:
    """Turns a tier as clients see it into one of the server."""
    of = tier.targets
    targets = Targets(of.ttft, of.tbt, of.ttlt, tier.max_gap if of.tbt is not None else None)
    return ServerTier(tier.name, targets, Importance[tier.importance.name])
