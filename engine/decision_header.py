"""What the line of the kind "engine" says of an engine and the service that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.deciding.latency import LatencyProfile
from engine.deciding.scheduler_config import SchedulerConfig
from engine.decision_lines import BadLog, Entry, Fields, Place, first_line
from engine.tiers import Tier, Tiers

MOST_PAGES = 1 << 24  # of an engine's memory: a simulation has a list of them


@dataclass(frozen=True, slots=True)
class Service:
    """How a service is configured, as far as it matters to what is decided."""

    tiers: tuple[Tier, ...]
    default_tier: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)  # of the tenants with a share
    max_requests: int | None = None
    max_queued_tokens: int | None = None

    @classmethod
    def of(
        cls, tiers: Tiers, max_requests: int | None = None, max_queued_tokens: int | None = None
    ) -> Service:
        """Returns it for tiers and limits that are in force."""
        weights = {name: share.weight for name, share in tiers.tenants.items()}
        named = tuple(tiers.tiers.values())
        return cls(named, tiers.default, weights, max_requests, max_queued_tokens)

    def described(self) -> dict[str, Any]:
        """Returns what the log says of it."""
        return {
            "tiers": [_tier_fields(tier) for tier in self.tiers],
            "default_tier": self.default_tier,
            "tenants": dict(self.weights),
            "max_requests": self.max_requests,
            "max_queued_tokens": self.max_queued_tokens,
        }


def described(
    config: SchedulerConfig,
    profile: LatencyProfile,
    service: Service,
    *,
    version: str,
    model: str,
    started_unix_s: float,
) -> dict[str, Any]:
    """Returns what the log says of an engine and the service that it belongs to."""
    niyama = config.niyama
    return {
        "version": version,
        "model": model,
        "policy": config.policy,
        "chunk_size": config.chunk_size,
        "max_gap": number(niyama.pace.max_gap),
        "reserve": niyama.pace.reserve,
        "relegation_allowance": niyama.allowance,
        "background_share": niyama.background_share,
        "longest_wait_s": number(niyama.longest_wait_s),
        "kv_tokens": config.num_pages * config.page_size,
        "page_size": config.page_size,
        "context_len": config.context_len,
        "max_batch_size": config.max_batch_size,
        "started_unix_s": round(started_unix_s, 6),
        "profile": profile.to_dict(),
        **service.described(),
    }


def _tier_fields(tier: Tier) -> dict[str, Any]:
    targets = tier.targets
    said = {
        "name": tier.name,
        "importance": tier.importance.name.lower(),
        "ttft_s": targets.ttft_s,
        "tbt_s": targets.tbt_s,
        "ttlt_s": targets.ttlt_s,
        "max_gap": number(targets.max_gap),
    }
    return {name: value for name, value in said.items() if value is not None}


def number(value: float | None) -> float | str | None:
    """Returns a number as JSON has it: it has no infinity."""
    return "inf" if value == math.inf else value


@dataclass(frozen=True, slots=True)
class Header:
    """What a line of the kind "engine" says. Sizes in tokens."""

    profile: LatencyProfile
    service: Service
    version: str
    model: str
    policy: str
    kv_tokens: int
    page_size: int
    context_len: int
    max_batch_size: int
    started_unix_s: float  # of the engine process
    values: Mapping[str, Any]  # all that the line says


def header_of(entry: Entry) -> Header:
    """Returns what a line of the kind "engine" says. Raises BadLog."""
    fields, values = Fields(entry.values, entry.place), entry.values
    try:
        profile = LatencyProfile.from_dict(values["profile"])
        service = Service(
            tuple(_tier(each, entry.place) for each in values["tiers"]),
            fields.text("default_tier", ""),
            {str(name): _weight(weight) for name, weight in values.get("tenants", {}).items()},
            fields.maybe_count("max_requests"),
            fields.maybe_count("max_queued_tokens"),
        )
    except BadLog:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadLog(f"{entry.place}: what it says of the engine: {first_line(error)}") from None
    kv_tokens, page_size = fields.count("kv_tokens"), fields.count("page_size")
    if kv_tokens // page_size > MOST_PAGES:
        raise BadLog(f"{entry.place}: kv_tokens is to be at most {MOST_PAGES} pages")
    return Header(
        profile,
        service,
        fields.text("version", ""),
        fields.text("model", ""),
        fields.text("policy", ""),
        kv_tokens,
        page_size,
        fields.count("context_len"),
        fields.count("max_batch_size"),
        fields.real("started_unix_s", entry.unix_s),
        values,
    )


def _weight(value: Any) -> float:
    weight = float(value)
    if not 0 < weight < math.inf:
        raise ValueError(f"a tenant's weight is to be positive, got {weight}")
    return weight


def _tier(values: Any, place: Place) -> Tier:
    if not isinstance(values, dict):
        raise BadLog(f"{place}: tiers: not a list of objects")
    fields = Fields(values, place)
    return Tier(fields.text("name"), fields.targets(), fields.importance())
