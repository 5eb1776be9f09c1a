"""What everybody would have had otherwise: the arrivals of the log, simulated with its own profile.

As it was configured, which says how far the simulation is from the log; first come first served;
and each tenant with its fair share of the engine alone. That is measured as
`loadgen.scoring.fairness` defines it: the engine serves as many tenants like this one as there is
room for by its share, each with its arrivals, moved by a minute at most so that they do not come in
step.

A simulation takes time, so of a long log the part is taken in which most came to harm. Instants are
Unix time, durations in seconds.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.deciding.outcome import Fate
from engine.decision_lines import BadLog
from loadgen.audit.account import Account
from loadgen.audit.cells import JUDGED, NAMELESS, OTHERS
from loadgen.audit.periods import Periods, total
from loadgen.audit.query import instant_text
from loadgen.reports.html.text import share
from loadgen.scoring.fairness import fair_shares
from loadgen.scoring.score import is_on_time
from loadgen.simulation_flags import SimulationFlags
from loadgen.targets.profiles import LOGGED
from loadgen.targets.record import Outcome
from loadgen.targets.simulated import Setup, records, uncollected
from loadgen.workload.lengths import USUALLY_STATED
from loadgen.workload.logged import Log, load
from loadgen.workload.plan import PlannedRequest
from niyama.client.values import Targets

MOST_REQUESTS = 4000  # that are simulated
MOST_ALONE = 4  # times as many, of one tenant with its fair share alone
MOST_TENANTS = 8  # that are simulated alone; the others are one together
_MOVED_S = 60.0
_ALL = 1 << 62  # requests
_FAR = 0.05  # a simulation that is farther from the log says little
_WORSE = 0.01  # a share on time that is lower by less is none of somebody's doing

BEST_EFFORT = Targets()

Whose = tuple[str, str]  # tenant and tier


@dataclass(slots=True)
class Tally:
    """Requests that had targets, and those that met them."""

    judged: int = 0
    on_time: int = 0

    @property
    def share(self) -> float | None:
        """Returns the share that was on time."""
        return self.on_time / self.judged if self.judged else None

    def add(self, is_on_time: bool, count: int = 1) -> None:
        """Counts one more, or several."""
        self.judged += count
        self.on_time += count * is_on_time


Tallies = dict[Whose, Tally]


@dataclass(slots=True)
class Alternatives:
    """What there was, and would have been, in a part of a log."""

    begins_at: float
    ends_at: float
    num_requests: int
    is_whole: bool  # the part is the whole log
    policy: str
    fair: Mapping[str, float]  # shares of the engine, by tenant
    was: Tallies
    simulated: Tallies
    in_order: Tallies  # first come first served
    alone: Tallies = field(default_factory=dict)  # counts are those of the copies

    def sentences(self) -> Iterator[str]:
        """Yields what is to be said of them."""
        part = "All" if self.is_whole else "The part of the log in which most came to harm: all"
        yield (
            f"{part} {self.num_requests:,} arrivals from {instant_text(self.begins_at)} to "
            f"{instant_text(self.ends_at)} were simulated again. As configured ({self.policy}) "
            f"{share(whole(self.simulated))} of those with targets would have been on time (in the "
            f"log {share(whole(self.was))} were), and first come first served "
            f"{share(whole(self.in_order))}."
        )
        was, simulated = whole(self.was), whole(self.simulated)
        if was is not None and simulated is not None and abs(was - simulated) > _FAR:
            yield (
                f"The simulation is {abs(was - simulated) * 100:.0f} points off the log: what "
                "would have been is no more than a direction."
            )
        yield from self._fair_share()

    def _fair_share(self) -> Iterator[str]:
        """Says who is worse off than with its fair share alone, by whose doing or by none's."""
        tenants = [name for name in self.fair if self.alone_of(name) is not None]
        if len(tenants) < 2:
            return
        worse = {name: self.worse_by(name) for name in tenants}
        most = max(tenants, key=lambda name: (worse[name], name))
        if worse[most] < _WORSE:
            yield (
                "Nobody was worse off than with its fair share of the engine alone by more than 1 "
                "point."
            )
            return
        yield (
            f"Worst off by the doing of others is {most or NAMELESS}: with its fair share of the "
            f"engine alone ({share(self.fair[most])}) {share(self.alone_of(most))} of its requests "
            f"would have been on time, and {share(by_tenant(self.simulated, most))} are beside the "
            "others."
        )

    def alone_of(self, tenant: str) -> float | None:
        """Returns the share on time of a tenant with its fair share alone, None where it is not
        known.
        """
        return by_tenant(self.alone, tenant)

    def worse_by(self, tenant: str) -> float:
        """Returns how much more of a tenant's requests would be on time with its fair share
        alone.
        """
        alone, beside = self.alone_of(tenant), by_tenant(self.simulated, tenant)
        return 0.0 if alone is None or beside is None else max(0.0, alone - beside)

    def alone_by_tier(self, tier: str) -> float | None:
        """Returns the share on time of a tier whose tenants all have their fair share alone, each
        counted by its requests in the log.
        """
        found = [
            (was.judged, tally.share)
            for whose, was in self.was.items()
            if whose[1] == tier and (tally := self.alone.get(whose)) is not None
        ]
        judged = sum(num for num, each in found if each is not None)
        return (
            sum(num * each for num, each in found if each is not None) / judged if judged else None
        )

    def to_json(self) -> dict[str, Any]:
        """Returns them as the JSON report has them."""
        whose = sorted({*self.was, *self.simulated, *self.in_order})
        return {
            "from_unix_s": self.begins_at,
            "to_unix_s": self.ends_at,
            "num_requests": self.num_requests,
            "is_whole": self.is_whole,
            "policy": self.policy,
            "fair_shares": dict(self.fair),
            "by_tenant_and_tier": [
                {
                    "tenant": tenant,
                    "tier": tier,
                    "judged": _of(self.was, (tenant, tier)).judged,
                    "was": _of(self.was, (tenant, tier)).share,
                    "simulated": _of(self.simulated, (tenant, tier)).share,
                    "first_come_first_served": _of(self.in_order, (tenant, tier)).share,
                    "alone": _of(self.alone, (tenant, tier)).share,
                }
                for tenant, tier in whose
            ],
        }


