"""The deciding rule of each rival, by hand: 1 ms for an iteration, 1 ms more for each prompt token,
0.1 ms for each decode.
"""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.demand import Demand
from engine.deciding.history import OutputLengths
from engine.deciding.latency import UNBOUNDED, LatencyModel, LatencyProfile, Segment
from engine.deciding.pace import PaceConfig
from engine.deciding.plan import Accepted, Finished
from engine.deciding.policy import KEPT_RANK, RELEGATED_RANK, MoveKind, Policy
from engine.deciding.queue import SequenceQueue
from engine.deciding.request import Importance, Targets
from engine.deciding.rivals.edf import DynamicEdf, RejectingEdf
from engine.deciding.rivals.fairbatching import MOST_PAUSE_S, FairBatching
from engine.deciding.rivals.qoserve import HIGH_LOAD_ALPHA, LOW_LOAD_ALPHA, QoServe
from engine.deciding.rivals.slidingserve import SlidingServe, knapsack
from engine.deciding.sequence import FinishReason, Sequence
from engine.deciding.story import summary as told
from engine.deciding.streams import Streams
from engine.simulator import Arrival, Refusal, simulate
from tests.engine.deciding.parts import (
    Driver,
    deadline,
    decodes_only,
    interactive,
    make_replica,
    make_request,
    make_scheduler,
    make_sequence,
    make_stream,
)

LARGEST = 1000  # tokens of a chunk
LATENCY = LatencyProfile(
    "milli", (Segment(UNBOUNDED, base=1e-3, prefill=1e-3, decode=1e-4),), max_chunk=LARGEST
)
CHAT = interactive(0.5, 0.05)


def parts(profile: LatencyProfile = LATENCY) -> tuple[LatencyModel, Demand]:
    latency = LatencyModel(profile)
    return latency, Demand(latency, OutputLengths(0.0), LARGEST)


def edf(kind: type[DynamicEdf]) -> DynamicEdf:
    latency, demand = parts()
    return kind(PaceConfig(), latency, demand, max_held_pages=100)


def room(policy: Policy, decodes: list[Sequence], prompt: int, now: float = 0.0) -> int:
    """How much of a prompt joins these decodes, once those that sit out do."""
    work = decodes_only(decodes)
    policy.begin(Streams(decodes), work, now)
    return policy.room(work, make_sequence("new", prompt=prompt))


def held(policy: Policy, running: list[Sequence]) -> list[Sequence]:
    """Who sits an iteration at 0 out."""
    return policy.hold(Streams(running), decodes_only(running), 0.0)


def waiting(name: str = "r", **of_request: object) -> Sequence:
    return make_sequence(name, **of_request)


# All that relegate by a sequence's own work


@pytest.mark.parametrize("make", [QoServe, SlidingServe, lambda *_: edf(RejectingEdf)])
def test_who_could_not_be_on_time_alone_is_relegated_at_that_instant(make: type[QoServe]) -> None:
    """A prompt of 10 takes 11 ms: to be on time by 50 ms it must begin by 39 ms."""
    policy = make(*parts())
    sequence = waiting(targets=interactive(0.05, 0.05))
    policy.enter(sequence, 0.0)
    assert policy.review(0.0389) == []
    (move,) = policy.review(0.0391)
    assert (move.sequence, move.kind, move.key[0]) == (sequence, MoveKind.RELEGATE, RELEGATED_RANK)
    assert policy.review(1.0) == []
    policy.leave(sequence)


def test_with_a_ttlt_the_output_must_fit_as_well() -> None:
    """Besides 11 ms, four more tokens at 1.1 ms each: 15.4 ms."""
    policy = QoServe(*parts())
    policy.enter(waiting(targets=deadline(0.05), output=5), 0.0)
    assert policy.review(0.0345) == []
    assert len(policy.review(0.0347)) == 1


def test_best_effort_is_never_relegated() -> None:
    policy = QoServe(*parts())
    policy.enter(waiting(), 0.0)
    assert policy.review(1e9) == []


# QoServe


