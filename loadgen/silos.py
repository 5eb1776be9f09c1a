"""Clusters of silos, simulated: replicas of their own for every tier, as is common practice.

A silo serves in order of arrival with a chunk of its own. How many replicas a tier needs and with
which chunk is given, or found: the fewest that serve its requests, as `loadgen.scoring.criterion`
says. The silos that Niyama (arXiv 2503.22562) compares with have 256 tokens where a pace is to be
kept and 2,048 elsewhere; these are taken where no other chunk needs fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from loadgen.scoring.criterion import SIMULATED, Criterion
from loadgen.scoring.score import backlog_growth, backlog_noise
from loadgen.targets.record import Record
from loadgen.targets.series import SeriesRecorder
from loadgen.targets.simulated import (
    Setup,
    SimulatedTarget,
    records,
    target_info,
    uncollected,
)
from loadgen.targets.target import End, Run, Watch
from loadgen.workload.plan import PlannedRequest
from loadgen.workload.served import TargetInfo
from niyama.client.values import Tier

PACED_CHUNK, BULK_CHUNK = 256, 2048
CHUNKS = (256, 512, 1024, 2048)  # those that are tried
MOST_REPLICAS = 1024


class Silo(NamedTuple):
    """The replicas of one tier."""

    tier: str
    replicas: int
    chunk_size: int

    def __str__(self) -> str:
        return f"{self.tier} {self.replicas}/{self.chunk_size}"


@dataclass(frozen=True, slots=True)
class SiloTarget:
    """A group of replicas per tier. Without `silos` they are still to be sized (`sized`)."""

    base: Setup
    silos: tuple[Silo, ...] = ()

    @property
    def num_replicas(self) -> int:
        """Counts the replicas of all silos together."""
        return sum(silo.replicas for silo in self.silos)

    def info(self) -> TargetInfo:
        """Returns what the silos say of themselves; the name has their sizes."""
        info = target_info(self.base, "silo", max(1, self.num_replicas))
        sizes = " + ".join(str(silo) for silo in self.silos)
        return replace(info, name=f"{info.name} ({sizes})" if sizes else info.name)

    def sized(self, requests: Iterable[PlannedRequest]) -> SiloTarget:
        """Returns the same silos with the fewest replicas of each tier that serve these requests,
        whatever their chunk. Raises ValueError for a tier that none serve.
        """
        by_tier = _by_tier(requests)
        silos = tuple(
            self._fewest(tier, by_tier[tier.name])
            for tier in self.base.profile.tiers
            if tier.name in by_tier
        )
        return replace(self, silos=silos)

    def _fewest(self, tier: Tier, requests: Sequence[PlannedRequest]) -> Silo:
        """Returns the silo of a tier with the fewest replicas. A chunk is tried with fewer than the
        best so far, and taken only where those are enough.
        """
        usual = default_chunk(tier)
        best, problem = None, ""
        for chunk in (usual, *(other for other in CHUNKS if other != usual)):
            silo = Silo(tier.name, 1, chunk)
            if best is None:
                try:
                    count = fewest_replicas(self._setup(silo), requests)
                except ValueError as error:
                    problem = problem or f"silo of {tier.name}: {error}"
                    continue
                best = silo._replace(replicas=count)
            while best.replicas > 1:
                fewer = silo._replace(replicas=best.replicas - 1)
                if not is_served(self._setup(fewer), requests):
                    break
                best = fewer
        if best is None:
            raise ValueError(problem)
        return best

    def run(self, requests: Iterable[PlannedRequest], watch: Watch) -> Run:
        """Runs one tier after the other, since they do not touch each other. Raises ValueError for
        a tier without replicas.
        """
        by_tier = _by_tier(requests)
        missing = by_tier.keys() - {silo.tier for silo in self.silos}
        if missing:
            raise ValueError(f"no silo for {', '.join(sorted(missing))}")
        whole = Run()
        series = SeriesRecorder() if self.base.keeps_series else None
        for silo in self.silos:
            target = SimulatedTarget(self._setup(silo))
            part = target.run(by_tier.get(silo.tier, []), watch, series)
            whole.records += part.records
            whole.series = part.series
            whole.elapsed_s = max(whole.elapsed_s, part.elapsed_s)
            if part.end is not End.COMPLETE:
                whole.end, whole.problem = part.end, part.problem
                break
        whole.records.sort(key=lambda record: record.request.index)
        return whole

    def _setup(self, silo: Silo) -> Setup:
        return replace(self.base, policy="fcfs", chunk_size=silo.chunk_size, replicas=silo.replicas)


def default_chunk(tier: Tier) -> int:
    """Returns the chunk size of a tier's silo where none is given, in tokens."""
    return BULK_CHUNK if tier.targets.tbt is None else PACED_CHUNK