def _of(tallies: Tallies, whose: Whose) -> Tally:
    return tallies.get(whose, Tally())


def whole(tallies: Tallies) -> float | None:
    """Returns the share on time of all."""
    return _share_of(tallies.values())


def by_tenant(tallies: Tallies, tenant: str) -> float | None:
    """Returns the share on time of a tenant."""
    return _share_of(tally for whose, tally in tallies.items() if whose[0] == tenant)


def by_tier(tallies: Tallies, tier: str) -> float | None:
    """Returns the share on time of a tier."""
    return _share_of(tally for whose, tally in tallies.items() if whose[1] == tier)


def _share_of(tallies: Iterable[Tally]) -> float | None:
    together = Tally()
    for tally in tallies:
        together.judged += tally.judged
        together.on_time += tally.on_time
    return together.share


# Which part of the log


def worst_part(periods: Periods, most: int) -> tuple[float, float]:
    """Returns from when to when most came to harm, in a part of at most so many arrivals; one step
    where even that has more.
    """
    numbers = sorted(periods.steps)
    totals = [total(periods.steps[number]) for number in numbers]
    first = arrived = harmed = 0
    best, most_harmed = (0, 0), -1
    for last, each in enumerate(totals):
        arrived += each.arrived
        harmed += each.missed + each.relegated
        while arrived > most and first < last:
            arrived -= totals[first].arrived
            harmed -= totals[first].missed + totals[first].relegated
            first += 1
        if harmed > most_harmed:
            best, most_harmed = (first, last), harmed
    step_s = periods.step_s
    return numbers[best[0]] * step_s, (numbers[best[1]] + 1) * step_s


# What would have been


def simulated(setup: Setup, planned: Iterable[PlannedRequest], whose: Sequence[Whose]) -> Tallies:
    """Returns who would be on time; `whose` says by the index of a request whose it is."""
    tallies: Tallies = {}
    with uncollected():
        for record in records(setup, planned):
            met, has_left = is_on_time(record), record.outcome is Outcome.CANCELLED
            if record.request.targets != BEST_EFFORT and not (has_left and met):
                tallies.setdefault(whose[record.request.index], Tally()).add(met)
    return tallies


