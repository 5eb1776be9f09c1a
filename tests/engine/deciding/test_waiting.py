"""Nobody waits for longer than is stated, whatever comes; and nobody is lost silently."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.background import Background
from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.plan import Accepted, Finished
from engine.deciding.questions import Estimate
from engine.deciding.queue import SequenceQueue
from engine.deciding.request import BEST_EFFORT, EVERYBODY_ELSE, Request, Share, Targets, key_of
from engine.deciding.sequence import FinishReason
from engine.deciding.story import summary as told
from engine.simulator import Arrival as Arriving
from engine.simulator import Refusal, Replica, Result, simulate
from tests.engine.deciding.parts import (
    TARGETS,
    Driver,
    deadline,
    interactive,
    make_replica,
    make_request,
    make_scheduler,
    make_sequence,
    poisson,
)

LONGEST_S = 5.0
# Whoever was begun by then goes on when its share has earned a chunk: 3,136 / 0.02 tokens of others
# at 9,000 a second.
BEGUN_S = 18.0
URGENT = interactive(2.0, 0.1)


def waiting(longest_s: float = LONGEST_S) -> Replica:
    return make_replica(niyama=NiyamaConfig(longest_wait_s=longest_s))


def mixed(rate: float, patient: float, duration_s: float = 60.0) -> Iterable[Request]:
    """Requests of 500 tokens on average, of which the engine does 17 a second: `rate` that are
    urgent, and `patient` of best effort.
    """
    rng = random.Random(0)
    for i, at in enumerate(poisson(rate + patient, duration_s, rng)):
        is_patient = rng.random() < patient / (rate + patient)
        targets = BEST_EFFORT if is_patient else URGENT
        yield make_request(f"r{i}", rng.randint(200, 800), 5, at, targets)


def run(requests: Iterable[Request], replica: Replica) -> list[Result]:
    return list(simulate(map(Arriving, requests), [replica]))


def waited_s(result: Result) -> float:
    """Until the first token, or until it was told that there would be none."""
    assert result.ended_at is not None
    end = result.token_at[0] if len(result.token_at) else result.ended_at
    return end - result.request.arrived_at


def refused(results: list[Result]) -> list[Result]:
    return [r for r in results if r.refusal is Refusal.REJECTED]


def displaced(results: list[Result]) -> list[Finished]:
    ends = [r.finished for r in results if r.finished is not None]
    return [f for f in ends if f.reason is FinishReason.DISPLACED]


def test_a_sustained_overload_keeps_nobody_waiting_for_ever() -> None:
    """1.4 times what can be done, with a TTFT of 2 s: 7 s, and whoever was begun by then has a
    token soon. Without a bound somebody waits until the overload ends.
    """
    results = run(mixed(24.0, 0.0), waiting())
    assert len(results) == len(list(mixed(24.0, 0.0)))
    assert max(map(waited_s, results)) < 2.0 + LONGEST_S + BEGUN_S
    assert max(map(waited_s, run(mixed(24.0, 0.0), waiting(math.inf)))) > 40.0
    ended = displaced(results)
    assert len(ended) > 50
    for finished in ended:
        assert finished.detail == "there was no time for it until 5 s after its deadline"
        assert finished.relegated
        assert (finished.output_tokens, finished.timings.ttft_met) == (0, False)


def test_best_effort_beyond_what_is_left_over_is_told_when_it_comes() -> None:
    """0.8 times what can be done is urgent, and 0.6 times patient: two of three patient ones have
    no time, and most of those hear so at once, with the wait that was predicted.
    """
    results = run(mixed(13.5, 10.0, 120.0), waiting())
    told = refused(results)
    assert len(told) > 50
    assert len(displaced(results)) < len(told) / 2
    for result in told:
        assert result.request.targets == BEST_EFFORT
        assert result.error.startswith("best effort would wait ")
        assert result.error.endswith(" s, and may wait 5 s")
    assert max(map(waited_s, results)) < 2.0 + LONGEST_S + BEGUN_S
    served = [r for r in results if len(r.token_at) and r.request.targets == BEST_EFFORT]
    assert len(served) > 0.2 * 120 * 10.0


def test_who_tries_again_when_it_was_told_to_is_let_in() -> None:
    """Best effort for 10 s, and nobody may wait for more than one: with nothing else coming there
    is room when the time is over.
    """
    driver = Driver(make_scheduler(niyama=NiyamaConfig(longest_wait_s=1.0)))
    asked = Estimate(10, 5, BEST_EFFORT)
    for i in range(10):
        driver.submit(make_request(f"r{i}", 1000, 1))
    expected = driver.scheduler.estimate(asked, driver.now)
    assert expected.refusal
    assert expected.retry_s > 0
    retry_at = driver.now + expected.retry_s
    while driver.now < retry_at:
        driver.step()
    told = driver.scheduler.estimate(asked, driver.now)
    assert (told.refusal, told.retry_s) == ("", 0.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(("niyama", "edf-reject", "edf")),
    st.lists(st.tuples(st.integers(1, 3000), st.sampled_from(TARGETS), st.integers(0, 3))),
)
def test_when_to_try_again_is_never_before_now(
    policy: str, asked: list[tuple[int, Targets, int]]
) -> None:
    """And it is told of those alone who are refused, or have waited too long."""
    driver = Driver(make_scheduler(policy, niyama=NiyamaConfig(longest_wait_s=0.5)))
    for i, (prompt, targets, steps) in enumerate(asked):
        expected = driver.scheduler.estimate(Estimate(prompt, 5, targets), driver.now)
        assert 0 <= expected.retry_s < math.inf
        assert bool(expected.retry_s) <= bool(expected.refusal)
        driver.submit(make_request(f"r{i}", prompt, 5, at=driver.now, targets=targets))
        for _ in range(steps):
            driver.step()
    driver.drain()
    for story in driver.stories.values():
        assert story.finished is not None
        is_told = story.finished.reason in (FinishReason.REJECTED, FinishReason.DISPLACED)
        assert 0 <= story.finished.retry_s <= (math.inf if is_told else 0)


def test_the_completions_of_a_call_are_let_in_as_its_first_is() -> None:
    """They wait for each other, which is nothing that the call could have spared. An estimate is
    told what a call would be.
    """
    scheduler = make_scheduler(niyama=NiyamaConfig(longest_wait_s=1e-9))
    idle, late = (Estimate(10, 5, targets) for targets in (BEST_EFFORT, URGENT))
    assert scheduler.estimate(idle, 0.0).refusal == ""
    for name, is_let_in in (("a", True), ("b", False)):
        for i in range(3):
            (event,) = scheduler.submit(make_request(key_of("x", name, i)), 0.0)
            assert isinstance(event, Accepted) == is_let_in
    (event,) = scheduler.submit(make_request("a"), 0.0)
    assert isinstance(event, Finished)
    assert scheduler.estimate(idle, 0.0).refusal == event.detail
    assert scheduler.estimate(late, 0.0).refusal == ""


def test_without_an_overload_nobody_hears_of_it() -> None:
    results = run(mixed(10.0, 4.0), waiting())
    assert not refused(results)
    assert not displaced(results)


def test_what_was_relegated_long_before_its_deadline_waits_until_then() -> None:
    """It is relegated within the first seconds, for requests with as long a deadline; when the
    others have left there is time for it, long after LONGEST_S.
    """
    replica = waiting()
    others = [
        make_request(f"o{i}", 1000, 5, 0.0, deadline(20.0), application="a") for i in range(200)
    ]
    long = make_request("long", 12_000, 5, 0.0, deadline(20.0), application="a")
    results = {r.request.id: r for r in run([*others, long], replica)}
    assert results["long"].relegated
    assert waited_s(results["long"]) > LONGEST_S + 1.0
    assert len(results["long"].token_at) == 5


def test_the_record_says_why() -> None:
    replica = waiting()
    results = run(mixed(24.0, 0.0), replica)
    name = displaced(results)[-1].request_id
    summary = told(replica.scheduler.explain(name))
    assert summary.startswith("Refused after 7")
    assert "there was no time for it until 5 s after its deadline" in summary


ASKED = st.tuples(st.integers(1, 600), st.integers(1, 20), st.sampled_from(TARGETS))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(ASKED, min_size=5, max_size=40), st.integers(0, 100), st.sampled_from((0.0, 0.5)))
def test_the_bound_is_kept_whatever_comes(
    asked: list[tuple[int, int, object]], gap_ms: int, ahead: float
) -> None:
    """Overloads of 1 to 10 times, in a memory that seldom suffices: whoever has no token has ended
    by LONGEST_S after its deadline, or its arrival with best effort, and whoever was begun ends
    complete.
    """
    longest_s, rng = 0.5, random.Random(0)
    config = NiyamaConfig(longest_wait_s=longest_s)
    driver = Driver(make_scheduler(num_pages=200, page_size=4, context_len=700, niyama=config))
    for i, (prompt, output, targets) in enumerate(asked):
        driver.submit(
            make_request(f"r{i}", prompt, output, at=driver.now, targets=targets)  # type: ignore[arg-type] # drawn from TARGETS
        )
        until = driver.now + 1e-3 * gap_ms
        while driver.now < until and driver.in_flight:
            driver.step(ahead=rng.random() < ahead)
    driver.drain()
    for story in driver.stories.values():
        finished, request = story.finished, story.request
        assert finished is not None
        if story.started_at is None and finished.reason is not FinishReason.REJECTED:
            assert finished.reason is FinishReason.DISPLACED
            due_s = min(request.token_due_at(1) - request.arrived_at, 5.0)
            from_s = 0.0 if request.targets == BEST_EFFORT else due_s
            assert finished.timings.ttlt_s is not None
            assert finished.timings.ttlt_s <= from_s + longest_s + 2 * 0.066 + 40 * 1e-4
        elif story.started_at is not None:
            assert len(story.token_at) == request.sampling.max_tokens


# The account by hand


def test_the_wait_is_predicted_from_the_work_and_the_rate_at_which_it_is_done() -> None:
    """At a chunk of 1 the rate is that of the last 100 tokens: half of them come to half of the
    rate before, and as many of others' to nearly none, but for the share that is kept. Four
    fifths are counted on.
    """
    background = Background(0.1, 1, 60.0)
    mine, other = make_sequence("mine"), make_sequence("other")
    assert background.wait_s(EVERYBODY_ELSE) == 0.0
    background.add_relegated(mine, 3.0)
    assert background.wait_s(EVERYBODY_ELSE) == pytest.approx(3.75)
    background.launched([(other, 50)])
    assert background.wait_s(EVERYBODY_ELSE) == pytest.approx(7.5)
    background.launched([(other, 100)])
    assert background.wait_s(EVERYBODY_ELSE) == pytest.approx(30.0)
    background.launched([(mine, 100)])
    assert background.wait_s(EVERYBODY_ELSE) == pytest.approx(3.75)


def test_a_second_in_which_others_are_served_says_little_of_a_wait_of_ten_minutes() -> None:
    """At 10 ms a chunk the rate is that of the last 30 s, a twentieth of the longest wait."""
    background = Background(0.02, 64, 600.0, 0.01)
    mine, other = make_sequence("mine"), make_sequence("other")
    background.add_best_effort(mine, 12.0)
    background.launched([(other, 64)] * 100)
    assert background.wait_s(EVERYBODY_ELSE) == pytest.approx(12.0 / 0.8 / (1 - 100 / 3000))


def test_a_flood_of_another_share_makes_best_effort_wait_no_longer_than_its_turn() -> None:
    """The flood fills its 60 s; what comes of the other share starts beside the first of it."""
    background = Background(0.1, 64, 60.0)
    flood, other = Share("flood"), Share("other")
    for i in range(48):
        background.add_best_effort(make_sequence(f"f{i}", tenant="flood"), 1.0)
    assert background.wait_s(flood) == pytest.approx(60.0)
    assert background.wait_s(other) == pytest.approx(1.25)
    background.add_best_effort(make_sequence("o", tenant="other"), 1.0)
    assert background.wait_s(other) == pytest.approx(1.25 * 3)
    background.add_relegated(make_sequence("lost", tenant="flood"), 4.0)
    assert background.wait_s(other) == pytest.approx(1.25 * 7)


def test_estimate_answers_for_the_share_that_asks() -> None:
    replica = waiting(1.0)
    for i in range(20):
        replica.scheduler.submit(make_request(f"f{i}", 5000, 5, tenant="flood"), 0.0)
    asked = (Estimate(10, 5, BEST_EFFORT, share=Share(name)) for name in ("flood", "other"))
    flooding, other = (replica.scheduler.estimate(each, 0.0).refusal for each in asked)
    assert flooding
    assert not other


def test_overdue_is_who_has_waited_since_their_deadline_and_was_not_begun() -> None:
    background = Background(0.1, 64, 60.0)
    patient = make_sequence("patient", at=5.0)
    lost = make_sequence("lost", at=0.0, targets=deadline(10.0))
    begun = make_sequence("begun", at=0.0)
    background.add_best_effort(patient, 1.0)
    background.add_relegated(lost, 1.0)
    background.add_best_effort(begun, 1.0)
    background.launched([(begun, 10)])
    why = "there was no time for it within 60 s"
    why_lost = "there was no time for it until 60 s after its deadline"
    assert background.overdue(64.9) == []
    assert background.overdue(65.0) == [(patient, why)]
    assert background.overdue(70.0) == [(patient, why), (lost, why_lost)]
    background.remove(patient)
    assert background.overdue(1e9) == [(lost, why_lost)]


def test_what_was_begun_before_it_was_relegated_goes_on_before_others_of_its_rank() -> None:
    background, queue = Background(0.1, 64, 60.0), SequenceQueue()
    old = make_sequence("old", at=1.0, targets=deadline(1.0))
    begun = make_sequence("begun", at=2.0, targets=deadline(1.0))
    begun.prefill(5, 2.0)
    for sequence in (old, begun):
        queue.add(sequence, background.add_relegated(sequence, 1.0))
    assert list(background.order(queue)) == [begun, old]


def test_whose_first_token_is_in_flight_has_been_begun() -> None:
    """It loses its pages before that token is there."""
    background = Background(0.02, 64, LONGEST_S)
    sequence = make_sequence(targets=interactive(1.0, 0.1))
    sequence.expect_token(0.5)
    sequence.preempt()
    background.add_relegated(sequence, 1.0)
    assert background.overdue(1e9) == []