def parse_silos(text: str, tiers: Sequence[Tier]) -> tuple[Silo, ...]:
    """Reads TIER:COUNT[/CHUNK],... Raises ValueError."""
    known = {tier.name: tier for tier in tiers}
    silos = []
    for part in text.split(","):
        name, _, rest = part.strip().partition(":")
        count, slash, chunk = rest.partition("/")
        if name not in known:
            raise ValueError(f"unknown tier {name!r} in the silos; there is {', '.join(known)}")
        if not (count.isdigit() and int(count)) or (slash and not (chunk.isdigit() and int(chunk))):
            raise ValueError(f"{part.strip()!r} is not TIER:COUNT or TIER:COUNT/CHUNK")
        silos.append(Silo(name, int(count), int(chunk) if slash else default_chunk(known[name])))
    if len({silo.tier for silo in silos}) < len(silos):
        raise ValueError(f"a tier is named twice in {text!r}")
    return tuple(silos)


def _by_tier(requests: Iterable[PlannedRequest]) -> dict[str, list[PlannedRequest]]:
    by_tier: dict[str, list[PlannedRequest]] = {}
    for request in requests:
        by_tier.setdefault(request.tier, []).append(request)
    return by_tier


def fewest_replicas(setup: Setup, requests: Sequence[PlannedRequest]) -> int:
    """Returns the smallest number of replicas that serve the requests. Raises ValueError where no
    number does, because one request by itself would be late.
    """

    def serves(replicas: int) -> bool:
        return is_served(replace(setup, replicas=replicas), requests)

    return smallest(serves)


def is_served(
    setup: Setup, requests: Sequence[PlannedRequest], criterion: Criterion = SIMULATED
) -> bool:
    """Simulates a load, until it is known whether the replicas serve it."""
    ended: list[Record] = []
    num_late = 0
    with uncollected():
        for record in records(setup, requests):
            ended.append(record)
            num_late += criterion.is_late(record)
            if not criterion.allows(num_late, len(requests)):
                return False
    return not falls_behind(ended, criterion)


def falls_behind(ended: Sequence[Record], criterion: Criterion = SIMULATED) -> bool:
    """Says whether the backlog grows by too much between the first and the last arrival. Requests
    that all arrive at once leave nothing to measure, and no backlog.
    """
    last_at = max((record.request.at for record in ended), default=0.0)
    if not last_at:
        return False
    end_s = math.nextafter(last_at, math.inf)
    growth, noise = backlog_growth(ended, 0.0, end_s), backlog_noise(ended, 0.0, end_s)
    return criterion.grows(growth, noise)


def smallest(serves: Callable[[int], bool]) -> int:
    """Searches the smallest number that serves, assuming that what serves with some replicas does
    with more. Raises ValueError where none up to MOST_REPLICAS does.
    """
    high = 1
    while not serves(high):
        high *= 2
        if high > MOST_REPLICAS:
            raise ValueError(f"not even {MOST_REPLICAS} replicas serve this load on time")
    low = high // 2  # too few, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if serves(middle) else (middle, high)
    return high
