"""What the operator's TOML file says of tiers, application presets and tenants. Seconds throughout.

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
    tiers = ["chat"]        # what it may have (engine/rights.py); any where left out
    explicit_targets = true     # though it is restricted to tiers
    importance = "normal"   # the highest that it may claim
    max_requests = 100      # of its own that wait or run
    max_queued_tokens = 500_000
    certificates = ["spiffe://example.org/acme/*"]  # of clients that are this tenant
    speaks_for_others = true    # a gateway: its calls may name any tenant
    admin = true            # may explain every tenant's requests

Tiers of the file replace the built-in ones altogether. An application (or `default_tier`) may also
name one of `presets.toml`, which is then one of the tiers. A tenant that is not named there shares
with all others that are not: a name that anybody may invent buys nothing. What they may do stands
in `[tenants.other]`. The file's other tables are sections of the server's flags
(`engine.config.SECTIONS`, read by `server/settings.py`).
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from engine import toml_file
from engine.config import SECTIONS
from engine.deciding.request import Importance, Share, Targets
from engine.rights import Rights
from engine.tiers import BUILT_IN, EXPLICIT, OTHER_TENANTS, UNREAD, Preset, Tier, Tiers
from engine.toml_file import Document, Keys, Misstated, refuse_unknown

_TIER_KEYS = {"ttft_s", "tbt_s", "ttlt_s", "max_gap", "importance"}
KEYS = frozenset({"default_tier", "deadline_is_target", "tiers", "applications", "tenants"})
MOST_NAME_BYTES = 128  # of a name that a call may state: tier, application, tenant, request
MOST_SECONDS = 1e9  # some thirty years; a duration on the wire can hold more
WEIGHTS = (1e-6, 1e6)
RESERVED = {"tiers": (EXPLICIT, UNREAD)}  # by metrics
MOST_LIMIT = 10**12
_RIGHTS = frozenset(each.name for each in fields(Rights))
_OF_ONE = frozenset({"weight", "certificates", "speaks_for_others", "admin"})  # tenant alone


def load(path: Path) -> Tiers:
    """Returns what the file says, beside the built-in tiers. Raises BadFile."""
    return parse(toml_file.read(path), path)


def parse(text: str, path: Path, built_in: Iterable[Tier] = BUILT_IN) -> Tiers:
    """Returns what the text of a file says. `built_in` are the tiers of one that has none, the
    default one first. Raises BadFile.
    """
    return of(toml_file.parse(text, path), built_in)


def of(document: Document, built_in: Iterable[Tier] = BUILT_IN) -> Tiers:
    """Returns what a file says, as `parse` does. Raises BadFile."""
    try:
        return _read(document.tables, built_in)
    except Misstated as error:
        raise document.blame(error) from None


def _read(document: dict[str, Any], built_in: Iterable[Tier]) -> Tiers:
    """Returns what the document says. Raises Misstated."""
    refuse_unknown(document, KEYS | SECTIONS.keys())
    tables = _tables(document, "tiers")
    tiers = {name: _tier(name, table, ("tiers", name)) for name, table in tables.items()}
    tiers = tiers or {t.name: t for t in built_in}
    tiers |= _named_presets(document, tiers)
    default = document.get("default_tier", next(iter(tiers)))
    if default not in list(tiers):
        raise Misstated(("default_tier",), f"{reprlib.repr(default)} is not one of the tiers")
    applications = {
        name: _preset(table, ("applications", name), tiers, tiers[default])
        for name, table in _tables(document, "applications").items()
    }
    tenants, rights = _tenants(_tables(document, "tenants"), tiers)
    is_target = _boolean(document, (), "deadline_is_target")
    return Tiers(tiers, default, applications, is_target, tenants, rights)


@cache
def presets() -> Mapping[str, Tier]:
    """Returns the tiers for the usual kinds of work, by name (`presets.toml`)."""
    path = Path(__file__).with_name("presets.toml")
    tables = _tables(toml_file.parse(toml_file.read(path), path).tables, "tiers")
    return {name: _tier(name, table, ("tiers", name)) for name, table in tables.items()}


def _named_presets(document: dict[str, Any], tiers: Mapping[str, Tier]) -> dict[str, Tier]:
    """Returns the presets that the document names where it could name one of its tiers."""
    applications = _tables(document, "applications").values()
    named = [document.get("default_tier"), *(each.get("tier") for each in applications)]
    texts = {name for name in named if isinstance(name, str)} - tiers.keys()
    return {name: tier for name, tier in presets().items() if name in texts}


def changes(before: Tiers, after: Tiers) -> list[str]:
    """Returns the names of what differs, as the file has them: `tiers.chat`, `default_tier`."""
    found = []
    for each in fields(Tiers):
        old, new = getattr(before, each.name), getattr(after, each.name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names = sorted({*old, *new})
            table = "tenants" if each.name == "rights" else each.name
            different = [name or OTHER_TENANTS for name in names if old.get(name) != new.get(name)]
            found += [f"{table}.{name}" for name in different if f"{table}.{name}" not in found]
        elif old != new:
            found.append("default_tier" if each.name == "default" else each.name)
    return found


def _tables(document: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    tables = document.get(key, {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise Misstated((key,), f"must be tables: [{key}.NAME]")
    for name in tables:
        if not (0 < len(name) <= MOST_NAME_BYTES and name.isascii() and name.isprintable()):
            raise Misstated(
                (key, name),
                ": no call can name it: a name is printable ASCII, not empty,"
                f" of at most {MOST_NAME_BYTES} bytes",
            )
        if name in RESERVED.get(key, ()):
            raise Misstated((key, name), "is a name that metrics have for something else")
    return tables


def number(value: object, keys: Keys, what: str = "") -> float:
    """Returns the value as a float. Raises Misstated for what is no number, and for one of TOML's
    whole numbers, which have no bound, that no float can hold.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Misstated(keys, f"must be a number{what}, got {reprlib.repr(value)}")
    try:
        return float(value)
    except OverflowError:
        raise Misstated(keys, "is too large a number") from None


