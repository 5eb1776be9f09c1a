"""The account of a decision log: every arrival with its fate, and for those that came to harm what
the engine did in the time that they were there.

Entries are taken in order of time, once, and added up: what is kept grows with the requests in
flight and with the number of tenants, tiers and applications that have rows of their own, not with
the log. Instants are Unix time, durations in seconds.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.deciding.outcome import MISSES, Fate
from engine.decision_header import Header
from engine.decision_lines import Entry, Logged, Place, computed
from engine.decision_log import DecisionLogReader
from engine.tiers import EXPLICIT
from loadgen.audit.cells import (
    JUDGED,
    OTHERS,
    Cell,
    Example,
    Harm,
    Names,
    Who,
)
from loadgen.audit.meter import Mark, Meter, between
from loadgen.audit.periods import Periods, Span

MOST_CELLS = 4096
MOST_GROUPS = 128
_TOLD_EVERY_S = 10  # how often the engine's time is told to the periods
_NOTHING = array("d")

_HARM_OF = {Fate.LATE: Harm.LATE, Fate.EXPIRED: Harm.EXPIRED, Fate.REFUSED: Harm.REFUSED}


class Group(NamedTuple):
    """Whose work the engine's time is divided among."""

    tenant: str
    tier: str
    importance: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A request, or a flood of `count` told as one, of which no more will be read."""

    logged: Logged
    fate: Fate | None
    ended_at: float
    place: Place | None  # of its end; None: the log has none
    relegated: bool = False
    preempted: bool = False

    @property
    def harms(self) -> list[Harm]:
        """Returns what it came to, with ANY where it came to something."""
        found = [_HARM_OF[self.fate]] if self.fate is not None and self.fate in _HARM_OF else []
        found += [Harm.RELEGATED] * self.relegated + [Harm.PREEMPTED] * self.preempted
        return [*found, Harm.ANY] if found else []

    @property
    def waited_s(self) -> float:
        """Returns how long it was there: from its arrival to its end. Of a flood it is not told."""
        return max(0.0, self.ended_at - self.logged.unix_s) if self.logged.count == 1 else 0.0

    @property
    def example(self) -> Example:
        """Returns what is told of it as one of many."""
        end = "" if self.place is None else str(self.place)
        return Example(
            self.waited_s,
            self.logged.request_id,
            self.logged.tenant,
            str(self.logged.place),
            end,
            self.logged.count,
        )


@dataclass(eq=False, slots=True)
class _InFlight:
    """What the account knows of a request between its arrival and its end."""

    group: int
    start: Mark
    context: int  # tokens that it reads when it decodes
    is_decoding: bool = False
    relegated: bool = False
    preempted: bool = False


class _Pending(NamedTuple):
    """Somebody who came to harm, until it is known what the engine did meanwhile."""

    ended: Ended
    who: Who
    start: Mark
    end: Mark


@dataclass(slots=True)
class Account:
    """Everything that is kept of the entries until now."""

    cells: dict[Who, Cell] = field(default_factory=dict)
    periods: Periods = field(default_factory=Periods)
    groups: dict[Group, int] = field(default_factory=dict)
    work: array[float] = field(default_factory=lambda: array("d"))  # seconds by group
    idle_s: float = 0.0
    header: Header | None = None  # the last
    begins_at: float = math.inf
    ends_at: float = 0.0
    num_entries: int = 0
    num_restarts: int = 0
    num_torn: int = 0  # as of DecisionLogReader
    num_unknown: int = 0
    _tenants: Names = field(default_factory=Names)
    _applications: Names = field(default_factory=Names)
    _in_flight: dict[tuple[str, str], _InFlight] = field(default_factory=dict)
    _pending: list[_Pending] = field(default_factory=list)
    _meter: Meter | None = None  # of the log that is being read
    _now: float = 0.0  # in it
    _told: array[float] = field(default_factory=lambda: array("d"))  # of its work
    _told_at: float = 0.0

    def read(self, reader: DecisionLogReader) -> Iterator[Ended]:
        """Reads one more log, and yields each request when its end is read. Raises BadLog, or
        OSError.
        """
        for step in reader.steps():
            if step.entry is not None:
                self._take(reader, step.entry, step.request)
            if step.is_over and step.request is not None:
                yield self._end(step.request, None if step.entry is None else step.entry.place)
            self._settle()
        if self._meter is not None:
            self._meter.pass_time(self._now)
            self._settle()
            self._tell_work(self._meter, self._now)
            self.idle_s += self._meter.idle_s
        self.num_torn += reader.num_torn
        self.num_unknown += reader.num_unknown
        self._meter, self._told = None, array("d")

    # What an entry says

    def _take(self, reader: DecisionLogReader, entry: Entry, request: Logged | None) -> None:
        meter = self._meter_at(reader, entry.unix_s)
        self.num_entries += 1
        self.begins_at = min(self.begins_at, entry.unix_s)
        self.ends_at = max(self.ends_at, entry.unix_s)
        self._now = max(self._now, entry.unix_s)
        if entry.unix_s // _TOLD_EVERY_S > self._told_at // _TOLD_EVERY_S:
            self._tell_work(meter, entry.unix_s)
        if request is None:
            return
        if entry.kind == "arrived":
            self._arrived(meter, entry, request)
        elif state := self._in_flight.get(entry.key):
            self._decided(meter, entry, state)

    def _meter_at(self, reader: DecisionLogReader, at: float) -> Meter:
        """Returns the meter, by the profile of the engine process that is telling."""
        header, meter = reader.header, self._meter
        assert header is not None, "the reader lets no entry come before it"
        if meter is not None and header is self.header:
            return meter
        if meter is None:
            meter = self._meter = Meter(header.profile, at)
            self._now = self._told_at = at
        elif self.header is not None and header.started_unix_s != self.header.started_unix_s:
            self.num_restarts += 1
            meter.restart(header.profile, at)
            for state in self._in_flight.values():
                state.is_decoding = False
        self.header = header
        self._tenants.keep(header.service.weights)
        return meter

    def _arrived(self, meter: Meter, entry: Entry, request: Logged) -> None:
        known = self._in_flight.get(entry.key)
        if known is not None and request.attempt > 1:  # begun again
            return
        group = self._group(self.who(request))
        self._in_flight[entry.key] = _InFlight(
            group, meter.mark(entry.unix_s), request.prompt_tokens
        )

    def _decided(self, meter: Meter, entry: Entry, state: _InFlight) -> None:
        match entry.kind:
            case "chunk":
                chunk = computed(entry)
                meter.chunk(entry.unix_s, state.group, chunk)
                if chunk.start + chunk.length == chunk.known:
                    state.context = chunk.known
                    self._decodes(meter, entry.unix_s, state)
            case "relegated":
                state.relegated = True
            case "preempted":
                state.preempted = True
                self._stops(meter, entry.unix_s, state)
            case "restarted" | "finished":
                self._stops(meter, entry.unix_s, state)

    def _decodes(self, meter: Meter, at: float, state: _InFlight) -> None:
        if not state.is_decoding:
            meter.begin_stream(at, state.group, state.context)
            state.is_decoding = True

    def _stops(self, meter: Meter, at: float, state: _InFlight) -> None:
        if state.is_decoding:
            meter.end_stream(at, state.group, state.context)
            state.is_decoding = False

    # What became of a request

    def _end(self, request: Logged, place: Place | None) -> Ended:
        """Counts a request of which no more will be read."""
        state = self._in_flight.pop(request.key, None) if request.count == 1 else None
        ended = Ended(
            request,
            request.fate,
            _ended_at(request, self._now),
            place,
            request.relegated or (state is not None and state.relegated),
            request.preemptions > 0 or (state is not None and state.preempted),
        )
        who = self.who(request)
        self._cell(who).fates[request.fate] += request.count
        self.periods.add(request.unix_s, who.tenant, _span(ended))
        if state is not None and self._meter is not None:
            self._stops(self._meter, ended.ended_at, state)
        if ended.harms:
            self._harmed(ended, who, state)
        return ended

    def _harmed(self, ended: Ended, who: Who, state: _InFlight | None) -> None:
        if state is None or self._meter is None or not ended.logged.was_seen:
            self._suffer(ended, who, _NOTHING)
        else:
            mark = self._meter.mark(ended.ended_at)
            self._pending.append(_Pending(ended, who, state.start, mark))

    def _settle(self) -> None:
        """Adds what those suffered of whom the engine's time is known by now."""
        while self._pending and self._pending[0].end.served is not None:
            ended, who, start, end = self._pending.pop(0)
            self._suffer(ended, who, between(start, end))

    def _suffer(self, ended: Ended, who: Who, served: array[float]) -> None:
        cell = self._cell(who)
        for harm in ended.harms:
            suffered = cell.suffered(harm)
            suffered.add(ended.example)
            if ended.logged.was_seen:
                suffered.wait(ended.waited_s, served)

    # Whose it is

    def who(self, request: Logged) -> Who:
        """Returns by what a request is counted."""
        is_nobodys = request.count > 1 and not request.tenant  # of a flood of several tenants
        return Who(
            request.tier or EXPLICIT,
            request.importance.name.lower(),
            OTHERS if is_nobodys else self._tenants.of(request.tenant),
            self._applications.of(request.application),
        )

    def tenant_of(self, name: str) -> str:
        """Returns the tenant in whose row one of that name is."""
        return name if name == OTHERS else self._tenants.of(name)

    def _cell(self, who: Who) -> Cell:
        if who not in self.cells and len(self.cells) >= MOST_CELLS:
            who = who._replace(application=OTHERS)
        return self.cells.setdefault(who, Cell())

    def _group(self, who: Who) -> int:
        group = Group(who.tenant, who.tier, who.importance)
        if group not in self.groups and len(self.groups) >= MOST_GROUPS:
            group = group._replace(tenant=OTHERS)
        return self.groups.setdefault(group, len(self.groups))

    def _tell_work(self, meter: Meter, at: float) -> None:
        """Tells the periods whose work was done since they were told last."""
        served, before = meter.served, self._told
        self.work.extend([0.0] * (len(served) - len(self.work)))
        for group, number in self.groups.items():
            now = served[number] if number < len(served) else 0.0
            then = before[number] if number < len(before) else 0.0
            if now > then:
                self.work[number] += now - then
                self.periods.add(self._told_at, group.tenant, Span(work_s=now - then))
        self._told, self._told_at = served[:], at


def _ended_at(request: Logged, log_ends_at: float) -> float:
    if request.until_unix_s is not None:
        return request.until_unix_s
    return log_ends_at if request.lived_s is None else request.unix_s + request.lived_s


def _span(ended: Ended) -> Span:
    """Returns what a period has of a request."""
    count = ended.logged.count
    return Span(
        arrived=count,
        judged=count * (ended.fate in JUDGED),
        missed=count * (ended.fate in MISSES),
        relegated=count * ended.relegated,
    )
