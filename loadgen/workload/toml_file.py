"""A workload that is written down in a TOML file, for what flags make clumsy. It looks like this,
and all of its keys are optional:

rps = "2..5/15m"             # or a number; see loadgen.workload.arrivals.parse_rate
duration = "4h"
seed = 1
arrivals = "gamma"           # poisson, gamma, constant
cv = 3
replay = "trace.csv"         # arrival times (and lengths, unless others are given); relative
                             # paths start from the file's folder
replay_lengths = true        # its lengths, even where others are given
stated_output = 2048         # what simulated requests state as max_tokens; "exact": their length

[tenants]                    # shares that add up to 1
acme = 0.7
zen = 0.3

[applications]
chat = 1.0

[all]                        # what holds for every tier that says nothing else
prompt_tokens = "80/200"     # p50/p90, or a number
output_tokens = 30
timeout = "30s"
cancel_rate = 0.02
importance = {low = 0.2, normal = 0.8}
shared_prefix = {length = 256, share = 0.5, count = 4}
refuse_if_late = true        # they ask to be refused rather than late

[tiers.interactive]          # the keys of [all], and:
share = 0.6

[tiers.mine]
ttft_s = 1.0                 # explicit targets, sent instead of a tier's name
tbt_s = 0.05                 # (or ttlt_s)
trace = "lengths.csv"        # lengths drawn from a trace's rows
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from loadgen.workload.arrivals import Process, Rate, parse_rate
from loadgen.workload.lengths import Distribution, Stated, parse_distribution, parse_stated
from loadgen.workload.plan import SharedPrefix
from loadgen.workload.spec import Spec, TierSpec, by_importance
from loadgen.workload.units import parse_duration
from niyama.client.values import Importance, Targets

V = TypeVar("V")
Table = Mapping[str, Any]


class BadWorkloadFile(ValueError):
    """The file says no workload; the message names file and key, in one line."""


def load(path: Path) -> Spec:
    """Reads a workload file. Raises BadWorkloadFile, or OSError."""
    try:
        return _to_spec(tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
    except (ValueError, TypeError) as error:
        raise BadWorkloadFile(f"{path}: {error}") from None


def _to_spec(table: Table, folder: Path) -> Spec:
    root = _Reader(table, "")
    tiers = root.take("tiers", _table) or {}
    readers = {name: _Reader(_table(value), f"tiers.{name}.") for name, value in tiers.items()}
    shares = {name: reader.take("share", _number) for name, reader in readers.items()}
    mix = {name: share for name, share in shares.items() if share is not None}
    spec = Spec(
        rate=root.take("rps", _rate),
        duration_s=root.take("duration", _duration),
        seed=root.take("seed", _integer),
        process=root.take("arrivals", Process),
        cv=root.take("cv", _number),
        replay=root.take("replay", folder.joinpath),
        replay_lengths=root.take("replay_lengths", _boolean),
        mix=mix or None,
        tenants=root.take("tenants", _shares),
        applications=root.take("applications", _shares),
        stated_output=root.take("stated_output", _stated),
        everyone=_tier_spec(_Reader(root.take("all", _table) or {}, "all."), folder),
        tiers={name: _tier_spec(reader, folder) for name, reader in readers.items()},
    )
    root.check_empty()
    return spec


def _tier_spec(reader: _Reader, folder: Path) -> TierSpec:
    named = {name: reader.take(f"{name}_s", _number) for name in ("ttft", "tbt", "ttlt")}
    explicit = any(value is not None for value in named.values())
    if explicit and (named["ttlt"] is None) == (named["ttft"] is None or named["tbt"] is None):
        raise ValueError(f"{reader.path}: targets are ttft_s with tbt_s, or ttlt_s alone")
    spec = TierSpec(
        prompt=reader.take("prompt_tokens", _length),
        output=reader.take("output_tokens", _length),
        trace=reader.take("trace", folder.joinpath),
        targets=Targets(**named) if explicit else None,
        importance=reader.take("importance", _importance),
        timeout_s=reader.take("timeout", _duration),
        cancel_rate=reader.take("cancel_rate", _number),
        prefix=reader.take("shared_prefix", _prefix),
        refuse_if_late=reader.take("refuse_if_late", _boolean),
    )
    reader.check_empty()
    return spec


class _Reader:
    """Takes the keys out of a table one by one, so that what is left at the end was misspelt."""

    def __init__(self, table: Table, path: str) -> None:
        self._left = dict(table)
        self.path = path

    def take(self, key: str, convert: Callable[[Any], V]) -> V | None:
        """Takes a key out and converts its value; None where there is no such key.

        Raises ValueError, which names the key.
        """
        if key not in self._left:
            return None
        try:
            return convert(self._left.pop(key))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}{key}: {error}") from None

    def check_empty(self) -> None:
        """Raises ValueError where a key is left, which nobody knows."""
        if self._left:
            raise ValueError(f"unknown key {self.path}{', '.join(sorted(self._left))}")


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"must be a table, not {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {value!r}")
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {value!r}")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def _rate(value: Any) -> Rate:
    return parse_rate(str(value))


def _duration(value: Any) -> float:
    return parse_duration(str(value))


def _length(value: Any) -> Distribution:
    return parse_distribution(str(value))


def _stated(value: Any) -> Stated:
    return parse_stated(str(value))


def _shares(value: Any) -> dict[str, float]:
    return {name: _number(share) for name, share in _table(value).items()}


def _importance(value: Any) -> dict[Importance, float]:
    return by_importance(_shares(value))


def _prefix(value: Any) -> SharedPrefix:
    table = _table(value)
    for key, check in (("length", _integer), ("share", _number), ("count", _integer)):
        if key in table:
            check(table[key])
    return SharedPrefix(**table)
