"""What stands in a decision log, line by line.

`engine.driving.decision_file` writes it: one JSON object per line, each with `kind`, `at` (seconds
on the engine's clock), `unix_s` (the same instant in Unix time) and, but for the kind "engine",
`request_id`, `tenant` and `detail`. By kind there stand besides:

* `engine`, first in each file, and again where an engine begins or the service is configured
  anew: what they are, its latency profile included, so that a log can be simulated
  (`engine.decision_header`);
* `arrived`: `tier` ("" where the targets are the caller's own), `application`, `importance`,
  `share` (the tenant whose part of the engine it takes, "" for everybody's), `ttft_s`, `tbt_s`,
  `ttlt_s`, `max_gap`, `target_source`, `target_reason` (for people, where nobody stated targets),
  `prompt_tokens`, `max_tokens`, `timeout_s` (from the arrival to the call's own deadline),
  `trace_id` (W3C's, of the trace that its call is part of), `attempt` (2: begun again, as its
  engine was lost), `refuse_if_late` (true: its caller wanted it refused rather than late). A field
  that is left out has no value;
* `chunk`: see `Computed`;
* `admitted`, `first_token`, `preempted`, `relegated`, `restored`, `held`, `restarted`:
  what was decided of it, with the values and the `predicted_at` of `engine.deciding.record`; where
  work was ahead `ahead` says whose: the largest parts as [tier, share, seconds, seconds beyond];
* `speed`, of no request, every second of computing: `iterations` that ended between `since` (on
  the engine's clock) and `at` took `actual_s`, with what the host did between them, and take
  `profile_s` by the latency profile;
* `finished`, the last of each request: `result` (a `Fate`), `reason`, `output_tokens`,
  `cached_tokens`, `ttft_s`, `worst_tbt_s`, `ttlt_s`, `lived_s`, `relegated`, `preemptions`,
  `queue_s`, `holds`, `tbt_needed_s` and the parts of `engine.deciding.budget.Budget`. Of one
  that ended before the engine saw it there are only `result` and `reason`;
* `refused`, instead of `finished`, of one that the engine never saw since there was no place for
  it: `result` and `reason`. Of a flood it says `count`, and has the fields of `arrived` with the
  means of `prompt_tokens` and `max_tokens`; they came between `since` (on the engine's clock) and
  `at`. So is told, as a flood of one, who never came to the engine with the id of a request that is
  there, and maybe as `finished`: it has no other line. The tier of a call that was refused before
  it was read is "unknown".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from engine.deciding.budget import Budget
from engine.deciding.outcome import Fate
from engine.deciding.request import Importance, Targets
from engine.deciding.timeline import End

_LARGEST = 1 << 53  # of a count: exact as a float
_LAST_UNIX_S = 250_000_000_000  # in the year 9892: a later one has no date


class BadLog(ValueError):
    """The log cannot be read; the message names file and line, in one line."""


class Place(NamedTuple):
    """Where a line stands: the file, and the line's number from 1."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. Instants in seconds: `at` on the engine's clock, `unix_s` in Unix time."""

    kind: str
    request_id: str
    tenant: str
    at: float
    unix_s: float
    detail: str
    values: Mapping[str, Any]  # all that the line says, by name
    place: Place

    @property
    def key(self) -> tuple[str, str]:
        """Returns what tells its request from those of others."""
        return self.tenant, self.request_id


class Fields:
    """The fields of a line, each of the type that it is to have. Raises BadLog, naming it."""

    def __init__(self, values: Mapping[str, Any], place: Place) -> None:
        self._values = values
        self._place = place

    def _refuse(self, name: str, what: str) -> NoReturn:
        got = repr(self._values.get(name))[:100]
        raise BadLog(f"{self._place}: {name} is to be {what}, got {got}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name, default)
        if not isinstance(value, str):
            self._refuse(name, "a text")
        if not value.isascii():  # JSON may escape what is no character
            return value.encode(errors="replace").decode()
        return value

    def real(self, name: str, default: float | None = None) -> float:
        value = self._values.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not -_LARGEST <= value <= _LARGEST:
            self._refuse(name, "a number")
        return float(value)

    def instant(self, name: str) -> float:
        value = self.real(name)
        if not 0 <= value <= _LAST_UNIX_S:
            self._refuse(name, "Unix time in seconds")
        return value

    def maybe_real(self, name: str) -> float | None:
        return None if self._values.get(name) is None else self.real(name)

    def count(self, name: str, least: int = 1) -> int:
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            self._refuse(name, f"a count of at least {least}")
        return value

    def maybe_count(self, name: str) -> int | None:
        return None if self._values.get(name) is None else self.count(name)

    def importance(self) -> Importance:
        name = self.text("importance")
        known = {each.name.lower(): each for each in Importance}
        if name not in known:
            self._refuse("importance", f"one of {', '.join(known)}")
        return known[name]

    def targets(self) -> Targets:
        max_gap = math.inf if self._values.get("max_gap") == "inf" else self.maybe_real("max_gap")
        ttft_s, tbt_s = self.maybe_real("ttft_s"), self.maybe_real("tbt_s")
        try:
            return Targets(ttft_s, tbt_s, self.maybe_real("ttlt_s"), max_gap)
        except ValueError as error:
            raise BadLog(f"{self._place}: {error}") from None


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def line_of(said: Mapping[str, Any], unix_offset_s: float) -> str:
    """Returns the line that says this; a number that is not finite is null there. Unix time is the
    engine's clock plus the offset, in seconds.
    """
    finite = {name: value if _is_writable(value) else None for name, value in said.items()}
    finite["unix_s"] = round(said["at"] + unix_offset_s, 6)
    return json.dumps(finite) + "\n"


def _is_writable(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def values_of(raw: bytes, place: Place) -> dict[str, Any]:
    """Returns what a line says. Raises BadLog for one that is no JSON object, or was cut short."""
    try:
        values = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadLog(f"{place}: not JSON: {first_line(error)}") from None
    if not isinstance(values, dict) or "kind" not in values:
        raise BadLog(f"{place}: not a line of a decision log")
    return values


def entry_of(values: dict[str, Any], place: Place) -> Entry:
    """Returns what the values of a line say. Raises BadLog."""
    fields = Fields(values, place)
    kind = fields.text("kind")
    at, unix_s = fields.real("at"), fields.instant("unix_s")
    if kind == "engine":
        return Entry(kind, "", "", at, unix_s, "", values, place)
    named = fields.text("request_id"), fields.text("tenant")
    return Entry(kind, *named, at, unix_s, fields.text("detail"), values, place)


@dataclass(slots=True)
class Logged:
    """A request as the log has it, or a flood of `count` of them that were refused between
    `unix_s` and `until_unix_s`. Durations in seconds from its arrival, lengths in tokens.
    """

    request_id: str
    tenant: str
    unix_s: float  # of its arrival
    tier: str
    application: str
    importance: Importance
    share: str
    targets: Targets
    prompt_tokens: int
    max_tokens: int
    timeout_s: float | None
    place: Place
    count: int = 1
    until_unix_s: float | None = None
    attempt: int = 1
    target_source: str = ""  # a `TargetSource`, or "" where the log does not say
    refuse_if_late: bool = False
    promised: bool | None = None  # whether its admission told that it would be on time
    fate: Fate | None = None  # None: the log does not say how it ended
    reason: str = ""
    was_seen: bool = True  # by the engine, which knows its prompt's true length
    output_tokens: int | None = None
    cached_tokens: int = 0
    ttft_s: float | None = None
    worst_tbt_s: float | None = None
    ttlt_s: float | None = None
    lived_s: float | None = None
    relegated: bool = False
    preemptions: int = 0
    entries: list[Entry] = field(default_factory=list)  # where they are kept

    @property
    def key(self) -> tuple[str, str]:
        """Returns what tells it from those of others."""
        return self.tenant, self.request_id

    def take_end(self, entry: Entry) -> None:
        """Adds how it ended, by its last entry. Raises BadLog."""
        fields = Fields(entry.values, entry.place)
        try:
            self.fate = Fate(fields.text("result"))
        except ValueError as error:
            raise BadLog(f"{entry.place}: {error}") from None
        self.reason = fields.text("reason")
        self.was_seen = "output_tokens" in entry.values
        if not self.was_seen:
            self.lived_s = max(0.0, entry.unix_s - self.unix_s)
            return
        self.output_tokens = fields.count("output_tokens", least=0)
        self.cached_tokens = fields.count("cached_tokens", least=0)
        self.ttft_s, self.ttlt_s = fields.maybe_real("ttft_s"), fields.maybe_real("ttlt_s")
        self.worst_tbt_s = fields.maybe_real("worst_tbt_s")
        self.lived_s = fields.maybe_real("lived_s")
        self.relegated = bool(entry.values.get("relegated"))
        self.preemptions = fields.count("preemptions", least=0)


def logged(entry: Entry) -> Logged:
    """Returns the request of an entry that has the fields of `arrived`. Raises BadLog."""
    fields = Fields(entry.values, entry.place)
    return Logged(
        entry.request_id,
        entry.tenant,
        entry.unix_s,
        fields.text("tier"),
        fields.text("application", ""),
        fields.importance(),
        fields.text("share", ""),
        fields.targets(),
        fields.count("prompt_tokens"),
        fields.count("max_tokens"),
        fields.maybe_real("timeout_s"),
        entry.place,
        attempt=fields.maybe_count("attempt") or 1,
        target_source=fields.text("target_source", ""),
        refuse_if_late=bool(entry.values.get("refuse_if_late")),
    )


def flood(entry: Entry) -> Logged:
    """Returns calls that were refused and are told as one. Raises BadLog."""
    fields = Fields(entry.values, entry.place)
    since_s = max(0.0, entry.at - fields.real("since"))
    if since_s > entry.unix_s:
        raise BadLog(f"{entry.place}: since is to be after 1970")
    request = logged(replace(entry, unix_s=entry.unix_s - since_s))
    request.count, request.until_unix_s = fields.count("count"), entry.unix_s
    request.take_end(entry)
    return request


def end_of(entry: Entry, arrived_at: float) -> End:
    """Returns how a request ended that arrived then, by the last of its entries. Raises BadLog."""
    fields = Fields(entry.values, entry.place)
    try:
        result = Fate(fields.text("result"))
    except ValueError as error:
        raise BadLog(f"{entry.place}: {error}") from None
    reason = fields.text("reason")
    if "output_tokens" not in entry.values:  # it never came to the engine
        budget = Budget(max(0.0, entry.at - arrived_at), 0.0, 0.0, 0.0, 0.0)
        return End(entry.at, result, reason, entry.detail, 0, budget)
    return End(
        entry.at,
        result,
        reason,
        entry.detail.removeprefix(reason).removeprefix(": "),
        fields.count("output_tokens", least=0),
        Budget(*(fields.real(name, 0.0) for name in Budget._fields)),
        fields.maybe_real("queue_s"),
        fields.maybe_real("ttft_s"),
        fields.maybe_real("worst_tbt_s"),
        fields.maybe_real("ttlt_s"),
        fields.maybe_real("tbt_needed_s"),
        fields.count("preemptions", least=0),
        0 if entry.values.get("holds") is None else fields.count("holds", least=0),
    )


class Computed(NamedTuple):
    """What an entry of the kind "chunk" says: an iteration of `batch_tokens` tokens computed
    `length` of the `known` tokens of a request, from position `start`. It took `took_s` seconds,
    and ended with the entry.
    """

    start: int
    length: int
    known: int
    batch_tokens: int
    took_s: float


def computed(entry: Entry) -> Computed:
    """Returns what an entry of the kind "chunk" says. Raises BadLog."""
    fields = Fields(entry.values, entry.place)
    names = ("start", "tokens", "known", "batch_tokens")
    start, length, known, batch_tokens = (int(fields.real(name)) for name in names)
    if not 0 <= start < start + length <= known or batch_tokens < length:
        raise BadLog(f"{entry.place}: no chunk of a prompt")
    return Computed(start, length, known, batch_tokens, max(0.0, fields.real("took_s")))


class Speed(NamedTuple):
    """What an entry of the kind "speed" says: until when iterations took `factor` times what the
    latency profile says.
    """

    unix_s: float
    factor: float


def speed(entry: Entry) -> Speed:
    """Returns what an entry of the kind "speed" says. Raises BadLog."""
    fields = Fields(entry.values, entry.place)
    actual_s, profile_s = fields.real("actual_s"), fields.real("profile_s")
    if not (actual_s > 0 and profile_s > 0):
        raise BadLog(f"{entry.place}: actual_s and profile_s are to be positive")
    return Speed(entry.unix_s, actual_s / profile_s)
