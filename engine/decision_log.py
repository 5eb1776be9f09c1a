"""What stands in a decision log, and how it is read.

`engine.driving.decision_file` writes it: one JSON object per line, each with `kind`, `at` (seconds
on the engine's clock), `unix_s` (the same instant in Unix time) and, but for the kind "engine",
`request_id`, `tenant` and `detail`. By kind there stand besides:

* `engine`, first in each file, and again where an engine begins or the service is configured
  anew: what they are, its latency profile included (`Header`), so that a log can be simulated;
* `arrived`: `tier` ("" where the targets are the caller's own), `application`, `importance`,
  `share` (the tenant whose part of the engine it takes, "" for everybody's), `ttft_s`, `tbt_s`,
  `ttlt_s`, `max_gap`, `target_source`, `prompt_tokens`, `max_tokens`, `timeout_s` (from the arrival
  to the call's own deadline), `attempt` (2: begun again, as its engine was lost). A field that is
  left out has no value;
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
  `at`. The tier of a call that was refused before it was read is "unknown".

A reader streams: of the entries only those of requests in flight are remembered, and of these no
more than MOST_OPEN. Lines that a full disk or a sudden end has cut short are left out and counted;
any other line that is none of a decision log's is an error which names file and line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from engine.deciding.budget import Budget
from engine.deciding.latency import LatencyProfile
from engine.deciding.outcome import Fate
from engine.deciding.request import Importance, Targets
from engine.deciding.scheduler_config import SchedulerConfig
from engine.deciding.timeline import End
from engine.tiers import Tier, Tiers

MOST_OPEN = 100_000  # requests without an end: more were lost with their engine, or from the log
MOST_LINE_BYTES = 1 << 20
MOST_PAGES = 1 << 24  # of an engine's memory: a simulation has a list of them
_START = '{"kind": "'
_LARGEST = 1 << 53  # of a count: exact as a float
_LAST_UNIX_S = 250_000_000_000  # in the year 9892: a later one has no date


class BadLog(ValueError):
    """The log cannot be read; the message names file and line, in one line."""


# What the first line says


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


# What is read


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
        fields = _Fields(entry.values, entry.place)
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


class Step(NamedTuple):
    """An entry as it is read, with its request as it is known by then, where its arrival is in the
    log; or no entry, and a request whose end is not in the log. `is_over`: no more of it is read.
    """

    entry: Entry | None
    request: Logged | None
    is_over: bool = False


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
    fields = _Fields(entry.values, entry.place)
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
    fields = _Fields(entry.values, entry.place)
    actual_s, profile_s = fields.real("actual_s"), fields.real("profile_s")
    if not (actual_s > 0 and profile_s > 0):
        raise BadLog(f"{entry.place}: actual_s and profile_s are to be positive")
    return Speed(entry.unix_s, actual_s / profile_s)


def files_of(path: Path) -> list[Path]:
    """Returns the files of a log that has been written to `path`, the oldest first: those that got
    a number when they were full, and the one that is open.
    """
    numbered = [
        (int(number), each)
        for each in path.parent.glob(f"{_escaped(path.name)}.*")
        if (number := each.name.removeprefix(f"{path.name}.")).isdecimal() and number.isascii()
    ]
    found = [each for _, each in sorted(numbered, reverse=True)]
    return found if found and not path.exists() else [*found, path]


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


class DecisionLogReader:
    """Reads the files of one log, the oldest first. `header` is what has last been told of the
    engine, `num_torn` how many lines were cut short, and `num_unknown` how many ends belong to
    requests that arrived before the log begins.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.header: Header | None = None
        self.num_torn = 0
        self.num_unknown = 0

    def entries(self) -> Iterator[Entry]:
        """Yields every line but those of the kind "engine", of which the last is `header`. Raises
        BadLog, or OSError.
        """
        for path in self._paths:
            yield from self._entries_of(path)

    def _entries_of(self, path: Path) -> Iterator[Entry]:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                place = Place(path, number)
                if len(raw) > MOST_LINE_BYTES:
                    raise BadLog(f"{place}: longer than {MOST_LINE_BYTES} bytes")
                if not raw.strip():
                    continue
                values = self._values(raw, place)
                if values is None:
                    continue
                entry = _entry(values, place)
                if entry.kind == "engine":
                    self.header = _header(entry)
                elif self.header is None:
                    raise BadLog(f'{place}: no line of the kind "engine" is before it')
                else:
                    yield entry

    def _values(self, raw: bytes, place: Place) -> dict[str, Any] | None:
        """Returns what a line says; None for one that was cut short."""
        try:
            values = json.loads(raw.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            text = raw.decode(errors="replace").rstrip("\n")
            if _START.startswith(text[: len(_START)]) and not text.endswith("}"):
                self.num_torn += 1
                return None
            raise BadLog(f"{place}: not JSON: {_first_line(error)}") from None
        if not isinstance(values, dict) or "kind" not in values:
            raise BadLog(f"{place}: not a line of a decision log")
        return values

    def requests(self, keeps_entries: bool = False) -> Iterator[Logged]:
        """Yields each request when its end is read, and at last those whose end is not in the log.
        `keeps_entries` gives each all of its lines. Raises BadLog, or OSError.
        """
        for step in self.steps(keeps_entries):
            if step.is_over and step.request is not None:
                yield step.request

    def steps(self, keeps_entries: bool = False) -> Iterator[Step]:
        """Yields every entry in the order of the log, and whose end is not in it. Raises BadLog, or
        OSError.
        """
        open_: dict[tuple[str, str], Logged] = {}  # the oldest first
        for entry in self.entries():
            is_end = entry.kind in ("finished", "refused")
            if is_end and "count" in entry.values:
                yield Step(entry, _flood(entry), is_over=True)
                continue
            if entry.kind == "arrived":
                new = logged(entry)
                known = open_.get(entry.key)
                if known is not None and new.attempt > known.attempt:  # with another engine
                    known.attempt = new.attempt
                    new = known
                elif known is not None:
                    yield Step(None, open_.pop(entry.key), is_over=True)
                elif len(open_) >= MOST_OPEN:
                    yield Step(None, open_.pop(next(iter(open_))), is_over=True)
                open_[entry.key] = new
            request = open_.get(entry.key)
            if request is None:
                self.num_unknown += is_end
            else:
                self._note(request, entry, keeps_entries)
            if is_end:
                open_.pop(entry.key, None)
            yield Step(entry, request, is_over=is_end)
        for request in open_.values():
            yield Step(None, request, is_over=True)

    def _note(self, request: Logged, entry: Entry, keeps_entries: bool) -> None:
        """Adds what an entry says of its request."""
        if keeps_entries:
            request.entries.append(entry)
        if entry.kind == "admitted":
            request.promised = bool(entry.values.get("on_time"))
        elif entry.kind in ("finished", "refused"):
            request.take_end(entry)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _entry(values: dict[str, Any], place: Place) -> Entry:
    fields = _Fields(values, place)
    kind = fields.text("kind")
    at, unix_s = fields.real("at"), fields.instant("unix_s")
    if kind == "engine":
        return Entry(kind, "", "", at, unix_s, "", values, place)
    named = fields.text("request_id"), fields.text("tenant")
    return Entry(kind, *named, at, unix_s, fields.text("detail"), values, place)


def _header(entry: Entry) -> Header:
    fields, values = _Fields(entry.values, entry.place), entry.values
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
        raise BadLog(f"{entry.place}: what it says of the engine: {_first_line(error)}") from None
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
    fields = _Fields(values, place)
    return Tier(fields.text("name"), fields.targets(), fields.importance())


def parsed(raw: bytes, place: Place) -> Entry | None:
    """Returns what one line says; None for the kind "engine". Raises BadLog for a line that is none
    of a decision log's, or was cut short.
    """
    try:
        values = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadLog(f"{place}: not JSON: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise BadLog(f"{place}: not a line of a decision log")
    entry = _entry(values, place)
    return None if entry.kind == "engine" else entry


def logged(entry: Entry) -> Logged:
    """Returns the request of an entry that has the fields of `arrived`. Raises BadLog."""
    fields = _Fields(entry.values, entry.place)
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
    )


def _flood(entry: Entry) -> Logged:
    """Returns calls that were refused and are told as one."""
    fields = _Fields(entry.values, entry.place)
    since_s = max(0.0, entry.at - fields.real("since"))
    if since_s > entry.unix_s:
        raise BadLog(f"{entry.place}: since is to be after 1970")
    request = logged(replace(entry, unix_s=entry.unix_s - since_s))
    request.count, request.until_unix_s = fields.count("count"), entry.unix_s
    request.take_end(entry)
    return request


def end_of(entry: Entry, arrived_at: float) -> End:
    """Returns how a request ended that arrived then, by the last of its entries. Raises BadLog."""
    fields = _Fields(entry.values, entry.place)
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


class _Fields:
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


def requests_of(paths: Iterable[Path], keeps_entries: bool = False) -> Iterator[Logged]:
    """Yields the requests of several logs, one log after the other, each with the files that got a
    number. Raises BadLog, or OSError.
    """
    for path in paths:
        yield from DecisionLogReader(files_of(path)).requests(keeps_entries)
