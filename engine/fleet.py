"""Simulated replicas behind a router, which decides as a live one does: by what each replica told
some time ago, and by what it has sent there since (`engine.routing`).

Each replica tells its load every TELL_S, each at instants of its own. Calls can be pinned: they go
to one replica past the router, which does not know of them, as when a nightly job is pointed at one
server. And a replica can be lost for a time: what it had begun to answer is lost with it, what it
had not goes through the router once more, as gateways have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from engine.deciding.history import OutputLengths
from engine.deciding.request import Request
from engine.deciding.stats import TierAsked
from engine.routing.prefixes import PREFIX_LEN, prefix_keys
from engine.routing.router import Router
from engine.routing.states import Asked
from engine.routing.told import told_of
from engine.simulator import Arrival, Incident, Observer, Replica, Result, simulate

TELL_S = 1.0


class Outage(NamedTuple):
    """A replica is lost at an instant, and there is a new one in its place at another."""

    replica: int
    at: float
    until: float = math.inf


@dataclass(eq=False, slots=True)
class Fleet:
    """Replicas, made by `make` of their indices, and the router before them.

    `tiers` are those of which the replicas tell; `pinned` has the index of a replica by the name of
    a tier. Raises ValueError for an index of a replica that there is not, and where outages would
    leave none.
    """

    make: Callable[[int], Replica]
    size: int
    router: Router
    tiers: Sequence[TierAsked]
    shares_prefixes: bool = False
    pinned: Mapping[str, int] = field(default_factory=dict)
    outages: Sequence[Outage] = ()
    replicas: list[Replica] = field(init=False)
    _now: float = 0.0
    _names: list[str] = field(init=False)  # of the replicas that are there
    _lengths: OutputLengths = field(default_factory=lambda: OutputLengths(0.0))
    _sent: dict[str, Asked] = field(default_factory=dict)  # through the router, in flight
    _listens: bool = field(init=False)

    def __post_init__(self) -> None:
        for index in (*self.pinned.values(), *(outage.replica for outage in self.outages)):
            if not 0 <= index < self.size:
                raise ValueError(f"there is no replica {index}; they are 0 to {self.size - 1}")
        if len({outage.replica for outage in self.outages}) == self.size:
            raise ValueError(f"one replica of {self.size} at least must never be lost")
        self.replicas = [self.make(index) for index in range(self.size)]
        self._names = [str(index) for index in range(self.size)]
        self._listens = self.router.listens and self.size > 1

    def run(
        self,
        arrivals: Iterable[Arrival],
        drain_s: float = math.inf,
        observe: Observer | None = None,
    ) -> Iterator[Result]:
        """Yields what became of each arrival, as `simulate` does."""
        happening = self._with_incidents(arrivals)
        for result in simulate(happening, self.replicas, self._route, drain_s, observe):
            self._ended(result)
            yield result

    def _with_incidents(self, arrivals: Iterable[Arrival]) -> Iterator[Arrival | Incident]:
        """Yields the arrivals, and before each what has happened since the one before it. Of what a
        replica told in the meantime only the last is looked at by anybody.
        """
        outages = sorted(self.outages, key=lambda outage: outage.at)
        changes = [
            *(Incident(each.at, partial(self._lose, each.replica)) for each in outages),
            *(Incident(each.until, partial(self._come_back, each.replica)) for each in outages),
        ]
        changes.sort(key=lambda change: change.at)
        told = [-math.inf] * self.size
        for arrival in arrivals:
            now, due = arrival.request.arrived_at, []
            while changes and changes[0].at <= now:
                due.append(changes.pop(0))
            for index in range(self.size if self._listens else 0):
                offset_s = TELL_S * index / self.size
                at = (now - offset_s) // TELL_S * TELL_S + offset_s
                if at >= 0 and told[index] < at:
                    told[index] = at
                    due.append(Incident(at, partial(self._tell, index)))
            for incident in sorted(due, key=lambda incident: incident.at):
                self._now = incident.at
                yield incident
            self._now = now
            yield arrival

    def _tell(self, index: int) -> Iterable[Result]:
        """The replica tells its load."""
        if str(index) in self._names:
            replica = self.replicas[index]
            saturation = replica.scheduler.saturation(self.tiers, replica.now)
            self.router.told(str(index), told_of(saturation, replica.now))
        return ()

    def _route(self, replicas: list[Replica], request: Request) -> Replica:
        if self.size == 1:
            return replicas[0]  # nobody asks the router, nor tells it anything
        pin = self.pinned.get(request.tier)
        if pin is not None and str(pin) in self._names:
            return replicas[pin]
        asked = self._asked(request)
        name = self.router.ranked(asked, self._names, self._now)[0]
        self.router.sent(name, asked, self._now, request.id)
        self._sent[request.id] = asked
        return replicas[int(name)]

    def _asked(self, request: Request) -> Asked:
        keys: tuple[bytes, ...] = ()
        if self.shares_prefixes:
            keys = prefix_keys(request.tenant, request.prompt, PREFIX_LEN)
        return Asked(
            request.tier,
            request.targets,
            request.importance,
            len(request.prompt),
            self._lengths.mean(request.output_group, request.sampling.max_tokens),
            keys,
            PREFIX_LEN,
        )

    def _ended(self, result: Result) -> None:
        if self.size == 1:
            return
        if self._sent.pop(result.request.id, None) is not None:
            self.router.ended(str(result.replica), result.request.id)
        if result.finished is not None:
            self._lengths.observe(result.request.output_group, len(result.token_at))

    def _lose(self, index: int) -> Iterator[Result]:
        """The replica is lost; yields what became of the calls that this ends."""
        lost = self.replicas[index]
        yield from lost.lose()
        again = lost.unanswered()
        self.router.lost(str(index))
        self._names.remove(str(index))
        self.replicas[index] = new = self.make(index)
        new.now = lost.now
        for arrival in again:
            self._sent.pop(arrival.request.id, None)
            if (refused := self._route(self.replicas, arrival.request).submit(arrival)) is not None:
                yield refused

    def _come_back(self, index: int) -> Iterable[Result]:
        """A new replica is in the place of the lost one."""
        self._names.append(str(index))
        self._names.sort(key=int)
        return ()