def alone(
    setup: Setup,
    planned: Sequence[PlannedRequest],
    whose: Sequence[Whose],
    fair: Mapping[str, float],
    most: int,
) -> Tallies:
    """Returns who would be on time with the fair share of its tenant alone, in at most about so
    many requests of each tenant.
    """
    tallies: Tallies = {}
    for tenant, fair_share in fair.items():
        own = [each for each in planned if whose[each.index][0] == tenant]
        copies = copied(own[: max(1, int(most * fair_share))], 1 / fair_share, tenant)
        numbered = [replace(each, index=index) for index, (_, each) in enumerate(copies)]
        originals = [whose[original.index] for original, _ in copies]
        tallies |= simulated(setup, numbered, originals)
    return tallies


def copied(
    planned: Sequence[PlannedRequest], times: float, seed: str
) -> list[tuple[PlannedRequest, PlannedRequest]]:
    """Returns requests so many times, in order of time, each with what it is a copy of. All but the
    first are moved by a minute at most, and of a part of a time only that part of them is there.
    """
    rng = random.Random(f"audit/{seed}")
    copies = []
    for number in range(math.ceil(times)):
        for each in planned:
            is_there = rng.random() < times - number
            moved_s = rng.uniform(-_MOVED_S, _MOVED_S) if number else 0.0
            if is_there:
                copies.append((each, replace(each, at=max(0.0, each.at + moved_s))))
    return sorted(copies, key=lambda pair: pair[1].at)


def imagine(
    account: Account, paths: Sequence[Path], most: int = MOST_REQUESTS
) -> Alternatives | None:
    """Simulates the part in which most came to harm of logs that the account is of; None where
    nobody knows what they asked for that arrived in it. Raises BadLog for an engine that cannot be
    simulated, or OSError.
    """
    begins_at, ends_at = worst_part(account.periods, most)
    try:
        log = load(tuple(paths), (begins_at, ends_at), most + 1)
    except BadLog:  # the logs have been read: there is nothing else that it can be
        return None
    planned, fates = log.requests[:most], log.fates[:most]
    tenants = [account.tenant_of(each.tenant) for each in planned]
    fair = fair_shares_of(Counter(tenants), log.header.service.weights)
    whose = [
        (tenant if tenant in fair else OTHERS, each.tier)
        for tenant, each in zip(tenants, planned, strict=True)
    ]
    was: Tallies = {}
    for fate, mine in zip(fates, whose, strict=True):
        if fate in JUDGED:
            was.setdefault(mine, Tally()).add(fate is Fate.ON_TIME)
    try:
        setup = _setup(log, len(paths))
    except ValueError as error:
        names = ", ".join(map(str, paths))
        raise BadLog(f"{names}: {error} (--simulated 0 does without)") from None
    return Alternatives(
        begins_at,
        ends_at,
        len(planned),
        len(planned) == len(log.requests)
        and worst_part(account.periods, _ALL) == (begins_at, ends_at),
        log.header.policy,
        fair,
        was,
        simulated(setup, planned, whose),
        simulated(replace(setup, policy="fcfs"), planned, whose),
        alone(setup, planned, whose, fair, MOST_ALONE * most) if len(fair) > 1 else {},
    )


def _setup(log: Log, replicas: int) -> Setup:
    """Returns the engine of the log, as many times as there are logs."""
    setup = SimulationFlags(LOGGED).setup(
        drain_s=math.inf,
        prefix_caching=log.has_prefixes,
        stated_output=USUALLY_STATED,
        seed=0,
        keeps_series=False,
        log=log,
    )
    return replace(setup, replicas=replicas)


def fair_shares_of(sent: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the fair shares of the tenants that send most, and of all others together."""
    fair = fair_shares(sent, weights)
    most = sorted(sent, key=lambda name: (-sent[name], name))
    own = [name for name in most if name != OTHERS][:MOST_TENANTS]
    rest = sum(part for name, part in fair.items() if name not in own)
    return {name: fair[name] for name in own} | ({OTHERS: rest} if rest else {})
