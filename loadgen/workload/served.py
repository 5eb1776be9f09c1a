"""What a workload must know of whoever serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from niyama.client.values import Tier


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What a target says of itself: its tiers, and the sizes that requests must fit."""

    name: str  # for the report: an address, or a profile
    policy: str
    model: str
    tiers: tuple[Tier, ...]
    vocabulary_size: int
    context_length: int  # most tokens of prompt and output together
    version: str = ""  # of its software, where it is known
    weights: Mapping[str, float] = field(default_factory=dict)  # of tenants' shares, where known
    stated_output: str = ""  # what its callers state as `max_tokens`, where that is simulated
