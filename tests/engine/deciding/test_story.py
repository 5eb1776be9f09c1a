"""A story tells what came, from figures that add up; and what it says would have helped, would."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding import story
from engine.deciding.plan import Relegated
from engine.deciding.request import BEST_EFFORT, Importance, Request, Targets, key_of
from engine.deciding.sequence import FinishReason
from engine.deciding.story import Row
from engine.deciding.timeline import Timeline
from tests.engine.deciding.parts import (
    TARGETS,
    Driver,
    deadline,
    interactive,
    make_request,
    make_scheduler,
)

TENANTS = ("acme", "zeta", "")


def told(driver: Driver, name: str, tenant: str = "") -> Timeline:
    return driver.scheduler.explain(name, tenant, driver.now)


def waiting_behind(targets: Targets) -> Driver:
    """First come, first served: 640 tokens of acme in ten chunks of 65 ms, and then 63 of zeta."""
    driver = Driver(make_scheduler("fcfs", chunk_size=64))
    first = make_request(key_of("acme", "first"), 640, 1, targets=BEST_EFFORT, tenant="acme")
    driver.submit(replace(first, tier="batch"))
    second = make_request(key_of("zeta", "second"), 63, 2, targets=targets, tenant="zeta")
    driver.submit(replace(second, timeout_s=0.2))
    return driver


def test_a_late_request_is_told_where_its_time_went_and_what_would_have_helped() -> None:
    """It waits 650 ms, computes 64, and decodes 1.1: 715 ms, against 200."""
    driver = waiting_behind(interactive(0.2, 0.1))
    driver.drain()
    timeline = told(driver, "second", "zeta")
    summary = story.summary(timeline, is_operator=True)
    assert summary.startswith("Late: TTFT was 714 ms against a target of 200 ms.")
    assert (
        "Of its 715 ms, 650 ms went on waiting, 64 ms on its prefill and 1 ms on decoding."
    ) in summary
    assert "650 ms tier batch of tenant acme" in summary
    assert "650 ms tier batch of other tenants" in story.summary(timeline)
    assert story.needed(timeline) == [
        "A TTFT of 714 ms would have been met.",
        "With 514 ms less of waiting (of 650 ms) its TTFT would have been met.",
    ]


def test_where_no_tenant_has_a_share_of_its_own_none_is_spoken_of() -> None:
    driver = Driver(make_scheduler("fcfs", chunk_size=64))
    for name, tier in (("first", "batch"), ("second", "")):
        driver.submit(replace(make_request(name, 320, 1, targets=BEST_EFFORT), tier=tier))
    driver.submit(make_request("third", 63, 2, targets=interactive(0.2, 0.1)))
    driver.drain()
    summary = story.summary(told(driver, "third"), is_operator=True)
    assert "100%: 325 ms of requests with their own targets and 325 ms tier batch." in summary
    assert "tenant" not in summary


def test_an_expired_request_is_told_that_its_deadline_passed_while_it_waited() -> None:
    driver = waiting_behind(interactive(0.2, 0.1))
    while driver.now < 0.2:
        driver.step()
    driver._take(
        driver.scheduler.cancel(key_of("zeta", "second"), FinishReason.TIMEOUT, driver.now)
    )
    timeline = told(driver, "second", "zeta")
    assert story.summary(timeline, True).startswith(
        "Expired: its deadline of 200 ms passed while it waited. Of its 260 ms, 260 ms went on"
        " waiting. Already at admission 650 ms of work was ahead, and its chance of being late"
    )
    # And half of the iteration in progress, of at least 1 ms:
    assert story.needed(timeline) == ["At admission its first token was expected after 715 ms."]


def test_one_in_flight_is_told_what_it_waits_for() -> None:
    driver = waiting_behind(deadline(9.0))
    driver.step()
    timeline = told(driver, "second", "zeta")
    assert story.summary(timeline, True) == (
        "in flight. Of its 65 ms, 65 ms went on waiting. Now 585 ms of work is ahead of it:"
        " 585 ms tier batch of tenant acme."
    )
    assert timeline.decisions[-1].kind == "waiting"
    assert [d.kind for d in driver.scheduler.explain("second", "zeta").decisions] == ["admitted"]
    driver.drain()
    assert told(driver, "second", "zeta").end is not None


def test_whose_work_is_ahead_is_bounded_and_makes_up_the_whole() -> None:
    driver = Driver(make_scheduler("fcfs"))
    for i in range(8):
        request = make_request(key_of(f"t{i}", "r"), 10 * (i + 1), 1, tenant=f"t{i}")
        driver.submit(request)
    driver.submit(make_request("mine", 10, 1, tenant="t0"))
    timeline = driver.scheduler.explain("mine", "")
    admitted = timeline.decisions[0]
    rows = story.rows(admitted, timeline.request, is_operator=True)
    assert [row.tenant for row in rows] == ["t7", "t6", "t5", "t4", "t3", None]
    assert sum(row.seconds for row in rows) == pytest.approx(admitted.values["ahead_s"])
    (others,) = story.rows(admitted, replace(timeline.request, tenant="x"), is_operator=False)[:1]
    assert others.tenant is None


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(("niyama", "fcfs", "qoserve")))
def test_every_story_adds_up_and_names_no_other_tenant(seed: int, policy: str) -> None:
    rng = random.Random(seed)
    driver = Driver(make_scheduler(policy, num_pages=40, page_size=8, context_len=300))
    for number in range(rng.randint(1, 15)):
        tenant = rng.choice(TENANTS)
        request = make_request(
            key_of(tenant, f"r{number}"),
            rng.randint(1, 150),
            rng.randint(1, 20),
            driver.now - rng.choice((0.0, 0.01)),
            rng.choice(TARGETS),
            rng.choice(list(Importance)),
            tenant=tenant,
        )
        driver.submit(request)
        for _ in range(rng.randint(0, 4)):
            driver.step(slowdown=rng.choice((1.0, 3.0)), ahead=rng.random() < 0.5)
        for each in driver.in_flight:
            _check(driver, driver.stories[each].request)
    driver.drain()
    for each in driver.stories.values():
        _check(driver, each.request)
        end = told(driver, each.request.name, each.request.tenant).end
        assert end is not None
        assert end.budget.total_s == pytest.approx(end.at - each.request.arrived_at)


def _check(driver: Driver, request: Request) -> None:
    timeline = told(driver, request.name, request.tenant)
    texts = [story.summary(timeline), *story.needed(timeline)]
    assert not [t for t in TENANTS if t and t != request.tenant and t in " ".join(texts)]
    for decision in timeline.decisions:
        for is_operator in (True, False):
            rows: list[Row] = story.rows(decision, request, is_operator)
            if rows:
                total = sum(row.seconds for row in rows)
                assert total == pytest.approx(decision.values["ahead_s"], abs=1e-3)
            assert is_operator or {row.tenant for row in rows} <= {request.tenant, None}
    assert story.summary(timeline, is_operator=True)


# What would have helped, would


def crowd(seed: int, importance_of: Callable[[int, Importance], Importance]) -> Driver:
    """So many requests at once that some are relegated by the first plan. None has begun."""
    rng = random.Random(seed)
    driver = Driver(make_scheduler(num_pages=2000))
    for number in range(rng.randint(2, 15)):
        given_ = rng.choice((Importance.LOW, Importance.NORMAL, Importance.NORMAL, Importance.HIGH))
        targets = interactive(rng.uniform(0.2, 2.0), 1.0)
        request = make_request(
            f"r{number}", rng.randint(10, 300), 1, targets=targets, tenant=f"t{number % 5}"
        )
        driver.submit(replace(request, importance=importance_of(number, given_)))
    return driver


def relegated_by(driver: Driver, at: float) -> list[Timeline]:
    """Those that the plan at that instant relegates, in the order in which they are."""
    driver.scheduler.plan(at)
    events = driver.scheduler.cancel("r0", FinishReason.CANCELLED, at)
    names = [each.request_id for each in events if isinstance(each, Relegated)]
    return [driver.scheduler.explain(name) for name in names]


def when_relegated(timeline: Timeline) -> Mapping[str, float]:
    return next(d for d in timeline.decisions if d.kind == "relegated").values


def _high(own: int, number: int, given_: Importance) -> Importance:
    return Importance.HIGH if number == own else given_


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_of_high_importance_another_would_have_been_relegated_before_it(seed: int) -> None:
    victims = relegated_by(crowd(seed, lambda number, given_: given_), 0.0)
    for place, victim in enumerate(victims):
        if when_relegated(victim).get("as_high"):
            name = victim.request.name
            again = relegated_by(crowd(seed, partial(_high, int(name[1:]))), 0.0)
            assert name not in [each.request.name for each in again[: place + 1]]
            assert len(again) > place


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_with_so_much_less_to_do_it_would_not_have_been_relegated(seed: int) -> None:
    """Which is as if that had been begun so much earlier."""
    for victim in relegated_by(crowd(seed, lambda number, given_: given_), 0.0):
        short_s = when_relegated(victim).get("short_s")
        if short_s is None:
            continue
        assert short_s > 0
        again = crowd(seed, lambda number, given_: given_)
        names = [each.request.name for each in relegated_by(again, -short_s - 1e-6)]
        assert victim.request.name not in names
