"""Best effort and the relegated: what the others leave over, and how it is shared. Under MILLI, a
chunk of n tokens takes n + 1 ms, and one of 64 saturates."""

from __future__ import annotations

import pytest

from engine.deciding.background import FairShares
from engine.deciding.plan import Accepted
from engine.deciding.request import Share
from tests.engine.deciding.parts import (
    Driver,
    deadline,
    interactive,
    make_request,
    make_scheduler,
    make_sequence,
)


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


def test_shares_of_the_past_are_forgotten() -> None:
    shares = FairShares()
    for i in range(50):
        sequence = make_sequence(f"r{i}")
        shares.add(sequence, Share(f"tenant-{i}"), 1.0)
        shares.serve(sequence)
        shares.remove(sequence)
    assert len(shares) == 0


def test_a_ttft_that_nobody_could_meet_does_not_shorten_the_iterations_of_all() -> None:
    """A tenth of the shortest TTFT bounds an iteration: of 10 us, that would be a token at a time
    where 64 fit, ten iterations for 640 tokens."""
    driver = Driver(make_scheduler(prefix_caching=False))
    driver.submit(make_request("lost", prompt=10, output=1, targets=interactive(1e-5, 1e-6)))
    driver.submit(make_request("long", prompt=640, output=1, targets=deadline(60.0)))
    driver.drain()
    assert driver.scheduler.totals.num_iterations <= 12
