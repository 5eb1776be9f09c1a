"""One tenant of ten sends most of an overload: what the other nine notice of it, on a simulated
A100 with the requests of test_overload. Each has a share of weight 1; the nine together offer well
under the capacity.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.niyama import Niyama
from engine.deciding.questions import Estimate
from engine.deciding.request import BEYOND, EVERYBODY_ELSE, Importance, Request, Share, Targets
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams
from engine.simulator import Result
from tests.engine.deciding.parts import (
    deadline,
    decodes_only,
    interactive,
    late_share,
    make_replica,
    make_request,
    make_scheduler,
    make_sequence,
    make_stream,
    serve,
)
from tests.engine.deciding.test_overload import CAPACITY, make_requests

DURATION_S = 60.0
LATE = 0.01  # of the nine


def by_tenant(times: float, seed: int, num_others: int = 9, share: float = 0.55) -> list[Request]:
    """An overload of so many times the capacity, of which `flood` sends that share."""
    rng = random.Random(seed)
    requests = []
    for request in make_requests(times * CAPACITY, DURATION_S, seed):
        name = "flood" if rng.random() < share else f"t{rng.randrange(num_others)}"
        requests.append(
            replace(request, tenant=name, share=Share(name), importance=Importance.NORMAL)
        )
    return requests


def flooding(requests: list[Request], change: Callable[[Request], Request]) -> list[Request]:
    """The same load, but the flood sends its requests otherwise."""
    changed = [change(r) if r.tenant == "flood" else r for r in requests]
    return sorted(changed, key=lambda r: r.arrived_at)


def late_of(results: dict[str, Result], is_flood: bool) -> float:
    return late_share(r for r in results.values() if (r.request.tenant == "flood") == is_flood)


def hurried(targets: Targets, importance: Importance) -> Callable[[Request], Request]:
    return lambda r: replace(r, targets=targets, importance=importance)


def in_bursts(request: Request) -> Request:
    """All of 20 s come within 2 s."""
    period, at = divmod(request.arrived_at, 20.0)
    return replace(request, arrived_at=20.0 * period + at / 10)


WAYS: dict[str, Callable[[Request], Request]] = {
    "plainly": lambda r: r,
    "as important": lambda r: replace(r, importance=Importance.HIGH),
    "in no time": hurried(interactive(0.001, 0.05), Importance.NORMAL),
    "within a second": hurried(deadline(1.0), Importance.HIGH),
    "within three seconds": hurried(deadline(3.0), Importance.HIGH),
    "at a fast pace": hurried(interactive(2.0, 0.02), Importance.NORMAL),
    "in bursts": in_bursts,
    "with long prompts": lambda r: replace(
        r, prompt=range(2 * len(r.prompt)), sampling=replace(r.sampling, max_tokens=1)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_others_are_on_time_however_the_flood_is_sent(way: str) -> None:
    results = serve(flooding(by_tenant(1.4, 0), WAYS[way]), make_replica("niyama"))
    assert late_of(results, is_flood=False) <= LATE
    assert late_of(results, is_flood=True) > 10 * LATE


def test_the_flood_has_what_the_others_leave() -> None:
    """At 1.2 times the capacity nobody needs to lose more than a third of it."""
    results = serve(by_tenant(1.2, 1), make_replica("niyama"))
    assert late_of(results, is_flood=False) <= LATE
    assert late_of(results, is_flood=True) < 0.4


def test_many_names_that_nobody_knows_are_one_share() -> None:
    """The flood invents a name for each request."""
    requests = flooding(
        by_tenant(1.4, 0), lambda r: replace(r, tenant=f"flood-{r.id}", share=EVERYBODY_ELSE)
    )
    results = serve(requests, make_replica("niyama"))
    named = (r for r in results.values() if r.request.share is not EVERYBODY_ELSE)
    assert late_share(named) <= LATE


def test_two_tenants_and_a_weight() -> None:
    """Of two, one sends four fifths; with four times the weight that is its part, and both lose."""
    requests = by_tenant(1.3, 0, num_others=1, share=0.8)
    results = serve(requests, make_replica("niyama"))
    assert late_of(results, is_flood=False) <= LATE
    heavy = flooding(requests, lambda r: replace(r, share=Share("flood", 4.0)))
    weighted = serve(heavy, make_replica("niyama"))
    assert late_of(weighted, is_flood=False) > 2 * LATE
    assert late_of(weighted, is_flood=True) < late_of(results, is_flood=True)


def test_nobody_is_hurt_by_asking_for_more_while_there_is_time_for_all() -> None:
    results = serve(by_tenant(0.7, 0), make_replica("niyama"))
    assert late_share(results.values()) == 0


def test_with_one_share_importance_is_what_the_request_says() -> None:
    replica = make_replica("niyama")
    policy = replica.scheduler.policy
    assert isinstance(policy, Niyama)
    for importance in 10 * [*Importance]:
        one = make_sequence(targets=deadline(9.0), importance=importance, prompt=5000)
        policy.enter(one, 0.0)
        assert one.importance is importance
    other = make_sequence(targets=deadline(9.0), tenant="other")
    policy.enter(other, 0.0)
    assert other.importance is Importance.NORMAL
    again = make_sequence(targets=deadline(9.0), importance=Importance.HIGH)
    policy.enter(again, 0.0)
    assert again.importance == BEYOND


def test_a_question_counts_as_a_request_of_that_share_would() -> None:
    """Beyond its part it goes behind more of those who wait; and asking changes nothing."""
    scheduler = make_scheduler(num_pages=10_000)
    targets = deadline(60.0)  # a request takes 5 s

    def submit(name: str, tenant: str) -> Sequence:
        request = make_request(name, 5000, 5, targets=targets, tenant=tenant, share=Share(tenant))
        scheduler.submit(request, 0.0)
        return scheduler.sequence(name)

    def told(tenant: str) -> float:
        return scheduler.estimate(Estimate(5000, 5, targets, share=Share(tenant)), 0.0).ahead_s

    submit("other", "other")
    for i in range(20):
        submit(f"{i}", "flood")
    scheduler.plan(0.0)
    assert scheduler.policy.alpha > 1
    own, flooding = told("other"), told("flood")
    assert flooding > own
    assert (told("other"), told("flood")) == (own, flooding)
    waiting, ahead_s = scheduler.roster.waiting, scheduler.policy.ahead_s
    one, another = submit("new", "flood"), submit("newer", "other")
    assert (one.importance, another.importance) == (BEYOND, Importance.NORMAL)
    assert ahead_s(another, waiting, 0.0) == own
    assert ahead_s(one, waiting, 0.0) > flooding, "the other's goes first, though it came later"


def a_policy() -> Niyama:
    """One under which a tenant `flood` has asked for more than its part, and is served nothing."""
    policy = make_replica("niyama").scheduler.policy
    assert isinstance(policy, Niyama)
    policy.enter(make_sequence(targets=deadline(60.0), tenant="other"), 0.0)
    for i in range(20):
        policy.enter(
            make_sequence(f"f{i}", targets=deadline(60.0), tenant="flood", prompt=3000), 0.0
        )
    return policy


def recent(policy: Niyama) -> tuple[float, ...]:
    """What is kept of recent requests."""
    kept = policy._recent
    shortest, costliest = kept.shortest_ttft_s, kept.costliest_s
    return shortest, costliest, kept.is_calm, kept.is_overloaded, kept.has_streams, kept.num_noted


plain = st.tuples(
    st.just("other"), st.integers(100, 3000), st.sampled_from((1.0, 6.0)), st.just(False)
)
beyond = st.tuples(
    st.just("flood"), st.integers(1, 9000), st.floats(0.001, 60.0), st.sampled_from((False, True))
)
impossible = st.tuples(st.just("odd"), st.integers(3000, 9000), st.floats(1e-6, 0.1), st.booleans())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.one_of(plain, beyond, impossible), max_size=40), st.booleans())
def test_recent_requests_are_those_of_tenants_within_their_part_that_could_be_served(
    asked: list[tuple[str, int, float, bool]], reviewed: bool
) -> None:
    """With the others left out all that is kept of recent requests is the same."""
    policies = a_policy(), a_policy()
    for i, (tenant, prompt, limit_s, has_ttlt) in enumerate(asked):
        targets = deadline(limit_s) if has_ttlt else interactive(limit_s, 0.05)
        tells = tenant == "other" and limit_s >= 1
        for policy in policies[: 2 if tells else 1]:
            policy.enter(make_sequence(f"r{i}", targets=targets, tenant=tenant, prompt=prompt), 0.0)
            if reviewed:
                policy.review(0.0)
    assert recent(policies[0]) == recent(policies[1])


def test_costly_requests_of_who_asks_for_too_much_yield_to_streams_that_wish_for_it() -> None:
    """While nothing waits for long, only the streams tell that there is too much."""
    policy = make_replica("niyama").scheduler.policy
    assert isinstance(policy, Niyama)

    def come(tenant: str, prompt: int, number: int) -> list[Sequence]:
        come = [
            make_sequence(tenant=tenant, share=Share(tenant), prompt=prompt, targets=deadline(90.0))
            for _ in range(number)
        ]
        for sequence in come:
            policy.enter(sequence, 0.0)
        return come

    for name in ("flood", "other"):
        for sequence in come(name, 100, 50) + come(name, 1000, 50):
            policy.leave(sequence)
    first, short = come("flood", 2000, 2), come("flood", 100, 1)
    costly, others = come("flood", 2000, 1), come("other", 2000, 1)
    assert not policy.review(0.0)
    stream = make_stream(deadline(2.0), 2.0)
    decodes = Streams([stream])
    policy.begin(decodes, decodes_only(decodes), 0.0)
    assert [move.sequence for move in policy.review(0.0)] == costly
    assert costly[0].importance == BEYOND
    assert policy.room(decodes_only(decodes), costly[0]) == 0
    assert all(policy.room(decodes_only(decodes), s) > 0 for s in (*first, *short, *others))
    policy.begin(Streams(), decodes_only([]), 0.0)
    assert policy.room(decodes_only([]), costly[0]) > 0


def test_who_gives_way_for_its_tenant_s_sake_is_told_so() -> None:
    replica = make_replica("niyama")
    policy = replica.scheduler.policy
    assert isinstance(policy, Niyama)
    flood = [
        make_sequence(f"f{i}", targets=deadline(2.5), tenant="flood", prompt=5000)
        for i in range(10)
    ]
    other = make_sequence("o", targets=deadline(2.6), tenant="other", prompt=5000)
    for sequence in (other, *flood):
        policy.enter(sequence, 0.0)
    moves = [m for m in policy.review(0.0) if m.sequence.importance == BEYOND]
    assert moves
    assert all(m.sequence is not other for m in policy.review(0.0))
    assert any("its tenant has asked for more than its part" in m.told for m in moves)
    assert not any("other" in m.told.replace("others", "").replace("another", "") for m in moves)


def test_nobody_sits_out_for_prefills_of_who_asks_for_too_much() -> None:
    """The same work waits in both policies, a minute of it that leaves no slack; but in one all of
    it is a single tenant's, beside another that has asked for less.
    """
    streams = Streams([make_stream(interactive(9.0, 0.1), 9.0), make_stream(deadline(60.0), 60.0)])
    sitting = []
    for tenants in (["flood"], [f"t{i}" for i in range(20)]):
        policy = make_replica("niyama").scheduler.policy
        assert isinstance(policy, Niyama)
        policy.enter(make_sequence(targets=deadline(60.0), tenant="other"), 0.0)
        for i in range(20):
            tenant = tenants[i % len(tenants)]
            policy.enter(
                make_sequence(f"{i}", targets=deadline(9.0), tenant=tenant, prompt=9000), 0.0
            )
        policy.launched([(make_sequence("chunk"), 1)])
        sitting.append(policy.hold(streams, decodes_only(streams), 0.0))
    batch = next(s for s in streams if s.request.targets.ttlt_s is not None)
    assert sitting == [[], [batch]]
