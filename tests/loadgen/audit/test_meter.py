"""Whose the engine's time was: worked out by hand, never lost or counted twice, and as it was."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.latency import A100_LLAMA3_8B, UNBOUNDED, LatencyProfile, Segment
from engine.deciding.plan import Plan
from engine.decision_lines import Computed
from engine.decision_log import DecisionLogReader
from engine.simulator import Replica
from loadgen.audit.account import Account
from loadgen.audit.meter import Meter, between
from tests.loadgen.audit import logs
from tests.loadgen.audit.logs import Sender

# A prefill token costs 1/64 s, a decode 1/4 s.
PLAIN = LatencyProfile("plain", (Segment(UNBOUNDED, 0.5, prefill=1 / 64, decode=0.25),))


def chunk(length: int, took: float, batch: int | None = None) -> Computed:
    return Computed(0, length, length, batch or length, took)


def test_an_iteration_is_divided_by_what_its_parts_cost_and_what_is_before_it_is_idle() -> None:
    """Sixteen and 48 tokens cost a quarter and three quarters of a second, of the two it took."""
    meter = Meter(PLAIN, 10.0)
    meter.chunk(13.0, 0, chunk(16, 2.0, 64))
    meter.chunk(13.0, 1, chunk(48, 2.0, 64))
    meter.pass_time(14.0)
    assert list(meter.served) == [0.5, 1.5]
    assert meter.idle_s == 2.0  # before it began, and after it


def test_streams_have_the_time_between_iterations_with_chunks_and_their_part_of_those() -> None:
    meter = Meter(PLAIN, 0.0)
    meter.chunk(1.0, 0, chunk(16, 1.0))
    meter.begin_stream(1.0, 0, 16)  # after the iteration that ends now
    assert meter.served[:] == meter.served[:0]
    meter.chunk(4.0, 1, chunk(16, 2.0))  # as dear as the stream's decode
    meter.pass_time(4.0)
    assert list(meter.served) == [1 + 1 + 1, 1]
    meter.begin_stream(4.0, 1, 16)
    meter.end_stream(6.0, 0, 16)
    meter.pass_time(7.0)
    assert list(meter.served) == [4, 3]
    assert meter.idle_s == 0.0


def test_who_arrives_within_an_iteration_was_there_for_a_part_of_it() -> None:
    meter = Meter(PLAIN, 0.0)
    start = meter.mark(0.5)
    meter.chunk(2.0, 0, chunk(16, 2.0))
    end = meter.mark(2.0)
    assert list(between(start, end)) == [1.5]
    late = meter.mark(3.0)
    assert late.served is None  # nobody knows yet whose that time is
    meter.pass_time(4.0)
    assert list(between(end, late)) == [0.0]


def test_another_engine_process_knows_no_stream() -> None:
    meter = Meter(PLAIN, 0.0)
    meter.begin_stream(0.0, 0, 8)
    meter.pass_time(2.0)
    meter.restart(PLAIN, 5.0)
    assert list(meter.served) == [2.0]
    assert meter.idle_s == 3.0


EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 2.0),
        st.integers(0, 2),
        st.sampled_from(["chunk", "begin", "end", "mark", "restart", "again"]),
        st.floats(0.0, 3.0),
    ),
    max_size=30,
)


@given(EVENTS)
@settings(max_examples=100, deadline=None)
def test_all_of_the_time_is_somebodys_or_idle_once(
    events: list[tuple[float, int, str, float]],
) -> None:
    meter, now, marks = Meter(A100_LLAMA3_8B, 0.0), 0.0, []
    streams: Counter[int] = Counter()
    for after, group, what, took in events:
        now += after
        if what == "chunk":
            meter.chunk(now, group, chunk(100, took))
        elif what == "begin":
            meter.begin_stream(now, group, 100)
            streams[group] += 1
        elif what == "end" and streams[group]:
            meter.end_stream(now, group, 100)
            streams[group] -= 1
        elif what == "restart":
            meter.restart(A100_LLAMA3_8B, now)
            streams.clear()
        elif what == "mark":
            marks.append(meter.mark(now))
    meter.pass_time(now + 1)
    assert sum(meter.served) + meter.idle_s == pytest.approx(now + 1)
    assert min(meter.served, default=0.0) >= 0.0
    for earlier, later in pairwise(marks):
        had = between(earlier, later)
        assert sum(had) <= later.at - earlier.at + 1e-9


def test_what_a_log_tells_is_what_the_engine_did(tmp_path: Path) -> None:
    """Beside the plans themselves: the seconds of each tenant differ by less than 3 %."""
    truly: dict[str, float] = {}

    def observe(replica: Replica, plan: Plan) -> None:
        segment = next(s for s in A100_LLAMA3_8B.segments if plan.work.num_tokens <= s.up_to)
        parts = [
            (s.request.tenant, segment.decode + segment.decode_context * s.num_known)
            for s in plan.decodes
        ]
        for sequence, start, length, _ in plan.chunks:
            cost = segment.prefill * length + segment.prefill_context * (start + length)
            parts.append((sequence.request.tenant, cost))
        parts = [(tenant, max(1e-9, cost)) for tenant, cost in parts]
        for tenant, cost in parts:
            seconds = plan.predicted_s * cost / sum(each for _, each in parts)
            truly[tenant] = truly.get(tenant, 0.0) + seconds

    senders = [Sender("a", 2.0), Sender("b", 1.0, logs.REPORT, 2000, 100), Sender("c", 0.5)]
    path = tmp_path / "log"
    logs.write(path, logs.arrivals(senders, {}), observe=observe)
    account = Account()
    for _ in account.read(DecisionLogReader([path])):
        pass
    told: dict[str, float] = {}
    for group, number in account.groups.items():
        told[group.tenant] = told.get(group.tenant, 0.0) + account.work[number]
    assert set(told) == {"a", "b", "c"}
    for tenant, seconds in truly.items():
        assert told[tenant] == pytest.approx(seconds, rel=0.03), tenant