def test_qoserve_orders_by_deadline_and_tokens_left() -> None:
    """At 1 ms a token: 500 ms + 10; 500 ms + 10 + 5 of output; best effort last."""
    policy = QoServe(*parts())
    assert policy.enter(waiting("a", targets=CHAT), 0.0) == (KEPT_RANK, pytest.approx(0.510))
    assert policy.enter(waiting("b", targets=deadline(0.5)), 0.0) == (
        KEPT_RANK,
        pytest.approx(0.515),
    )
    assert policy.enter(waiting("c"), 0.0) == (KEPT_RANK, math.inf)


def test_qoserve_weighs_tokens_eight_times_as_much_under_high_load() -> None:
    """1,500 tokens are 1.5 s of work, a second such request makes it 3 s."""
    policy = QoServe(*parts())
    first, second = (waiting(n, prompt=1500, targets=deadline(60.0), output=1) for n in "ab")
    policy.enter(first, 0.0)
    assert policy.review(0.0) == []
    policy.enter(second, 0.0)
    moves = policy.review(0.0)
    assert policy.alpha == HIGH_LOAD_ALPHA == 8 * LOW_LOAD_ALPHA
    assert {m.kind for m in moves} == {MoveKind.REORDER}
    assert [m.key for m in moves] == [(KEPT_RANK, pytest.approx(60 + 0.008 * 1501))] * 2
    policy.leave(first)
    policy.leave(second)
    policy.review(0.0)
    assert policy.alpha == LOW_LOAD_ALPHA


def test_qoserve_relegates_low_importance_under_high_load_only() -> None:
    policy = QoServe(*parts())
    low = waiting("low", targets=deadline(60.0), importance=Importance.LOW)
    policy.enter(low, 0.0)
    assert policy.review(0.0) == []
    policy.enter(waiting("long", prompt=3100, targets=deadline(60.0)), 0.0)
    assert [m.sequence for m in policy.review(0.0) if m.kind is MoveKind.RELEGATE] == [low]
    assert all(m.kind is not MoveKind.RELEGATE for m in policy.review(0.0))


def test_qoserve_fills_the_tightest_slack_with_a_fifth_to_spare() -> None:
    """(1.1 ms + n) * 1.2 <= 360 ms: n is 298. A TTLT that is near limits too, one that has passed
    does not. Less than 128 tokens are never in an iteration with a chunk.
    """
    policy = QoServe(*parts())
    assert room(policy, [], 900) == 900
    assert room(policy, [make_stream(CHAT, due_at=0.36)], 900) == 298
    assert room(policy, [make_stream(deadline(0.36), due_at=0.36)], 900) == 298
    assert room(policy, [make_stream(deadline(0.36), due_at=-0.1)], 900) == 900
    assert room(policy, [make_stream(CHAT, due_at=0.03)], 900) == 127


def test_qoserve_counts_slack_from_a_late_first_token() -> None:
    """It came 0.2 s after its deadline, so that all others may come as much later."""
    late = make_stream(CHAT, due_at=0.16, last_token_at=0.31)  # whose first was due at 0.11
    assert room(QoServe(*parts()), [late], 900) == 298


# SlidingServe


def test_slidingserve_orders_by_urgency_in_steps_and_then_by_work() -> None:
    policy = SlidingServe(*parts())
    queue = SequenceQueue()
    for name, prompt, ttlt_s in (("long", 500, 31.0), ("short", 10, 59.0), ("later", 1, 65.0)):
        sequence = waiting(name, prompt=prompt, targets=deadline(ttlt_s))
        queue.add(sequence, policy.enter(sequence, 0.0))
    queue.add(effort := waiting("effort"), policy.enter(effort, 0.0))
    assert [s.id for s in policy.order(queue, 0.0)] == ["short", "long", "later", "effort"]


def test_slidingserve_picks_the_most_that_can_be_on_time() -> None:
    """Of 101.5, 51.5 and 51.5 ms of work (a decode's 0.5 ms included) the first two do not fit into
    the 120 ms to the second's deadline; the two shorter do.
    """
    policy = SlidingServe(*parts())
    queue = SequenceQueue()
    for name, prompt in (("long", 100), ("b", 50), ("c", 50)):
        sequence = waiting(name, prompt=prompt, targets=interactive(0.12, 0.05))
        policy.enter(sequence, 0.0)
        queue.add(sequence, (KEPT_RANK, 0.0))
    assert [s.id for s in policy.order(queue, 0.0)] == ["b", "long", "c"]
    assert [s.id for s in policy.order(queue, 10.0)] == ["long", "b", "c"]


