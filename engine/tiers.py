"""Tiers, application presets, and which targets a request is served with. Seconds throughout.

Targets come, in this order, from the request itself, its named tier, its application's preset, the
call's own deadline (as TTLT), the default tier. A TOML file sets tiers and presets:

    default_tier = "chat"

    [tiers.chat]
    ttft_s = 0.5
    tbt_s = 0.05
    importance = "high"

    [tiers.report]
    ttlt_s = 30

    [applications.nightly]
    tier = "report"         # or targets of its own, as a tier has
    importance = "low"

Tiers of the file replace the built-in ones altogether.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from engine.deciding.request import Importance, Targets


class TargetSource(Enum):
    REQUEST = "request"
    TIER = "tier"
    APPLICATION = "application"
    RPC_DEADLINE = "rpc_deadline"
    DEFAULT = "default"


class UnknownTier(ValueError):
    """The request names a tier that the server does not have."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Named targets. `name` is empty for an application's own."""

    name: str
    targets: Targets
    importance: Importance = Importance.NORMAL


@dataclass(frozen=True, slots=True)
class Resolved:
    """The targets that a request is served with, and where they came from."""

    targets: Targets
    importance: Importance
    source: TargetSource
    tier: str = ""


BUILT_IN = (
    Tier("interactive", Targets(ttft_s=1.0, tbt_s=0.05)),
    Tier("standard", Targets(ttlt_s=10.0)),
    Tier("batch", Targets(ttlt_s=60.0)),
)


@dataclass(frozen=True, slots=True)
class Tiers:
    """What the server knows. `default` names one of `tiers`."""

    tiers: Mapping[str, Tier] = field(default_factory=lambda: {t.name: t for t in BUILT_IN})
    default: str = "interactive"
    applications: Mapping[str, Tier] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.default not in list(self.tiers):
            raise ValueError(f"default_tier {self.default!r} is not one of the tiers")

    def resolve(
        self,
        explicit: Targets | None = None,
        tier: str = "",
        application: str = "",
        timeout_s: float | None = None,
        importance: Importance | None = None,
    ) -> Resolved:
        """`timeout_s` is what the call's own deadline leaves. Raises UnknownTier."""
        if explicit is not None:
            chosen, source = Tier("", explicit), TargetSource.REQUEST
        elif tier:
            if tier not in self.tiers:
                known = ", ".join(sorted(self.tiers))
                raise UnknownTier(f"unknown tier {tier!r}; the server has {known}")
            chosen, source = self.tiers[tier], TargetSource.TIER
        elif application in self.applications:
            chosen, source = self.applications[application], TargetSource.APPLICATION
        elif timeout_s is not None and timeout_s > 0:
            chosen, source = Tier("", Targets(ttlt_s=timeout_s)), TargetSource.RPC_DEADLINE
        else:
            chosen, source = self.tiers[self.default], TargetSource.DEFAULT
        wanted = chosen.importance if importance is None else importance
        return Resolved(chosen.targets, wanted, source, chosen.name)


def load(path: Path, built_in: Iterable[Tier] = BUILT_IN) -> Tiers:
    """Reads the TOML file. Raises ValueError, naming file and key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        _refuse_unknown(document, {"default_tier", "tiers", "applications"}, "")
        tables = _tables(document, "tiers")
        tiers = {name: _tier(name, table, f"tiers.{name}") for name, table in tables.items()}
        tiers = tiers or {t.name: t for t in built_in}
        default = document.get("default_tier", next(iter(tiers)))
        applications = {
            name: _application(table, f"applications.{name}", tiers)
            for name, table in _tables(document, "applications").items()
        }
        return Tiers(tiers, default, applications)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tables(document: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    tables = document.get(key, {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise ValueError(f"{key} must be tables: [{key}.NAME]")
    return tables


def _refuse_unknown(table: dict[str, Any], known: set[str], path: str) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{path}{key} is unknown; known are {', '.join(sorted(known))}")


def _tier(name: str, table: dict[str, Any], path: str) -> Tier:
    _refuse_unknown(table, {"ttft_s", "tbt_s", "ttlt_s", "importance"}, f"{path}.")
    durations = {key: value for key, value in table.items() if key != "importance"}
    for key, value in durations.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{path}.{key} must be a number of seconds, got {value!r}")
    try:
        return Tier(name, Targets(**durations), _importance(table, path) or Importance.NORMAL)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(path) else f"{path}.{error}") from None


def _importance(table: dict[str, Any], path: str) -> Importance | None:
    value = table.get("importance")
    names = {i.name.lower(): i for i in Importance}
    if value is not None and value not in names:
        raise ValueError(f"{path}.importance must be one of {', '.join(names)}, got {value!r}")
    return None if value is None else names[value]


def _application(table: dict[str, Any], path: str, tiers: Mapping[str, Tier]) -> Tier:
    """A preset: a tier by name, with an importance of its own perhaps, or targets of its own."""
    if "tier" not in table:
        return _tier("", table, path)
    _refuse_unknown(table, {"tier", "importance"}, f"{path}.")
    if table["tier"] not in tiers:
        raise ValueError(f"{path}.tier {table['tier']!r} is not one of the tiers")
    tier = tiers[table["tier"]]
    importance = _importance(table, path)
    return Tier(tier.name, tier.targets, tier.importance if importance is None else importance)
