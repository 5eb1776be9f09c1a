"""What a gateway says of a call beside its message: targets, an importance, a tenant.

    x-llm-d-inference-objective     a tier's name, or else that of an application with a preset
    x-llm-d-slo-ttft-ms             TTFT, in milliseconds
    x-llm-d-slo-tpot-ms             TBT, in milliseconds
    x-llm-d-inference-fairness-id   a tenant that the operator has named
    x-smg-priority                  an importance: bulk, default, interactive, system
    tracestate                      all of these and TTLT, in its member `niyama` (see `words_of`)

The first four are those of llm-d's router, with their older spellings (`x-gateway-inference-*` of
the Gateway API Inference Extension, `x-slo-*`); `x-smg-priority` is SMG's, where a proxy passes it
on. `tracestate` (https://www.w3.org/TR/trace-context) is what most gateways forward as it came. Of
several that state the same the first counts, `tracestate` before all others, and the tier of the
port that a call came to (`--tier-port`) after them. Where a gateway can set nothing but the call's
id, the words stand at the beginning of that, and count after `tracestate` (see `prefix_of`).

A gateway knows nothing of this server's tiers, and who set its rules is not who wrote the call. So
what is of no use here is left out and told (`Ignored`), and no call fails by it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeVar

from engine.deciding.request import Importance, Targets
from engine.tiers import NO_GATEWAY, FromGateway, Preset, Tiers
from engine.tiers_file import MOST_SECONDS

T = TypeVar("T")

TRACESTATE = "tracestate"
MEMBER = "niyama"  # of it
REQUEST_ID, TIER_PORT = "request id", "tier port"  # as if they were keys
MOST_CHARS = 1024  # of one value: one that is longer is left out unread

# The metadata keys of each word, the one that counts first.
_KEYS = {
    "tier": ("x-llm-d-inference-objective", "x-gateway-inference-objective"),
    "ttft": ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"),
    "tbt": ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"),
    "ttlt": (),
    "importance": ("x-smg-priority",),
    "tenant": ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"),
}
KEYS = frozenset({TRACESTATE, *(key for keys in _KEYS.values() for key in keys)})
# "default" states nothing: the tier has an importance of its own.
_IMPORTANCES = {each.name.lower(): each for each in Importance} | {
    "bulk": Importance.LOW,
    "default": None,
    "interactive": Importance.HIGH,
    "system": Importance.HIGH,
}
_NUMBERS = ("ttft", "tbt", "ttlt")
# What SMG puts behind the id that a client has sent it: the number of a prompt, and a UUID.
_UNIQUE = re.compile(r"(-p\d{1,6})?-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.ASCII)
_MS = re.compile(r"\d{1,12}(\.\d{1,6})?", re.ASCII)


class Why(Enum):
    """Why something that a gateway says counts for nothing."""

    MALFORMED = "malformed"  # not what such a key holds
    UNKNOWN = "unknown"  # the server has no such tier, tenant or word
    REPEATED = "repeated"  # stated more than once
    INCOMPLETE = "incomplete"  # TTFT or TBT alone, where no interactive tier has the other
    SUPERFLUOUS = "superfluous"  # TTLT beside TTFT or TBT


class Ignored(NamedTuple):
    """A metadata key, and why it, or something in it, counts for nothing."""

    key: str
    why: Why


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a gateway says of a call. `keys` are those of the metadata that count; `tenant` is ""
    where it names none.
    """

    said: FromGateway = NO_GATEWAY
    tenant: str = ""
    keys: tuple[str, ...] = ()
    ignored: tuple[Ignored, ...] = ()


NOTHING = Gateway()


class Heard(NamedTuple):
    """What is believed of calls that come to one service at one port, besides their messages: the
    tier of the port, if it has one, and metadata of these keys, whatever the operator says of
    others.
    """

    port_tier: str = ""
    keys: frozenset[str] = frozenset()


class Stated(NamedTuple):
    """A word's value, and the metadata key that carried it."""

    text: str
    key: str


def read(
    metadata: Iterable[tuple[str, str | bytes]],
    tiers: Tiers,
    *,
    keys: Collection[str] = KEYS,
    request_id: str = "",
    port_tier: str = "",
) -> Gateway:
    """Returns what is said of a call to a server with these tiers, applications and tenants: in
    those of its metadata that are named `keys`, at the beginning of its id, and by the port that it
    came to, if that has a tier.
    """
    found = [(key, str(value)) for key, value in metadata if key in keys and value]
    if not (found or request_id or port_tier):
        return NOTHING
    return _Reader(tiers, port_tier).read(found, prefix_of(request_id))


def prefix_of(request_id: str) -> str:
    """Returns an id without what makes it unique: `gold;ttft=200` of `gold;ttft=200-UUID`, as SMG
    makes it of a client's header (`--request-id-headers`).
    """
    return _UNIQUE.sub("", request_id[:MOST_CHARS])


def words_of(text: str) -> Iterator[tuple[str, str]]:
    """Yields the words of one text and their values, such as `tier:gold;ttft:200;importance:low`.

    The words are tier, ttft, tbt, ttlt (milliseconds), importance and tenant; `=` may stand in the
    place of `:`, and a tier alone where it is the first: `gold;ttft=200`. A part that is neither
    has the value "".
    """
    for index, part in enumerate(text.split(";")):
        name, separator, value = part.strip().replace("=", ":", 1).partition(":")
        yield (name, value) if separator or index else ("tier", name)


def _member(tracestate: str) -> str:
    """Returns the value of our own member of a `tracestate`, "" where it has none."""
    for member in tracestate.split(","):
        key, _, value = member.strip().partition("=")
        if key == MEMBER:
            return value
    return ""