@given(
    st.lists(st.integers(1, 40), max_size=8),
    st.integers(1, 64),
)
def test_no_choice_has_more_works_than_the_knapsack(works: list[int], limit: int) -> None:
    """Whole numbers, of which the limit is `units`: nothing is rounded."""
    chosen = knapsack([float(w) for w in works], float(limit), units=limit)
    assert chosen == sorted(set(chosen))
    assert sum(works[i] for i in chosen) <= limit
    sizes = range(len(works) + 1)
    fitting = [n for n in sizes for c in combinations(works, n) if sum(c) <= limit]
    assert len(chosen) == max(fitting)


def test_slidingserve_fills_the_slack_where_tokens_cost_the_same_everywhere() -> None:
    """1.1 ms + n <= 120 ms: n is 118, and both iterations together have what two slacks leave."""
    policy = SlidingServe(*parts())
    assert room(policy, [make_stream(CHAT, due_at=0.12)], 900) == 118
    assert room(policy, [], 900) == 900


def test_slidingserve_keeps_slack_for_a_larger_chunk_that_costs_less() -> None:
    """Beyond 100 tokens each costs half. With 80 ms to the next token and 180 to the one after it,
    78 tokens now leave 180 - 79.1 = 100.9 ms for 99 more; none now leave 178.9 for 255.
    """
    halves = LatencyProfile(
        "halves",
        (Segment(100, 1e-3, 1e-3, 1e-4), Segment(UNBOUNDED, 51e-3, 0.5e-3, 0.0)),
        max_chunk=LARGEST,
    )
    policy = SlidingServe(*parts(halves))
    stream = make_stream(interactive(0.5, 0.1), due_at=0.08)
    assert room(policy, [stream], 900) == 0


def test_slidingserve_does_not_starve_prompts_for_a_lost_stream() -> None:
    assert room(SlidingServe(*parts()), [make_stream(CHAT, due_at=-1.0)], 900) == 127


# FairBatching


def fair(prompt: int) -> FairBatching:
    """With a prompt that waits, if it has any tokens."""
    policy = FairBatching(*parts())
    if prompt:
        policy.enter(waiting("new", prompt=prompt, targets=CHAT), 0.0)
    return policy


def test_fairbatching_lets_streams_that_are_ahead_sit_out_for_prompts() -> None:
    """The tightest slack is 10 ms: urgent is who has less than 20. A prompt of 8 leaves 0.9 ms of
    it, and one of 7 enough for another decode.
    """
    tight, ahead = make_stream(CHAT, due_at=0.01), make_stream(CHAT, due_at=0.5)
    policy = fair(200)
    assert held(policy, [tight, ahead]) == [ahead]
    assert room(policy, [tight], 200) == 8
    assert held(fair(9), [tight, ahead]) == [ahead]
    assert held(fair(8), [tight, ahead]) == []
    assert held(fair(0), [tight, ahead]) == []


def test_fairbatching_keeps_urgent_streams_whatever_waits() -> None:
    tight, near = make_stream(CHAT, due_at=0.01), make_stream(CHAT, due_at=0.019)
    assert held(fair(900), [tight, near]) == []


def test_fairbatching_holds_nobody_right_after_a_hold_that_brought_no_prompt() -> None:
    """Memory may be what keeps the prompt waiting."""
    tight, ahead = make_stream(CHAT, due_at=0.01), make_stream(CHAT, due_at=0.5)
    policy = fair(200)
    assert held(policy, [tight, ahead]) == [ahead]
    policy.launched([])
    assert held(policy, [tight, ahead]) == []
    policy.launched([])
    assert held(policy, [tight, ahead]) == [ahead]


