"""Who asks to be refused rather than late is, by what it would be told, and leaves nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.outcome import Fate
from engine.deciding.plan import Accepted, Finished
from engine.deciding.policies import MAKERS
from engine.deciding.request import BEST_EFFORT, Request, Targets, key_of
from engine.deciding.sequence import FinishReason
from tests.engine.deciding.parts import (
    TARGETS,
    Driver,
    deadline,
    make_request,
    make_scheduler,
)


def strict(request: Request, num_after: int = 0) -> Request:
    return replace(request, refuse_if_late=True, num_after=num_after)


def busy(policy: str, seed: int, num: int = 12) -> Driver:
    """An engine that has served some, and has some left to do."""
    rng = random.Random(seed)
    driver = Driver(make_scheduler(policy, record_capacity=100))
    for i in range(num):
        targets = rng.choice(TARGETS)
        driver.submit(make_request(f"r{i}", rng.randint(1, 90), 4, driver.now, targets))
        if rng.random() < 0.5:
            driver.step()
    return driver


@pytest.mark.parametrize("policy", sorted(MAKERS))
@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 90), st.sampled_from(TARGETS))
def test_it_is_let_in_exactly_if_it_would_be_told_to_be_on_time(
    policy: str, seed: int, prompt: int, targets: Targets
) -> None:
    """In two engines that have been through the same; of what is refused nothing is kept."""
    plain, asking = busy(policy, seed), busy(policy, seed)
    request = make_request("x", prompt, 4, plain.now, targets)
    before = sorted(asking.scheduler.roster.sequences)
    pages = asking.scheduler.stats().pages_free
    (told,) = plain.scheduler.submit(request, plain.now)
    (answer,) = asking.scheduler.submit(strict(request), asking.now)
    asking.scheduler.check()
    if isinstance(told, Finished):  # by its policy, whatever it asks for
        assert answer == told
        return
    assert isinstance(told, Accepted)
    assert told.on_time == isinstance(answer, Accepted)
    times = told.predicted_ttft_s, told.predicted_ttlt_s
    if isinstance(answer, Accepted):
        assert answer.on_time
        if policy != "edf-reject":  # which forecasts by what it sees once it has let somebody in
            assert (answer.predicted_ttft_s, answer.predicted_ttlt_s) == pytest.approx(times)
        return
    assert isinstance(answer, Finished)
    assert answer.reason is FinishReason.WOULD_BE_LATE
    if policy != "edf-reject":
        assert answer.expected == pytest.approx(times)
    assert answer.detail
    assert answer.retry_s >= 0
    assert sorted(asking.scheduler.roster.sequences) == before
    assert asking.scheduler.stats().pages_free == pages
    end = asking.scheduler.explain("x", "").end
    assert end is not None
    assert (end.result, end.reason) == (Fate.REFUSED, "would_be_late")


def test_nothing_is_refused_that_has_no_target() -> None:
    driver = busy("fcfs", 1)
    (event,) = driver.scheduler.submit(strict(make_request("x", 90, 4, 0.0, BEST_EFFORT)), 0.0)
    assert isinstance(event, Accepted)


def test_who_comes_again_when_told_is_let_in() -> None:
    """A second of prefills is before it, in which it would be late; nothing else comes."""
    driver = Driver(make_scheduler("edf"))
    driver.submit(make_request("long", 1000, 1, 0.0, deadline(0.5)))
    request = make_request("x", 10, 1, 0.0, deadline(0.9))
    (refused,) = driver.scheduler.submit(strict(request), 0.0)
    assert isinstance(refused, Finished)
    assert refused.detail.startswith("its last token is expected after 1.0")
    assert 0 < refused.retry_s < 1
    while driver.now < refused.retry_s and driver.scheduler.roster.sequences:
        driver.step()
    again = replace(request, arrived_at=driver.now)
    (event,) = driver.scheduler.submit(strict(again), driver.now)
    assert isinstance(event, Accepted)
    assert event.on_time


def test_what_has_passed_counts_when_an_engine_takes_over_what_another_had() -> None:
    request = replace(make_request("x", 10, 1, 0.0, deadline(0.9)), attempt=2)
    assert isinstance(make_scheduler().submit(strict(request), 0.1)[0], Accepted)
    (event,) = make_scheduler().submit(strict(request), 0.895)
    assert isinstance(event, Finished)
    assert event.reason is FinishReason.WOULD_BE_LATE
    assert event.retry_s == 0, "a new one would be on time"


def test_who_would_be_late_on_an_idle_engine_is_not_told_to_come_again_soon() -> None:
    scheduler = make_scheduler()
    (event,) = scheduler.submit(strict(make_request("x", 90, 4, 0.0, deadline(0.01))), 0.0)
    assert isinstance(event, Finished)
    assert event.retry_s == float("inf")


@pytest.mark.parametrize("policy", ["niyama", "edf", "fcfs"])
def test_a_call_of_several_completions_is_judged_by_the_last_and_as_a_whole(policy: str) -> None:
    """A tenth of a second for each of eight: one would be on time, and the eighth not. Where the
    first is let in so are the others.
    """

    def completions(num: int, ttlt_s: float) -> list[Request]:
        one = make_request("call", 100, 1, 0.0, deadline(ttlt_s))
        return [
            strict(replace(one, id=key_of("", "call", i)), num_after=num - 1 - i)
            for i in range(num)
        ]

    alone = make_scheduler(policy).submit(completions(1, 0.5)[0], 0.0)
    assert isinstance(alone[0], Accepted)
    scheduler = make_scheduler(policy)
    first, *_ = completions(8, 0.5)
    (event,) = scheduler.submit(first, 0.0)
    assert isinstance(event, Finished)
    assert event.reason is FinishReason.WOULD_BE_LATE
    assert not scheduler.roster.sequences
    events = [scheduler.submit(each, 0.0)[0] for each in completions(8, 2.0)]
    assert all(isinstance(each, Accepted) for each in events)
