"""Above 1 is overload, on any machine and whatever is asked for; and below it there is none."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.entries import Unserved
from engine.deciding.flow import LEAST_S, STEP_S, WINDOW_S, Flow
from engine.deciding.outcome import Fate
from engine.deciding.request import BEST_EFFORT, Request, Targets
from engine.simulator import Arrival, simulate
from tests.engine.deciding.parts import (
    interactive,
    make_replica,
    make_request,
    make_scheduler,
    poisson,
)

URGENT = interactive(2.0, 0.1)


@settings(max_examples=20)
@given(st.floats(0.2, 5.0), st.floats(0.3, 3.0))
def test_an_engine_that_never_rests_tells_how_much_more_is_asked_for(
    more: float, length: float
) -> None:
    """`more` times what can be done arrives, and a predicted second takes `length`."""
    flow = Flow()
    for second in range(140):
        flow.arrived(1000, more / length, 0.0, 0.0, float(second))
        flow.done(round(1000 / more), 0, 1.0)
    assert flow.ratio(140.0) == pytest.approx(more, rel=0.05)


def test_a_first_request_is_no_overload_and_what_came_long_ago_no_demand() -> None:
    flow = Flow()
    assert flow.ratio(100.0) == 0.0
    flow.arrived(100, 2.0, 0.0, 0.0, 100.0)
    assert flow.ratio(100.001) == pytest.approx(2.0 / LEAST_S)
    assert flow.ratio(140.0) == pytest.approx(2.0 / 40.0)
    assert flow.ratio(100.0 + WINDOW_S + STEP_S) == 0.0


def test_tokens_that_are_lost_again_count_as_not_done() -> None:
    def ratio(lost: int) -> float:
        flow = Flow()
        for second in range(140):
            flow.arrived(100, 1.0, 0.0, 0.0, float(second))
            flow.done(100 - lost, 0, 1.0)
        return flow.ratio(140.0)

    assert ratio(0) == pytest.approx(1.0, rel=0.02)
    assert ratio(50) == pytest.approx(2.0, rel=0.05)


def test_what_is_refused_has_been_asked_for() -> None:
    """By a front end, told one by one or a flood as one, and by the policy."""
    scheduler = make_scheduler("edf-reject")

    def after(ask: Callable[[Request], object]) -> float:
        ask(make_request("r", 500, 20, 0.0, interactive(1e-6, 1e-6)))
        return scheduler.flow.ratio(0.0)

    refused = after(lambda request: scheduler.submit(request, 0.0))
    assert not scheduler.roster.sequences
    assert refused == pytest.approx(0.5 / LEAST_S, rel=0.1)  # 1 ms for each prompt token
    one = after(lambda request: scheduler.unserved(Unserved(request, Fate.REFUSED, "queue_full")))
    assert one == pytest.approx(2 * refused)
    flood = Unserved(make_request("f", 500, 20), Fate.REFUSED, "queue_full", num_calls=8)
    scheduler.unserved(flood)
    assert scheduler.flow.ratio(0.0) == pytest.approx(10 * refused)


def requests(rate: float, output: int, targets: Targets) -> Iterator[Request]:
    rng = random.Random(0)
    for i, at in enumerate(poisson(rate, 60.0, rng)):
        yield make_request(f"r{i}", rng.randint(200, 800), output, at, targets)


def told(rate: float, output: int, targets: Targets, **limits: object) -> float:
    """What an engine says after a minute of that many requests per second."""
    replica = make_replica(**limits)  # type: ignore[arg-type] # any field of SchedulerConfig
    arrivals = map(Arrival, requests(rate, output, targets))
    for _ in simulate(arrivals, [replica]):
        if replica.now >= 59.0:
            break
    return replica.scheduler.flow.ratio(replica.now)


@pytest.mark.parametrize(
    ("capacity", "output", "targets", "limits"),
    [
        (17.0, 20, URGENT, {}),  # prefills load it, between streams that have a pace
        (19.0, 5, BEST_EFFORT, {}),
        (3.4, 100, URGENT, {"max_batch_size": 8}),  # decodes do, most of it fixed costs
    ],
)
def test_the_simulated_a100_is_told_to_be_overloaded_when_it_is(
    capacity: float, output: int, targets: Targets, limits: dict[str, object]
) -> None:
    assert 0.3 < told(0.5 * capacity, output, targets, **limits) < 0.8
    assert 1.5 < told(2.0 * capacity, output, targets, **limits) < 2.5
