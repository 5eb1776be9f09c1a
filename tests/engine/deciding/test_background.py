"""Best effort and the relegated: what the others leave over, and how it is shared. Under MILLI, a
chunk of n tokens takes n + 1 ms, and one of 64 saturates: an iteration has one prompt of CHUNK.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.background import Background, FairShares
from engine.deciding.plan import Accepted
from engine.deciding.policy import BEST_EFFORT_RANK, RELEGATED_RANK
from engine.deciding.queue import SequenceQueue
from engine.deciding.request import EVERYBODY_ELSE, Share
from engine.deciding.sequence import Sequence
from tests.engine.deciding.parts import (
    Driver,
    deadline,
    make_request,
    make_scheduler,
    make_sequence,
)

CHUNK = 64


def test_a_flood_of_best_effort_cannot_keep_a_relegated_request_from_its_end() -> None:
    """Each iteration has room for one of the flood, and each brings another."""
    driver = Driver(make_scheduler(prefix_caching=False))
    for i in range(3):
        driver.submit(make_request(f"before-{i}", prompt=64, output=1))
    driver.submit(make_request("lost", prompt=64, output=1, at=driver.now, targets=deadline(1e-5)))
    for i in range(6):
        driver.step()
        driver.submit(make_request(f"after-{i}", prompt=64, output=1, at=driver.now))
    finished = driver.stories["lost"].finished
    assert finished is not None
    assert finished.relegated
    assert driver.stories["after-5"].finished is None, "the flood was never served up"


def test_a_flood_of_lost_requests_cannot_keep_best_effort_from_its_end() -> None:
    driver = Driver(make_scheduler(prefix_caching=False))
    for i in range(3):
        driver.submit(make_request(f"lost-{i}", prompt=64, output=1, targets=deadline(1e-5)))
    driver.submit(make_request("calm", prompt=64, output=1))
    for i in range(6):
        driver.step()
        late = deadline(1e-5)
        driver.submit(make_request(f"more-{i}", prompt=64, output=1, at=driver.now, targets=late))
    assert driver.stories["calm"].finished is not None
    assert driver.stories["more-5"].finished is None


def test_a_request_that_was_taken_back_is_forecast_as_kept_and_still_says_it_was_relegated() -> (
    None
):
    """Five times 102 ms of prefill cannot be done by 450 ms; when the others leave, one can."""
    driver = Driver(make_scheduler(prefix_caching=False))
    for i in range(5):
        driver.submit(make_request(f"r{i}", prompt=100, output=2, targets=deadline(0.45)))
    driver.step()
    gone = [name for name, story in driver.stories.items() if story.relegations]
    assert gone
    for name in driver.in_flight:
        if name != gone[0]:
            driver.cancel(name)
    driver.drain()
    timeline = driver.scheduler.explain(gone[0])
    (restored,) = [d for d in timeline.decisions if d.kind == "restored"]
    assert restored.values["ahead_s"] == pytest.approx(0.0)
    finished = driver.stories[gone[0]].finished
    assert finished is not None
    assert (finished.relegated, finished.timings.ttlt_met) == (True, True)


def test_a_best_effort_request_does_not_wait_for_itself() -> None:
    """On an idle engine: 11 ms of prefill, and half an iteration of a decode alone."""
    (accepted,) = make_scheduler(prefix_caching=False).submit(make_request(prompt=10), 0.0)
    assert isinstance(accepted, Accepted)
    assert accepted.predicted_ttft_s == pytest.approx(0.011 + 0.0011 / 2)


def test_best_effort_is_shared_fairly_among_tenants() -> None:
    """Ten requests of one tenant wait; the one of another comes second, not eleventh."""
    driver = Driver(make_scheduler())
    for i in range(10):
        driver.submit(make_request(f"many{i}", CHUNK, 1, tenant="many"))
    driver.submit(make_request("one", CHUNK, 1, tenant="one"))
    driver.drain()
    order = sorted(driver.stories, key=lambda name: driver.stories[name].token_at[0])
    assert order.index("one") <= 1


def test_invented_tenants_take_turns_as_one() -> None:
    """Sixty requests, each of another name, wait; a named tenant's comes second, not last."""
    driver = Driver(make_scheduler())
    for i in range(60):
        request = make_request(f"i{i}", CHUNK, 1, tenant=f"invented-{i}", share=EVERYBODY_ELSE)
        driver.submit(request)
    for i in range(3):
        driver.submit(make_request(f"named{i}", CHUNK, 1, tenant="acme"))
    driver.drain()
    order = sorted(driver.stories, key=lambda name: driver.stories[name].token_at[0])
    assert max(order.index(f"named{i}") for i in range(3)) <= 6


def test_a_share_of_twice_the_weight_has_two_turns_to_one() -> None:
    driver = Driver(make_scheduler())
    for i in range(12):
        driver.submit(make_request(f"one{i}", CHUNK, 1, tenant="one"))
        driver.submit(make_request(f"two{i}", CHUNK, 1, tenant="two", share=Share("two", 2.0)))
    driver.drain()
    order = sorted(driver.stories, key=lambda name: driver.stories[name].token_at[0])
    assert sum(name.startswith("two") for name in order[:12]) == 8