def test_fairbatching_pauses_a_stream_with_a_ttlt_only_so_long() -> None:
    """For 1 s before its deadline it would have the time, but its last token came long ago."""
    tight = make_stream(CHAT, due_at=0.01)
    fresh, old = (make_stream(deadline(9.0), 9.0, at) for at in (0.0, -MOST_PAUSE_S))
    assert held(fair(200), [tight, fresh]) == [fresh]
    assert held(fair(200), [tight, old]) == []


def test_fairbatching_takes_twice_what_decodes_need_where_all_streams_are_lost() -> None:
    """1.1 ms alone, so 2.2 ms: one token of a prompt."""
    lost = make_stream(CHAT, due_at=-1.0)
    policy = fair(200)
    assert held(policy, [lost]) == []
    assert room(policy, [lost], 200) == 1


# Earliest deadline first


def test_edf_dynamic_orders_by_deadline_alone_and_relegates_nobody() -> None:
    policy = edf(DynamicEdf)
    for name, prompt, targets in (("a", 900, CHAT), ("b", 1, deadline(0.6)), ("c", 1, Targets())):
        sequence = waiting(name, prompt=prompt, targets=targets)
        assert policy.enter(sequence, 0.0) == (KEPT_RANK, sequence.due_at)
    assert policy.review(1e9) == []


def test_edf_dynamic_lets_no_stream_come_late() -> None:
    """The next token is due in 120 ms, of which two TBTs stay in reserve: 1.1 ms + n <= 45 ms, as
    the reserve of 100 ms is not full beside it.
    """
    policy = edf(DynamicEdf)
    policy.enter(waiting("new", prompt=900, targets=CHAT), 0.0)
    assert room(policy, [make_stream(CHAT, due_at=0.12)], 900) == 43


def refusal(policy: DynamicEdf, targets: Targets) -> str:
    return policy.refusal(waiting("asking", targets=targets), 0.0)


def test_edf_reject_lets_in_who_fits_before_its_deadline() -> None:
    """A request is 11.5 ms of work, taken as 14.375. With a TTLT of 50 ms the prefill is due at
    50 + 0.5 - 5 * 1.1 = 45 ms: three fit, not a fourth, unless it is due later.
    """
    policy = edf(RejectingEdf)
    for name in "abc":
        assert refusal(policy, deadline(0.05)) == ""
        policy.enter(waiting(name, targets=deadline(0.05)), 0.0)
    assert refusal(policy, deadline(0.05)) == "it could not be on time"
    assert refusal(policy, deadline(0.07)) == ""
    assert refusal(policy, Targets()) == ""


def test_edf_reject_turns_away_who_would_make_others_late() -> None:
    """The one that waits is due at 25 ms and has 14.375 of work, so it may wait for 10.6 ms."""
    policy = edf(RejectingEdf)
    policy.enter(waiting("a", targets=deadline(0.03)), 0.0)
    assert refusal(policy, deadline(0.02)) == "others could not be on time any more"


def test_a_request_that_is_turned_away_ends_at_once() -> None:
    scheduler = make_scheduler("edf-reject")
    driver = Driver(scheduler)
    driver.submit(make_request("in", targets=deadline(1.0)))
    driver.submit(make_request("out", targets=deadline(0.001)))
    ended = driver.stories["out"].finished
    assert ended is not None
    assert (ended.reason, ended.timings.ttlt_met) == (FinishReason.REJECTED, False)
    summary = told(scheduler.explain("out"))
    assert summary == "Refused on arrival: it could not be on time."
    assert driver.in_flight == ["in"]
    driver.drain()


def test_a_turned_away_request_may_be_sent_again() -> None:
    scheduler = make_scheduler("edf-reject")
    (first,) = scheduler.submit(make_request(targets=deadline(0.001)), 0.0)
    (second,) = scheduler.submit(make_request(targets=deadline(1.0)), 0.0)
    assert isinstance(first, Finished)
    assert isinstance(second, Accepted)
    scheduler.check()


def test_in_a_simulation_it_is_refused() -> None:
    arrivals = [Arrival(make_request(targets=deadline(0.001)))]
    (result,) = simulate(arrivals, [make_replica("edf-reject")])
    assert (result.finished, result.refusal) == (None, Refusal.REJECTED)
    assert result.error == "it could not be on time"