def _tier(name: str, table: dict[str, Any], keys: Keys) -> Tier:
    refuse_unknown(table, _TIER_KEYS, keys)
    numbers = {
        key: number(value, (*keys, key), " of TBTs" if key == "max_gap" else " of seconds")
        for key, value in table.items()
        if key != "importance"
    }
    for key, value in numbers.items():
        if key != "max_gap" and value > MOST_SECONDS:
            raise Misstated((*keys, key), f"must be at most {MOST_SECONDS:g}, got {value:g}")
    importance = _importance(table, keys, Importance.NORMAL)
    try:
        return Tier(name, Targets(**numbers), importance)
    except ValueError as error:
        field, _, what = str(error).partition(" ")
        raise Misstated((*keys, field), what) from None


def _importance(table: dict[str, Any], keys: Keys, default: Importance) -> Importance:
    """Returns the importance that a table states, else the default."""
    names = {i.name.lower(): i for i in Importance}
    value = table.get("importance")
    if value is None:
        return default
    if not isinstance(value, str) or value not in names:
        raise Misstated(
            (*keys, "importance"),
            f"must be one of {', '.join(names)}, got {reprlib.repr(value)}",
        )
    return names[value]


def _boolean(table: dict[str, Any], keys: Keys, key: str, default: bool = False) -> bool:
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise Misstated((*keys, key), f"must be true or false, got {reprlib.repr(value)}")
    return value


def _tenants(
    tables: dict[str, dict[str, Any]], tiers: Mapping[str, Tier]
) -> tuple[dict[str, Share], dict[str, Rights]]:
    """Returns the tenants' shares, and by their names what each may do; "" is of all others."""
    shares, rights = {}, {}
    whose: dict[str, str] = {}  # a certificate is
    for name, table in tables.items():
        keys = ("tenants", name)
        refuse_unknown(table, {"weight"} | _RIGHTS, keys)
        if name == OTHER_TENANTS:
            for key in sorted(_OF_ONE & table.keys()):
                raise Misstated((*keys, key), "is of one tenant, and this is all that have no name")
            rights[""] = _rights(table, keys, tiers)
        else:
            shares[name] = _share(name, table, keys)
            rights[name] = _rights(table, keys, tiers)
            for each in rights[name].certificates:
                if whose.setdefault(each, name) != name:
                    what = f"{reprlib.repr(each)} is tenant {whose[each]}'s"
                    raise Misstated((*keys, "certificates"), what)
    return shares, rights


def _share(name: str, table: dict[str, Any], keys: Keys) -> Share:
    weight = number(table.get("weight", 1), (*keys, "weight"))
    least, most = WEIGHTS
    if not least <= weight <= most:  # also false for nan
        raise Misstated(
            (*keys, "weight"), f"must be positive, from {least:g} to {most:g}, got {weight:g}"
        )
    return Share(name, weight)


def _rights(table: dict[str, Any], keys: Keys, tiers: Mapping[str, Tier]) -> Rights:
    own = _texts(table, keys, "tiers")
    for name in own:
        if name not in list(tiers):
            raise Misstated((*keys, "tiers"), f"{reprlib.repr(name)} is not one of the tiers")
    if "tiers" in table and not own:
        raise Misstated((*keys, "tiers"), "must name one at least; any where it is left out")
    return Rights(
        tiers=own,
        importance=_importance(table, keys, max(Importance)),
        explicit_targets=_boolean(table, keys, "explicit_targets", not own),
        max_requests=_limit(table, keys, "max_requests"),
        max_queued_tokens=_limit(table, keys, "max_queued_tokens"),
        certificates=_texts(table, keys, "certificates"),
        speaks_for_others=_boolean(table, keys, "speaks_for_others"),
        admin=_boolean(table, keys, "admin"),
    )


def _texts(table: dict[str, Any], keys: Keys, key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise Misstated((*keys, key), f"must be a list of texts, got {reprlib.repr(value)}")
    return tuple(dict.fromkeys(value))


def _limit(table: dict[str, Any], keys: Keys, key: str) -> int:
    """Returns a limit that a table states; 0 where it states none."""
    value = table.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_LIMIT:
        what = f"must be a whole number from 1 to {MOST_LIMIT}, got {reprlib.repr(value)}"
        raise Misstated((*keys, key), what)
    return value


def _preset(table: dict[str, Any], keys: Keys, tiers: Mapping[str, Tier], default: Tier) -> Preset:
    """Returns what a table says of an application: a tier by its name, perhaps with another
    importance, or targets of its own. Where it says only that the deadline is the target, calls
    without one get the default tier.
    """
    is_target = _boolean(table, keys, "deadline_is_target")
    rest = {key: value for key, value in table.items() if key != "deadline_is_target"}
    if "tier" not in rest and not (is_target and not rest.keys() - {"importance"}):
        return Preset(_tier("", rest, keys), is_target)
    refuse_unknown(rest, {"tier", "importance"}, keys)
    name = rest.get("tier", default.name)
    if name not in list(tiers):
        raise Misstated((*keys, "tier"), f"{reprlib.repr(name)} is not one of the tiers")
    tier = tiers[name]
    importance = _importance(rest, keys, tier.importance)
    return Preset(Tier(tier.name, tier.targets, importance), is_target)