def test_a_changed_weight_gives_no_second_turn() -> None:
    """Of as many turns each, though half of one tenant's requests came before the change."""
    driver = Driver(make_scheduler())
    for i in range(8):
        driver.submit(make_request(f"before{i}", CHUNK, 1, tenant="changed"))
    changed = Share("changed", 1.01)
    for i in range(8):
        driver.submit(make_request(f"after{i}", CHUNK, 1, tenant="changed", share=changed))
        driver.submit(make_request(f"other{i}", CHUNK, 1, tenant="other"))
    driver.drain()
    order = sorted(driver.stories, key=lambda name: driver.stories[name].token_at[0])
    assert sum(name.startswith("other") for name in order[:12]) == 6


# The account and the shares, without a policy or a scheduler


def starts(shares: FairShares, *requests: tuple[str, Share, float]) -> list[float]:
    """Where each (name, share, work) starts in virtual time, entered one after the other."""
    return [shares.add(make_sequence(name), share, work_s) for name, share, work_s in requests]


def test_start_times_by_hand() -> None:
    """Requests of one share follow each other, at half the distance where the weight is two."""
    one, two = Share("one"), Share("two", 2.0)
    shares = FairShares()
    assert starts(shares, ("a", one, 3.0), ("b", one, 1.0), ("c", one, 1.0)) == [0.0, 3.0, 4.0]
    assert starts(shares, ("d", two, 3.0), ("e", two, 1.0), ("f", two, 1.0)) == [0.0, 1.5, 2.0]


def test_an_idle_share_has_saved_nothing() -> None:
    """While one is served up to 4.0 the other asks for nothing: it starts there, not at 0."""
    one, idle = Share("one"), Share("idle")
    shares = FairShares()
    first, second = make_sequence("first"), make_sequence("second")
    shares.add(first, one, 4.0)
    shares.add(second, one, 4.0)
    shares.serve(first)
    shares.remove(first)
    shares.serve(second)
    assert starts(shares, ("late", idle, 1.0)) == [4.0]


def test_shares_of_the_past_are_forgotten() -> None:
    background = Background(0.02, 64)
    for i in range(50):
        sequence = make_sequence(f"r{i}", share=Share(f"tenant-{i}"))
        background.add_best_effort(sequence, 1.0)
        background.launched([(sequence, 64)])
        background.remove(sequence)
    assert len(background.fair_shares) == 0


def test_the_background_earns_its_share_while_it_waits_and_pays_for_what_it_gets() -> None:
    """An eighth of each of 64 tokens: after eight chunks of others it has earned its own."""
    background = Background(0.125, 64)
    mine, other = make_sequence("mine"), make_sequence("other")
    background.launched([(other, 1000)])
    assert not background.is_due, "nobody waited"
    background.add_relegated(mine, 1.0)
    for _ in range(7):
        background.launched([(other, 64)])
        assert not background.is_due
    background.launched([(other, 64)])
    assert background.is_due
    background.launched([(mine, 1)])
    assert not background.is_due


OPERATION = st.tuples(st.integers(0, 7), st.integers(1, 9).map(float), st.booleans())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(OPERATION, max_size=40))
def test_the_sum_of_work_is_that_of_all_who_wait_whatever_came_before(
    operations: list[tuple[int, float, bool]],
) -> None:
    """Adds who is absent, to best effort or to the relegated; changes the work of who is present,
    or removes them.
    """
    background = Background(0.02, 64)
    sequences = [make_sequence(f"r{i}", share=Share(f"share{i % 3}")) for i in range(8)]
    works: dict[Sequence, float] = {}
    stranger = make_sequence("stranger")
    for number, work_s, is_relegated in operations:
        sequence = sequences[number]
        if sequence not in works:
            add = background.add_relegated if is_relegated else background.add_best_effort
            rank, _ = add(sequence, work_s)
            assert rank == (RELEGATED_RANK if is_relegated else BEST_EFFORT_RANK)
            works[sequence] = work_s
        elif work_s < 5:
            _, value = background.set_work(sequence, work_s)
            assert value == -math.inf, "what has begun goes on"
            works[sequence] = work_s
        else:
            background.remove(sequence)
            del works[sequence]
        assert background.others_s(stranger) == sum(works.values())
        for each in sequences:
            assert (each in background) == (each in works)
            others = sum(work for s, work in works.items() if s is not each)
            assert background.others_s(each) == others
    for sequence in works:
        background.remove(sequence)
    assert len(background.fair_shares) == 0


def test_of_best_effort_and_relegated_the_older_goes_first_and_what_has_begun_before_all() -> None:
    background, queue = Background(0.02, 64), SequenceQueue()
    calm, lost, newer = (make_sequence(n, at=at) for n, at in (("c", 2.0), ("l", 1.0), ("n", 3.0)))
    queue.add(calm, background.add_best_effort(calm, 1.0))
    queue.add(lost, background.add_relegated(lost, 1.0))
    queue.add(newer, background.add_relegated(newer, 1.0))
    assert list(background.order(queue)) == [lost, calm, newer]
    assert background.first(queue) is lost
    newer.prefill(5, 3.0)
    queue.rekey(newer, background.set_work(newer, 0.5))
    assert list(background.order(queue)) == [newer, lost, calm]
    assert background.first(queue) is newer
