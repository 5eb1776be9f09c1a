"""Sums that are kept agree with the queue, whatever happens to those who wait."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from engine.deciding.plan import Token
from engine.deciding.policies import POLICIES
from engine.deciding.queued_work import (
    BEST_EFFORT,
    RELEGATED,
    RUNNING,
    STATES,
    WAITING,
    QueuedWork,
    state_of,
)
from engine.deciding.request import Importance
from engine.deciding.scheduler import Scheduler
from engine.deciding.sequence import FinishReason
from tests.engine.deciding.parts import (
    TARGETS,
    deadline,
    make_request,
    make_scheduler,
    make_sequence,
)


def check(scheduler: Scheduler) -> None:
    """Against what the policy itself says of each that waits."""
    scheduler.check()
    amounts = scheduler.saturation((), 0.0).amounts
    waiting = list(scheduler.roster.waiting)
    for (tier, state), amount in amounts.items():
        if state == RUNNING:
            assert amount.num == sum(s.request.tier == tier for s in scheduler.roster.running)
            assert (amount.seconds > 0) == (amount.num > 0)
            continue
        own = [s for s in waiting if s.request.tier == tier and state_of(s) == state]
        assert amount.num == len(own)
        works = math.fsum(map(scheduler.policy.known_work_s, own))
        assert amount.seconds == pytest.approx(works, abs=1e-9)
        lengths = [s.num_uncomputed - (not s.num_computed) * s.expected_prefix for s in own]
        assert amount.tokens == sum(lengths)
    assert sum(a.num for (_, state), a in amounts.items() if state != RUNNING) == len(waiting)


@pytest.mark.parametrize("policy", POLICIES)
def test_sums_are_those_of_the_queue(policy: str) -> None:
    """Arrivals, cancellations, preemptions and relegations; little memory, and all kinds of
    targets. Iterations take what is predicted, so that nothing is learnt.
    """
    rng, now = random.Random(1), 0.0
    scheduler = make_scheduler(policy, num_pages=60)
    for number in range(150):
        targets, at = rng.choice(TARGETS), now - rng.choice((0.0, 0.1))
        request = make_request(
            f"r{number}",
            rng.randint(1, 200),
            rng.randint(1, 20),
            at,
            targets,
            rng.choice([*Importance]),
        )
        scheduler.submit(replace(request, tier=rng.choice(("", "chat", "batch"))), now)
        if rng.random() < 0.1:
            anybody = rng.choice(list(scheduler.roster.sequences))
            scheduler.cancel(anybody, FinishReason.CANCELLED, now)
        plan = scheduler.plan(now)
        if plan is not None:
            now += plan.predicted_s
            scheduler.commit(plan, [Token(0)] * len(plan.sampling), now)
        check(scheduler)
    while (plan := scheduler.plan(now)) is not None:
        now += plan.predicted_s
        scheduler.commit(plan, [Token(0)] * len(plan.sampling), now)
    check(scheduler)
    amounts = scheduler.saturation((), now).amounts
    assert set(amounts.values()) == {(0, 0.0, 0)}, "no rounding error is left"
    assert {tier for tier, _ in amounts} == {"", "chat", "batch"}
    stats = scheduler.stats()
    assert sum(stats.relegations.values()) == stats.totals.num_relegations
    assert not any(cause == "other" for _, cause in stats.relegations)


def test_each_state_is_told() -> None:
    work = QueuedWork()
    chat, free = make_sequence("a", targets=deadline(1.0)), make_sequence("b")
    work.put(chat, 2.0)
    work.put(free, 3.0)
    demand = make_scheduler().policy.demand
    assert work.amounts((), demand, ())["", WAITING] == (1, 2.0, 10)
    chat.relegate()
    work.put(chat, 1.5)
    assert work.amounts((), demand, ["x"]) == {
        **{(tier, state): (0, 0.0, 0) for tier in ("", "x") for state in STATES},
        ("", RELEGATED): (1, 1.5, 10),
        ("", BEST_EFFORT): (1, 3.0, 10),
    }
    work.drop(chat)
    work.drop(free)
    work.check(())
