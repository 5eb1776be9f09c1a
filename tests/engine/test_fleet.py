"""Simulated replicas behind a router: who gets what, and that nobody is lost uncounted."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.deciding.request import Importance, Targets
from engine.deciding.stats import TierAsked
from engine.fleet import Fleet, Outage
from engine.routing.router import ROUTINGS, Router
from engine.simulator import Arrival, Result
from tests.engine.deciding.parts import make_request
from tests.engine.test_simulator import TICK, make_arrivals, make_replica

CHAT = Targets(ttft_s=64 * TICK, tbt_s=16 * TICK)
TIERS = [TierAsked("chat", CHAT, Importance.NORMAL)]


def make_fleet(size: int, routing: str = "least-requests", **others: object) -> Fleet:
    return Fleet(make_replica, size, Router(routing), TIERS, **others)  # type: ignore[arg-type]


def taken(results: list[Result]) -> list[int]:
    """The replica of each request r0, r1, ..."""
    by_id = {each.request.id: each.replica for each in results}
    return [by_id[f"r{i}"] for i in range(len(by_id))]


def test_replicas_are_taken_in_turn() -> None:
    arrivals = [Arrival(make_request(f"r{i}", at=float(i))) for i in range(7)]
    results = list(make_fleet(3, "round-robin").run(arrivals))
    assert taken(results) == [i % 3 for i in range(7)]


def test_fewest_requests_are_those_in_flight() -> None:
    """At 0: the first, the second, and (equals again) the first. At 1 s the second has finished
    its short one while the first still decodes the long one and has finished the third.
    """
    lengths = [(0.0, 600), (0.0, 2), (0.0, 2), (1 / 16, 2), (1.0, 2)]
    arrivals = [Arrival(make_request(f"r{i}", 10, n, at)) for i, (at, n) in enumerate(lengths)]
    assert taken(list(make_fleet(2).run(arrivals))) == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_replica_that_is_lost_loses_what_it_had_begun_and_nothing_else(routing: str) -> None:
    """Every arrival is counted once; while the replica is away nobody is sent there. Of two that
    are pinned to it one has begun when it is lost, and the other comes afterwards.
    """
    down, pinned = Outage(1, at=1.0, until=2.0), {"night": 1}
    night = [make_request(f"n{i}", 4, 550, at, tier="night") for i, at in enumerate((0.0, 1.5))]
    arrivals = [*map(Arrival, night), *make_arrivals(3, 80)]
    arrivals.sort(key=lambda arrival: arrival.request.arrived_at)

    def run() -> list[Result]:
        fleet = make_fleet(2, routing, outages=(down,), shares_prefixes=True, pinned=pinned)
        return list(fleet.run(arrivals))

    results = run()
    ids = [arrival.request.id for arrival in arrivals]
    assert sorted(each.request.id for each in results) == sorted(ids)
    lost = [each for each in results if each.lost]
    assert "n0" in {each.request.id for each in lost}
    assert all(each.replica == 1 and each.token_at and each.finished is None for each in lost)
    others = [each for each in results if not each.lost]
    assert all(each.finished is not None for each in others)
    for each in others:
        if 1.0 <= each.request.arrived_at < 2.0:
            assert each.replica == 0
    again = [each for each in results if each.replica == 1 and each.request.arrived_at > 2.0]
    assert again, "there is a new one in its place"
    assert run() == results


def test_what_is_pinned_goes_past_the_router_and_what_is_not_is_not_moved_by_it() -> None:
    """A night's work waits on replica 0, more than it can do in the time; chats that come for a
    second and a half are on time on both.
    """
    work = [make_request(f"w{i}", 200, 40, 0.0, tier="night") for i in range(12)]
    chats = [
        make_request(f"c{i}", 8, 4, 1.5 + i / 16, CHAT, tier="chat", application="chat")
        for i in range(24)
    ]
    arrivals = [Arrival(request) for request in (*work, *chats)]
    results = list(make_fleet(2, "qos", pinned={"night": 0}).run(arrivals))
    by_tier: dict[str, Counter[int]] = {"night": Counter(), "chat": Counter()}
    for each in results:
        by_tier[each.request.tier][each.replica] += 1
        assert each.finished is not None
        if each.request.tier == "chat":
            assert each.token_at[0] - each.request.arrived_at <= 64 * TICK
    assert by_tier["night"] == {0: 12}
    assert min(by_tier["chat"][0], by_tier["chat"][1]) >= 4


@pytest.mark.parametrize(
    ("others", "problem"),
    [
        ({"pinned": {"chat": 2}}, "there is no replica 2"),
        ({"outages": (Outage(5, 1.0),)}, "there is no replica 5"),
        ({"outages": (Outage(0, 1.0), Outage(1, 2.0))}, "one replica of 2 at least"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(others: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_fleet(2, **others)
