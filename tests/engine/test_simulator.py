"""Virtual time: the real scheduler under a cost function; instants are exact in binary."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.deciding.plan import Plan, Work
from engine.deciding.policies import POLICIES
from engine.deciding.request import Request, Sampling
from engine.deciding.sequence import FinishReason
from engine.simulator import (
    STOP,
    Arrival,
    Refusal,
    Replica,
    Result,
    simulate,
)
from tests.engine.deciding.parts import TARGETS, make_request, make_scheduler

TICK = 1 / 1024  # sums of these are exact in floating point


def cost(work: Work) -> float:
    """A tick for the iteration, and one for each token."""
    return TICK * (1 + work.num_tokens)


def make_replica(index: int = 0, policy: str = "niyama", **changes: object) -> Replica:
    """Memory for few: 40 pages of 16."""
    config = {"num_pages": 40, "context_len": 640, "chunk_size": 64, **changes}
    return Replica(index, make_scheduler(policy, **config), cost)  # type: ignore[arg-type] # any field


def make_arrivals(seed: int = 0, count: int = 60, **arrival: float) -> Iterator[Arrival]:
    """Arrivals about as fast as one replica serves."""
    rng, at = random.Random(seed), 0.0
    for i in range(count):
        at += TICK * rng.randint(0, 150)
        prompt = range(1000 * i, 1000 * i + rng.randint(1, 200))
        request = make_request(f"r{i}", prompt, rng.randint(1, 20), at, rng.choice(TARGETS))
        yield Arrival(request, **arrival)  # type: ignore[arg-type] # leaves_after or timeout_s


def run(policy: str, seed: int) -> list[Result]:
    replicas = [make_replica(0, policy), make_replica(1, policy)]
    return list(simulate(make_arrivals(seed, 40), replicas, fewest_in_flight))


def fewest_in_flight(replicas: list[Replica], request: Request) -> Replica:
    return min(replicas, key=lambda replica: replica.num_in_flight)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_repeats_exactly_from_its_seed(policy: str) -> None:
    once = run(policy, 1)
    assert once == run(policy, 1)
    assert once != run(policy, 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_littles_law_holds_exactly_for_a_run_that_starts_and_ends_empty(policy: str) -> None:
    """The integral of how many are in the system equals the sum of how long each was there. The
    first is taken from the scheduler, iteration by iteration; before its admission (at the end of
    the iteration it arrived in) a call waits outside, as does one that is then turned away.
    """
    replica = make_replica(policy=policy)
    inside = 0.0

    def observe(replica: Replica, plan: Plan) -> None:
        nonlocal inside
        stats = replica.scheduler.stats()
        assert stats.num_waiting + stats.num_running == replica.num_in_flight
        inside += replica.num_in_flight * cost(plan.work)

    results = list(simulate(make_arrivals(), [replica], observe=observe))
    outside = sum(admitted_at(replica, o) - o.request.arrived_at for o in results)
    sojourns = [o.ended_at - o.request.arrived_at for o in results if o.ended_at is not None]
    assert len(results) == len(sojourns) == 60
    assert inside + outside == sum(sojourns)
    assert replica.num_in_flight == 0


def admitted_at(replica: Replica, result: Result) -> float:
    timeline = replica.scheduler.explain(result.request.id)
    return timeline.decisions[0].at


@pytest.mark.parametrize("policy", POLICIES)
def test_no_call_is_lost_whatever_becomes_of_it(policy: str) -> None:
    """Some hang up, some time out, some meet a full queue, one never fits; the rest is served."""
    replica = make_replica(policy=policy)
    replica.max_requests = 12
    rng = random.Random(3)
    arrivals = [
        arrival._replace(
            leaves_after=rng.choice((None, None, 1, 3)),
            timeout_s=rng.choice((None, None, 0.05, 1.0)),
        )
        for arrival in make_arrivals(count=150)
    ]
    arrivals.append(Arrival(make_request("too long", 640, 1, at=1000.0)))
    results = list(simulate(arrivals, [replica]))
    assert Counter(o.request.id for o in results) == Counter(c.request.id for c in arrivals)
    ends = Counter(o.finished.reason if o.finished else o.refusal for o in results)
    assert ends[Refusal.INVALID] == 1
    reasons = (FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.TIMEOUT)
    assert all(ends[end] > 5 for end in reasons)
    refusal = Refusal.REJECTED if policy == "edf-reject" else Refusal.QUEUE_FULL
    # Of these arrivals fewer find the queue full under qoserve: four.
    assert ends[refusal] > (3 if policy == "qoserve" else 5)
    assert replica.scheduler.stats().pages_free == 40
    for result in results:
        check_end(next(c for c in arrivals if c.request is result.request), result)


def check_end(arrival: Arrival, result: Result) -> None:
    finished, count = result.finished, len(result.token_at)
    if finished is None:
        assert count == 0
        return
    assert result.ended_at is not None
    assert finished.output_tokens == count
    if finished.reason is FinishReason.LENGTH:
        assert count == arrival.request.sampling.max_tokens
    elif finished.reason is FinishReason.CANCELLED:
        assert count == arrival.leaves_after, "it hangs up with the token it waited for"
        assert result.ended_at == result.token_at[-1]
    else:
        assert arrival.timeout_s is not None
        assert result.ended_at >= arrival.request.arrived_at + arrival.timeout_s


def test_token_instants_are_the_ends_of_the_iterations_that_made_them() -> None:
    """And the timings of `Finished` agree with them, for streams with holes (preempted) as well."""
    made: dict[str, list[float]] = {}

    def observe(replica: Replica, plan: Plan) -> None:
        for sequence in plan.sampling:
            made.setdefault(sequence.id, []).append(replica.now + cost(plan.work))

    replica = make_replica(policy="fcfs", num_pages=56, page_size=4, context_len=224)
    results = list(simulate(make_arrivals(4), [replica], observe=observe))
    assert replica.scheduler.stats().totals.num_preemptions > 0
    assert {o.request.id: o.token_at for o in results} == {
        k: array("d", v) for k, v in made.items()
    }
    for result in results:
        assert result.finished is not None
        timings, arrived = result.finished.timings, result.request.arrived_at
        assert timings.ttft_s == result.token_at[0] - arrived
        assert timings.ttlt_s == result.token_at[-1] - arrived


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", [4, 5])
def test_an_output_that_ends_by_itself_has_its_length(policy: str, seed: int) -> None:
    """Whatever interrupts it: here sequences are preempted, some hang up, some time out. Nothing is
    kept of whoever has ended.
    """
    replica = make_replica(policy=policy, num_pages=56, page_size=4, context_len=224)
    rng, arrivals = random.Random(seed), []
    for arrival in make_arrivals(seed, 80):
        request, length = arrival.request, arrival.request.sampling.max_tokens
        sampling = Sampling(max_tokens=length + 3, stop_token_ids=frozenset([STOP]))
        arrivals.append(
            Arrival(
                replace(request, sampling=sampling),
                rng.choice((None, None, 3)),
                rng.choice((None, None, 1.0)),
                length,
            )
        )
    reasons = Counter()
    for result in simulate(arrivals, [replica]):
        arrival = next(each for each in arrivals if each.request is result.request)
        if result.finished is not None:
            reasons[result.finished.reason] += 1
            if result.finished.reason is FinishReason.STOP:
                assert len(result.token_at) == arrival.output_len
                assert result.token_at[-1] == result.ended_at
        assert list(result.token_at) == sorted(set(result.token_at))
    assert reasons[FinishReason.STOP] > 20
    assert FinishReason.LENGTH not in reasons
    assert replica.num_in_flight == 0
    assert not replica._output_len


def test_one_request_by_hand() -> None:
    """Prompt 10 and 3 tokens on an idle engine that jumps to its arrival at 5 s: 11 ticks for the
    prefill, then twice 2 ticks.
    """
    (result,) = simulate([Arrival(make_request("r", 10, 3, at=5.0))], [make_replica()])
    assert result.token_at == array("d", [5.0 + TICK * n for n in (11, 13, 15)])
    assert result.ended_at == result.token_at[-1]
    assert result.finished is not None
    assert result.finished.timings.queue_s == 0.0


def test_what_goes_on_after_the_drain_is_told_as_it_is_then() -> None:
    """11 ticks for the first token, 2 for each further, whose iterations start at 11, 13, ... 99:
    45 within 100 ticks of the arrival.
    """
    arrivals = [Arrival(make_request("short", 10, 3)), Arrival(make_request("long", 10, 500))]
    ends = {o.request.id: o for o in simulate(arrivals[1:], [make_replica()], drain_s=100 * TICK)}
    going_on = ends["long"]
    assert (going_on.finished, going_on.ended_at, going_on.refusal) == (None, None, None)
    assert len(going_on.token_at) == 1 + 45
    both = list(simulate(arrivals, [make_replica()], drain_s=200 * TICK))
    assert [(o.request.id, o.finished is None) for o in both] == [("short", False), ("long", True)]
