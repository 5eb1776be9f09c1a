"""The operator's TOML file of tiers, application presets and tenants. Seconds throughout.

    default_tier = "chat"
    deadline_is_target = false  # true: of calls that name no targets, tier or preset

    [tiers.chat]
    ttft_s = 0.5
    tbt_s = 0.05
    max_gap = 1.5           # longest time between two tokens, in TBTs; left out: `--max-gap`
    importance = "high"

    [tiers.report]
    ttlt_s = 30

    [applications.nightly]
    tier = "report"         # or targets of its own, as a tier has
    importance = "low"

    [applications.reports]
    deadline_is_target = true   # a call without a deadline: the tier or the targets stated here

    [tenants.acme]
    weight = 2              # of its share of queue and engine; 1 where left out

Tiers of the file replace the built-in ones altogether. A tenant that is not named there shares with
all others that are not: a name that anybody may invent buys nothing.
"""

from __future__ import annotations

import reprlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.deciding.request import Importance, Share, Targets
from engine.tiers import BUILT_IN, Preset, Tier, Tiers

_TIER_KEYS = {"ttft_s", "tbt_s", "ttlt_s", "max_gap", "importance"}
_KEYS = {"default_tier", "deadline_is_target", "tiers", "applications", "tenants"}
MOST_BYTES = 1 << 20  # of a file: thousands of tenants
MOST_NAME_BYTES = 128  # of a name that a call may state: tier, application, tenant, request
MOST_SECONDS = 1e9  # some thirty years; a duration on the wire can hold more
WEIGHTS = (1e-6, 1e6)


def load(path: Path) -> Tiers:
    """Returns what the file says, beside the built-in tiers. Raises ValueError, naming file and
    key.
    """
    return parse(read(path), path)


def read(path: Path) -> str:
    """Returns the file's text. Raises ValueError, naming the file."""
    try:
        with path.open("rb") as file:
            found = file.read(MOST_BYTES + 1)
        if len(found) > MOST_BYTES:
            raise ValueError(f"has more than {MOST_BYTES} bytes")
        return found.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse(text: str, path: Path, built_in: Iterable[Tier] = BUILT_IN) -> Tiers:
    """Returns what the text of a file says. `built_in` are the tiers of one that has none, the
    default one first. Raises ValueError, naming file and key.
    """
    try:
        document = tomllib.loads(text)
        _refuse_unknown(document, _KEYS, "")
        tables = _tables(document, "tiers")
        tiers = {name: _tier(name, table, f"tiers.{name}") for name, table in tables.items()}
        tiers = tiers or {t.name: t for t in built_in}
        default = document.get("default_tier", next(iter(tiers)))
        if default not in list(tiers):
            raise ValueError(f"default_tier {reprlib.repr(default)} is not one of the tiers")
        applications = {
            name: _preset(table, f"applications.{name}", tiers, tiers[default])
            for name, table in _tables(document, "applications").items()
        }
        tenants = {
            name: _share(name, table, f"tenants.{name}")
            for name, table in _tables(document, "tenants").items()
        }
        return Tiers(tiers, default, applications, _deadline_is_target(document, ""), tenants)
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def changes(before: Tiers, after: Tiers) -> list[str]:
    """Returns the names of what differs, as the file has them: `tiers.chat`, `default_tier`."""
    found = []
    for each in fields(Tiers):
        old, new = getattr(before, each.name), getattr(after, each.name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names = sorted({*old, *new})
            found += [f"{each.name}.{name}" for name in names if old.get(name) != new.get(name)]
        elif old != new:
            found.append("default_tier" if each.name == "default" else each.name)
    return found


def _tables(document: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    tables = document.get(key, {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise ValueError(f"{key} must be tables: [{key}.NAME]")
    for name in tables:
        if not (0 < len(name) <= MOST_NAME_BYTES and name.isascii() and name.isprintable()):
            raise ValueError(
                f"{key}.{_named(name)}: no call can name it: a name is printable ASCII, not empty,"
                f" of at most {MOST_NAME_BYTES} bytes"
            )
    return tables


def _refuse_unknown(table: dict[str, Any], known: set[str], path: str) -> None:
    for key in table:
        if key not in known:
            raise ValueError(
                f"{path}{_named(key)} is unknown; known are {', '.join(sorted(known))}"
            )


def _named(key: str) -> str:
    """Returns the key as a message can show it."""
    return key if len(key) <= MOST_NAME_BYTES and key.isprintable() else reprlib.repr(key)


def _number(value: object, what: str, path: str) -> float:
    """Returns the value as a float. Raises ValueError for what is no number, and for one of TOML's
    whole numbers, which have no bound, that no float can hold.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{path} must be a number{what}, got {reprlib.repr(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{path} is too large a number") from None


def _tier(name: str, table: dict[str, Any], path: str) -> Tier:
    _refuse_unknown(table, _TIER_KEYS, f"{path}.")
    numbers = {
        key: _number(value, " of TBTs" if key == "max_gap" else " of seconds", f"{path}.{key}")
        for key, value in table.items()
        if key != "importance"
    }
    for key, value in numbers.items():
        if key != "max_gap" and value > MOST_SECONDS:
            raise ValueError(f"{path}.{key} must be at most {MOST_SECONDS:g}, got {value:g}")
    importance = _importance(table, path, Importance.NORMAL)
    try:
        return Tier(name, Targets(**numbers), importance)
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from None


def _importance(table: dict[str, Any], path: str, default: Importance) -> Importance:
    """Returns the importance that a table states, else the default."""
    names = {i.name.lower(): i for i in Importance}
    value = table.get("importance")
    if value is None:
        return default
    if not isinstance(value, str) or value not in names:
        raise ValueError(
            f"{path}.importance must be one of {', '.join(names)}, got {reprlib.repr(value)}"
        )
    return names[value]


def _deadline_is_target(table: dict[str, Any], path: str) -> bool:
    value = table.get("deadline_is_target", False)
    if not isinstance(value, bool):
        raise ValueError(
            f"{path}deadline_is_target must be true or false, got {reprlib.repr(value)}"
        )
    return value


def _share(name: str, table: dict[str, Any], path: str) -> Share:
    _refuse_unknown(table, {"weight"}, f"{path}.")
    weight = _number(table.get("weight", 1), "", f"{path}.weight")
    least, most = WEIGHTS
    if not least <= weight <= most:  # also false for nan
        raise ValueError(
            f"{path}.weight must be positive, from {least:g} to {most:g}, got {weight:g}"
        )
    return Share(name, weight)


def _preset(table: dict[str, Any], path: str, tiers: Mapping[str, Tier], default: Tier) -> Preset:
    """Returns what a table says of an application: a tier by its name, perhaps with another
    importance, or targets of its own. Where it says only that the deadline is the target, calls
    without one get the default tier.
    """
    is_target = _deadline_is_target(table, f"{path}.")
    rest = {key: value for key, value in table.items() if key != "deadline_is_target"}
    if "tier" not in rest and not (is_target and not rest.keys() - {"importance"}):
        return Preset(_tier("", rest, path), is_target)
    _refuse_unknown(rest, {"tier", "importance"}, f"{path}.")
    name = rest.get("tier", default.name)
    if name not in list(tiers):
        raise ValueError(f"{path}.tier {reprlib.repr(name)} is not one of the tiers")
    tier = tiers[name]
    importance = _importance(rest, path, tier.importance)
    return Preset(Tier(tier.name, tier.targets, importance), is_target)