class _Reader:
    """Reads the metadata of one call."""

    def __init__(self, tiers: Tiers, port_tier: str) -> None:
        self._tiers = tiers
        self._port_tier = port_tier
        self._stated: dict[str, Stated] = {}
        self._counting: dict[str, str] = {}  # the words that count, and what carried them
        self._ignored: dict[Ignored, None] = {}  # in order, and each once

    def read(self, found: list[tuple[str, str]], prefix: str) -> Gateway:
        """Returns what these, of KEYS, and the beginning of the call's id say."""
        self._collect(found, prefix)
        objective = self._objective()
        targets, importance, tenant = self._targets(objective), self._importance(), self._tenant()
        carriers = [self._counting[word] for word in ("tier", *_NUMBERS) if word in self._counting]
        keys = tuple(sorted(set(self._counting.values())))
        said = FromGateway(targets, objective, importance, ", ".join(dict.fromkeys(carriers)))
        return Gateway(said, tenant, keys, tuple(self._ignored))

    def _ignore(self, key: str, why: Why) -> None:
        self._ignored[Ignored(key, why)] = None

    def _collect(self, found: list[tuple[str, str]], prefix: str) -> None:
        """Finds what states each word first."""
        values: dict[str, str] = {}
        repeated = {key for key, number in Counter(key for key, _ in found).items() if number > 1}
        for key in sorted(repeated):
            self._ignore(key, Why.REPEATED)
        for key, value in found:
            if len(value) > MOST_CHARS:
                self._ignore(key, Why.MALFORMED)
            elif key not in repeated:
                values[key] = value.strip()
        self._state(_member(values.get(TRACESTATE, "")), TRACESTATE)
        if self._speaks(prefix):
            self._state(prefix, REQUEST_ID)
        for word, keys in _KEYS.items():
            for key in keys:
                if values.get(key):
                    self._stated.setdefault(word, Stated(values[key], key))

    def _speaks(self, prefix: str) -> bool:
        """Returns whether the beginning of an id states a word, or begins with a tier that there
        is; else it is just somebody's id.
        """
        return any(
            word in _KEYS
            and value != ""
            and (index > 0 or word != "tier" or self._tiers.objective(value) is not None)
            for index, (word, value) in enumerate(words_of(prefix))
        )

    def _state(self, text: str, key: str) -> None:
        """Notes the words of a text, as far as they are not stated yet."""
        for word, value in words_of(text) if text else ():
            if word not in _KEYS:
                self._ignore(key, Why.UNKNOWN)
            elif not value:
                self._ignore(key, Why.MALFORMED)
            else:
                self._stated.setdefault(word, Stated(value, key))

    def _count(self, word: str, value: T | None, why: Why) -> T | None:
        """Notes that a stated word counts, or where its value is None why it does not."""
        stated = self._stated[word]
        if value is None:
            self._ignore(stated.key, why)
        else:
            self._counting[word] = stated.key
        return value

    def _objective(self) -> Preset | None:
        """Returns what is stated, or else the tier of the port."""
        found = None
        if (stated := self._stated.get("tier")) is not None:
            found = self._count("tier", self._tiers.objective(stated.text), Why.UNKNOWN)
        if found is None and self._port_tier in self._tiers.tiers:
            self._counting["tier"] = TIER_PORT
            return Preset(self._tiers.tiers[self._port_tier])
        return found

    def _importance(self) -> Importance | None:
        if (stated := self._stated.get("importance")) is None or stated.text.lower() == "default":
            return None
        return self._count("importance", _IMPORTANCES.get(stated.text.lower()), Why.UNKNOWN)

    def _tenant(self) -> str:
        """Returns the tenant, where it is one of those that the operator has named: all others are
        served as one, and a gateway may make up a new flow for every session.
        """
        if (stated := self._stated.get("tenant")) is None:
            return ""
        name = stated.text if stated.text in self._tiers.tenants else None
        return self._count("tenant", name, Why.UNKNOWN) or ""

    def _targets(self, objective: Preset | None) -> Targets | None:
        """Returns the targets that are stated in numbers. Of TTFT and TBT the one that is left out
        is the objective's, or else the default tier's.
        """
        stated = {word: value for word in _NUMBERS if (value := self._seconds(word))}
        tier = self._tiers.tiers[self._tiers.default] if objective is None else objective.tier
        usual = tier.targets
        if ("ttft" in stated) != ("tbt" in stated):
            if usual.ttft_s is not None and usual.tbt_s is not None:
                stated = {"ttft": usual.ttft_s, "tbt": usual.tbt_s} | stated
            else:
                self._discount(stated, "ttft" if "ttft" in stated else "tbt", Why.INCOMPLETE)
        if "ttft" not in stated:
            return Targets(ttlt_s=stated["ttlt"]) if stated else None
        if "ttlt" in stated:
            self._discount(stated, "ttlt", Why.SUPERFLUOUS)
        max_gap = None if objective is None else usual.max_gap
        return Targets(stated["ttft"], stated["tbt"], max_gap=max_gap)

    def _discount(self, stated: dict[str, float], word: str, why: Why) -> None:
        del stated[word]
        self._ignore(self._counting.pop(word), why)

    def _seconds(self, word: str) -> float | None:
        if (stated := self._stated.get(word)) is None:
            return None
        ms = float(stated.text) if _MS.fullmatch(stated.text) else 0.0
        is_time = 0 < ms / 1e3 <= MOST_SECONDS
        return self._count(word, ms / 1e3 if is_time else None, Why.MALFORMED)
