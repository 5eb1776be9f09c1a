"""Silos: who goes where, how many replicas a tier needs, and what is said of bad sizes. The costs
are those of test_simulated.py: a prompt of 4 tokens and one token of output take 1.5 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from loadgen.silos import Silo, SiloTarget, falls_behind, fewest_replicas, parse_silos, smallest
from loadgen.targets.record import Record
from loadgen.targets.simulated import SimulatedTarget
from loadgen.workload.plan import PlannedRequest
from niyama.client.values import Importance, Targets, Tier
from tests.loadgen.examples import planned, record
from tests.loadgen.targets.test_simulated import FCFS, PROFILE, ignore, instants

CHAT, REPORT = Targets(ttft=1.5, tbt=1.0), Targets(ttlt=10.0)
TIERS = (
    Tier("interactive", CHAT, Importance.NORMAL),
    Tier("standard", REPORT, Importance.NORMAL),
)
BASE = replace(FCFS, profile=replace(PROFILE, tiers=TIERS))


def requests(tier: Tier, instants: Iterable[float], index: int = 0) -> list[PlannedRequest]:
    return [
        planned(
            index + i, at, tier.targets, tier=tier.name, prompt_len=4, output_len=1, explicit=True
        )
        for i, at in enumerate(instants)
    ]


def test_tiers_do_not_wait_for_each_other() -> None:
    """Two requests at once: together the second would wait 1.5 s for the first."""
    both = [*requests(TIERS[0], [0.0]), *requests(TIERS[1], [0.0], index=1)]
    silos = (Silo("interactive", 1, 8), Silo("standard", 1, 8))
    target = SiloTarget(BASE, silos)
    assert [instants(r) for r in target.run(both, ignore).records] == [[1.5], [1.5]]
    together = SimulatedTarget(replace(BASE, chunk_size=4)).run(both, ignore).records
    assert [instants(r) for r in together] == [[1.5], [3.0]]


def test_each_silo_has_its_own_chunk() -> None:
    """4 tokens in chunks of 2: 1.0 + 1.0 s; at once: 1.5 s."""
    both = [*requests(TIERS[0], [0.0]), *requests(TIERS[1], [0.0], index=1)]
    silos = (Silo("interactive", 1, 2), Silo("standard", 1, 8))
    records = SiloTarget(BASE, silos).run(both, ignore).records
    assert [instants(r) for r in records] == [[2.0], [1.5]]
    assert [r.request.index for r in records] == [0, 1], "in the order of the plan"


def test_the_series_of_silos_holds_the_chunks_and_queues_of_all() -> None:
    """In the first step a chunk of 2 and one of 4 tokens, with nobody left waiting behind either
    but the one that prefills; at 1.0 s the other 2.
    """
    both = [*requests(TIERS[0], [0.0]), *requests(TIERS[1], [0.0], index=1)]
    silos = (Silo("interactive", 1, 2), Silo("standard", 1, 8))
    watched = SiloTarget(replace(BASE, keeps_series=True), silos)
    series = watched.run(both, ignore).series
    assert series is not None
    assert {n: length for n, length in enumerate(series.chunk_len) if length} == {0: 3.0, 10: 2.0}
    assert {n: count for n, count in enumerate(series.num_waiting) if count} == {0: 1.0, 10: 1.0}
    assert SiloTarget(BASE, silos).run(both, ignore).series is None


def test_the_fewest_replicas_that_serve_a_tier_are_found() -> None:
    """Three at the same instant, each alone on time: within 1.5 s nothing may be shared."""
    assert fewest_replicas(BASE, requests(TIERS[0], [0.0, 0.0, 0.0])) == 3
    target = SiloTarget(BASE).sized(
        [*requests(TIERS[0], [0.0, 0.0, 0.0]), *requests(TIERS[1], [0.0], index=3)]
    )
    assert target.silos == (Silo("interactive", 3, 256), Silo("standard", 1, 2048))
    assert target.info().name == "simulated eighths x 4 (interactive 3/256 + standard 1/2048)"


@pytest.mark.parametrize(
    ("ttft", "published"),
    [(201.5, "2 replicas"), (201.0, "2 replicas"), (100.75, "none serves")],
)
def test_a_silo_has_the_chunk_with_which_it_needs_fewest(ttft: float, published: str) -> None:
    """A prompt of 400 tokens takes 0.5 + 64 + 0.5 + 36 s in chunks of 256, at once half a second
    less.
    """
    long = Tier("interactive", Targets(ttft=ttft, tbt=1.0), Importance.NORMAL)
    two = [replace(r, prompt_len=400) for r in requests(long, [0.0, 0.0 if ttft > 200 else 101.0])]
    target = SiloTarget(replace(BASE, profile=replace(PROFILE, tiers=(long,))))
    assert target.sized(two).silos == (Silo("interactive", 1, 512),), published


def test_a_tier_without_requests_needs_no_replicas() -> None:
    target = SiloTarget(BASE).sized(requests(TIERS[1], [0.0]))
    assert target.silos == (Silo("standard", 1, 2048),)


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 13])
def test_the_smallest_number_that_serves_is_found_in_few_tries(needed: int) -> None:
    tried: list[int] = []

    def serves(replicas: int) -> bool:
        tried.append(replicas)
        return replicas >= needed

    assert smallest(serves) == needed
    assert len(tried) <= 8


class Interrupted(list[PlannedRequest]):
    def __iter__(self) -> Iterator[PlannedRequest]:
        yield self[0]
        raise KeyboardInterrupt


def test_an_interruption_ends_the_sizing() -> None:
    """It is no miss of the requests that were in flight, to be made up for by more replicas."""
    with pytest.raises(KeyboardInterrupt):
        fewest_replicas(BASE, Interrupted(requests(TIERS[0], [0.0])))


def test_the_tier_that_no_silo_serves_is_named() -> None:
    impossible = Tier("hasty", Targets(ttft=0.1, tbt=1.0), Importance.NORMAL)
    base = replace(BASE, profile=replace(PROFILE, tiers=(*TIERS, impossible)))
    both = [*requests(TIERS[0], [0.0]), *requests(impossible, [0.0], index=1)]
    with pytest.raises(ValueError, match="silo of hasty: not even 1024 replicas"):
        SiloTarget(base).sized(both)


def test_a_load_that_no_number_of_replicas_serves_is_an_error() -> None:
    with pytest.raises(ValueError, match="not even 1024 replicas"):
        smallest(lambda replicas: False)


def test_a_backlog_that_grows_is_seen_where_deadlines_hide_it() -> None:
    """One a second; each takes 1 s and is served at once, or 1.5 s one after the other."""

    def served(service_s: float) -> list[Record]:
        free_at, records = 0.0, []
        for request in requests(TIERS[1], range(2000)):
            free_at = max(free_at, request.at) + service_s
            records.append(record(request, [free_at]))
        return records

    assert not falls_behind(served(1.0))
    assert falls_behind(served(1.5))


def test_a_tier_without_a_silo_is_an_error() -> None:
    target = SiloTarget(BASE, (Silo("interactive", 1, 8),))
    with pytest.raises(ValueError, match="no silo for standard"):
        target.run(requests(TIERS[1], [0.0]), ignore)


def test_silos_are_read_from_a_flag() -> None:
    assert parse_silos("interactive:7,standard:3/512", TIERS) == (
        Silo("interactive", 7, 256),
        Silo("standard", 3, 512),
    )
    for text, problem in (
        ("q9:1", "unknown tier 'q9'"),
        ("interactive", "is not TIER:COUNT"),
        ("interactive:0", "is not TIER:COUNT"),
        ("interactive:1/x", "is not TIER:COUNT"),
        ("standard:1,standard:2", "named twice"),
    ):
        with pytest.raises(ValueError, match=problem):
            parse_silos(text, TIERS)
