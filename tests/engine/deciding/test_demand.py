"""What requests need, and what the recent ones were like: by hand. MILLI: 1 ms an iteration, 1 ms a
prefill token, 0.1 ms a decode.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.demand import (
    LEAST_PREFILLS,
    MOST_SLOWDOWN,
    REQUEST_WEIGHT,
    WINDOW,
    Demand,
    RecentRequests,
)
from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel
from engine.deciding.plan import Chunk, Plan, Work
from engine.deciding.request import key_of
from tests.engine.deciding.parts import (
    MILLI,
    deadline,
    decode,
    interactive,
    make_sequence,
    make_stream,
)


def test_demand_is_prefill_in_chunks_and_the_expected_decodes() -> None:
    """30 tokens in chunks of 20: two iterations of 1 ms, and 30 ms; 10 decodes of 0.1 ms each;
    with 15 computed and 4 tokens out, one iteration with 19 tokens, and 6 decodes.
    """
    history = OutputLengths(2.0)
    for _ in range(5):
        history.observe(key_of("acme", "chat"), 10)
    demand = Demand(LatencyModel(MILLI), history, chunk=20)
    sequence = make_sequence(prompt=30, output=99, application="chat", tenant="acme")
    assert demand.seconds(sequence) == pytest.approx(33e-3)
    decode(sequence, 4)
    sequence.preempt()
    sequence.prefill(15, 0.0)
    assert demand.seconds(sequence) == pytest.approx(20.6e-3)
    decode(sequence, 46)  # longer than anybody expected: one more is always to come
    assert demand.output_left(sequence) == 1


def test_one_tenants_outputs_change_nothing_for_another() -> None:
    """Ten tokens each of 0.1 ms are expected of acme's chat; of others', the prior or less."""
    history = OutputLengths(2.0)
    for _ in range(5):
        history.observe(key_of("acme", "chat"), 10)
    demand = Demand(LatencyModel(MILLI), history, chunk=20)
    other = make_sequence(prompt=30, output=99, application="chat", tenant="other")
    assert demand.output_left(other) == 99


def test_decodes_after_the_deadline_are_no_work_before_it() -> None:
    """An iteration is expected to take 1.1 ms: 20 of them fit into 22 ms, and add 2 ms."""
    demand = Demand(LatencyModel(MILLI), OutputLengths(2.0), chunk=20)
    sequence = make_sequence(output=99, targets=deadline(0.022))
    assert demand.decodes_until_due_s(sequence, 0.0) == pytest.approx(2e-3)
    assert demand.decodes_until_due_s(sequence, 0.011) == pytest.approx(1e-3)
    assert demand.decodes_until_due_s(sequence, 9.0) == pytest.approx(1e-4), "one is to come"


def test_the_duration_of_an_iteration_is_followed() -> None:
    """From 1.1 ms, the least that one takes: each iteration of 65 ms takes 5 % off the distance."""
    demand = Demand(LatencyModel(MILLI), OutputLengths(2.0), chunk=20)
    sequence = make_sequence(output=10)
    assert demand.decoding_s(sequence) == pytest.approx(10 * 1.1e-3)
    for _ in range(100):
        demand.note_iteration(0.065)
    assert demand.iteration_s == pytest.approx(0.065 - (0.065 - 0.0011) * 0.95**100)
    assert demand.decoding_s(sequence) == 10 * demand.iteration_s


@given(st.integers(1, 50), st.integers(1, 300))
def test_how_far_an_output_may_go_grows_once_it_is_past_the_guess(guess: int, num: int) -> None:
    """It is never less than the guess says, and never more than is said of its group: that spares
    a look at each stream.
    """
    history = OutputLengths(0.0)
    sequence = make_sequence(output=999, application="chat")
    for _ in range(5):
        history.observe(sequence.output_group, guess)
    demand = Demand(LatencyModel(MILLI), history, chunk=20)
    most = demand.most_risky_left(sequence.output_group)
    decode(sequence, num)
    risky_left = demand.risky_output_left(sequence)
    assert demand.output_left(sequence) <= risky_left <= most
    decode(sequence, 1)
    if num >= guess:
        assert demand.risky_output_left(sequence) >= risky_left


def test_what_is_given_up_counts_by_its_work() -> None:
    """Of a hundred requests of which every tenth has 5 s of work and the others 1 s, that is 36 %
    of the work; only work that is a fifth of all is much.
    """
    for costly_s, is_much in ((5.0, True), (1.0, False)):
        recent = RecentRequests()
        assert not recent.much_is_given_up
        for i in range(100):
            work_s = costly_s if i % 10 == 9 else 1.0
            recent.note_work(work_s, 0.0)
            if i % 10 == 9:
                recent.note_given_up(work_s)
        assert recent.much_is_given_up == is_much
        for _ in range(500):
            recent.note_work(1.0, 0.0)
        assert not recent.much_is_given_up, "it is forgotten"


def test_when_a_prefill_is_due_by_hand() -> None:
    """Ten tokens take an iteration of 1.1 ms each. Where all are wanted by 100 ms, the prefill is
    due 11 ms earlier, but with 6 ms left only 3 ms earlier, or 5 where a short output takes those.
    Where the first is wanted by then, it is due by then. Work of 2 ms for decodes comes after that.
    """
    demand = Demand(LatencyModel(MILLI), OutputLengths(0.0), chunk=20)
    batch = make_sequence(output=10, targets=deadline(0.1))
    stream = make_sequence(output=10, targets=interactive(0.1, 0.01))
    assert demand.prefill_due_at(batch, 0.0, 0.0) == pytest.approx(0.089)
    assert demand.prefill_due_at(batch, 0.0, 0.094) == pytest.approx(0.097)
    assert demand.prefill_due_at(batch, 0.0, 0.094, short_s=0.005) == pytest.approx(0.095)
    assert demand.prefill_due_at(batch, 0.0, 0.094, short_s=0.02) == pytest.approx(0.089)
    assert demand.prefill_due_at(batch, 0.002, 0.0) == pytest.approx(0.091)
    assert demand.prefill_due_at(stream, 0.0, 0.0) == pytest.approx(0.1)
    assert demand.prefill_due_at(stream, 0.002, 0.0) == pytest.approx(0.102)


def test_prefills_are_as_slow_as_iterations_that_were_full_of_them() -> None:
    """Ten tokens of twenty have half of the 1 ms that an iteration costs: 10.5 ms. They take twice
    as long where thirty iterations in a row did, beside a decode of 0.1 ms; not before, and never
    more than four times as long, nor less than that.
    """
    demand = Demand(LatencyModel(MILLI), OutputLengths(0.0), chunk=20)
    waiting, decode = make_sequence(prompt=10), make_stream(deadline(9.0), 9.0)
    chunk = Chunk(make_sequence(prompt=99), 0, 10, False)
    plan = Plan((decode,), (chunk,), Work(1, 11), 0.0, 0.5, (), True)
    for seconds, slowdown in ((0.0211, 2.0), (1.0, MOST_SLOWDOWN), (0.001, 1.0)):
        for _ in range(LEAST_PREFILLS - 1):
            demand.note_prefills(plan, seconds)
        if slowdown == 2.0:
            assert demand.prefill_share_s(waiting) == pytest.approx(10.5e-3)
        for _ in range(500):
            demand.note_prefills(plan, seconds)
        assert demand.prefill_share_s(waiting) == pytest.approx(slowdown * 10.5e-3)


def test_one_stall_makes_prefills_little_slower() -> None:
    """An iteration takes 21.1 ms, as predicted, which makes prefills half as fast; one of 30 s
    counts as 42.2 ms, and the newest 2 % of 31 with it raise the slowdown from 2 by a tenth.
    """
    demand = Demand(LatencyModel(MILLI), OutputLengths(0.0), chunk=20)
    waiting, decode = make_sequence(prompt=10), make_stream(deadline(9.0), 9.0)
    chunk = Chunk(make_sequence(prompt=99), 0, 10, False)
    plan = Plan((decode,), (chunk,), Work(1, 11), 0.0, 0.0211, (), True)
    for seconds in (*[0.0211] * LEAST_PREFILLS, 30.0):
        demand.note_prefills(plan, seconds)
    assert 2.0 < demand.prefill_share_s(waiting) / 10.5e-3 < 2.1


def test_with_caution_a_prefill_is_due_in_time_for_a_long_output() -> None:
    """Outputs of 10 on average with a deviation of 1.789, so 13.58 are long: 14.9 ms. With 20 ms
    left that is more than half of them, and then the 11 ms of the average count, or all of 6 ms.
    """
    history = OutputLengths(0.0)
    demand = Demand(LatencyModel(MILLI), history, chunk=20)
    batch = make_sequence(output=99, targets=deadline(0.1), application="chat")
    for length in (8, 12, 8, 12, 10):
        history.observe(batch.output_group, length)
    long_s = (10 + 2 * math.sqrt(3.2)) * 1.1e-3
    assert demand.long_decoding_s(batch) == pytest.approx(long_s)
    for now, due_at in ((0.0, 0.1 - long_s), (0.08, 0.089), (0.094, 0.094)):
        found = demand.prefill_due_at(batch, 0.0, now, long_s=long_s, is_cautious=True)
        assert found == pytest.approx(due_at)


def test_how_long_a_short_output_takes_by_hand() -> None:
    """Outputs of 10 on average with a deviation of 1.789: 6.42 tokens of 1.1 ms, of which 4 are
    there; with 8 none is to come. Without history there is nothing to go by but one token.
    """
    history = OutputLengths(0.0)
    demand = Demand(LatencyModel(MILLI), history, chunk=20)
    sequence = make_sequence(output=99, application="chat")
    assert demand.short_decoding_s(sequence) == pytest.approx(1.1e-3)
    for length in (8, 12, 8, 12, 10):
        history.observe(sequence.output_group, length)
    left = 10 - 2 * math.sqrt(3.2)
    assert demand.short_decoding_s(sequence) == pytest.approx(left * 1.1e-3)
    decode(sequence, 4)
    assert demand.short_decoding_s(sequence) == pytest.approx((left - 4) * 1.1e-3)
    decode(sequence, 4)
    assert demand.short_decoding_s(sequence) == 0


def test_what_is_costly_is_judged_by_the_recent_requests() -> None:
    recent = RecentRequests()
    assert recent.costliest_s == 0.0
    for i in range(WINDOW // 10 - 1):
        recent.note(float(i), None)
    assert recent.costly_s(0.05) == math.inf, "too few to tell"
    recent.note(99.0, None)
    assert (recent.costliest_s, recent.costly_s(0.05)) == (99.0, 95.0)
    assert recent.num_noted == WINDOW // 10


def test_the_oldest_is_forgotten_first() -> None:
    recent = RecentRequests()
    for i in range(WINDOW):
        recent.note(float(WINDOW - i), None)
    for i in range(1, WINDOW):
        recent.note(0.0, None)
        assert recent.costliest_s == WINDOW - i


def test_a_relegation_is_remembered_for_45_requests() -> None:
    recent = RecentRequests()
    recent.note(1.0, None)
    assert recent.is_calm
    recent.note_relegation()
    for _ in range(44):
        recent.note(1.0, None)
        assert not recent.is_calm
    recent.note(1.0, None)
    assert recent.is_calm


def test_the_shortest_ttft_is_forgotten_slowly() -> None:
    recent = RecentRequests()
    assert recent.shortest_ttft_s == math.inf
    recent.note(1.0, 0.5)
    recent.note(1.0, 2.0)
    assert recent.shortest_ttft_s == 0.5 * (1 + REQUEST_WEIGHT)
    for _ in range(200):
        recent.note(1.0, 2.0)
    assert recent.shortest_ttft_s == 2.0
