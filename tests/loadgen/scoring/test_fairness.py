"""What each tenant got of what is its own, by hand, and what its fair share alone is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest

from loadgen.scoring.fairness import alone, fair_shares
from loadgen.scoring.modes import measure
from loadgen.scoring.summary import WHOLE
from loadgen.targets.record import Record
from loadgen.targets.target import End, Run, Watch
from loadgen.workload.arrivals import Rate, parse_rate
from loadgen.workload.plan import PlannedRequest, plan
from loadgen.workload.served import TargetInfo
from tests.loadgen.examples import INFO, planned, record, summarised, workload


def test_fair_shares_by_hand() -> None:
    """Those without a weight have one together."""
    assert fair_shares("ab", {}) == {"a": 0.5, "b": 0.5}
    assert fair_shares("abcd", {"a": 2.0, "b": 1.0, "x": 9.0}) == {
        "a": 0.5,
        "b": 0.25,
        "c": 0.125,
        "d": 0.125,
    }
    assert fair_shares([], {"a": 1.0}) == {}


def test_portions_by_hand() -> None:
    """Prompts of 10 and outputs of 3. Of a's three requests two have come whole when the measured
    part ends at 10 s, of the third a token; of b's one nothing.
    """
    late = 9.0
    records = [
        record(planned(0, 0.0, tenant="a"), [0.1, 0.2, 0.3]),
        record(planned(1, 0.0, tenant="a"), [5.1, 5.2, 5.3]),
        record(planned(2, late, tenant="a"), [late + 0.9, late + 1.0, late + 1.1]),
        record(planned(3, 0.0, tenant="b"), [10.0, 10.1, 10.2]),
    ]
    info = replace(INFO, weights={"a": 3.0})
    a, b = summarised(workload(), info, Run(records)).portions
    assert (a.tenant, a.fair_share, a.offered, a.received) == ("a", 0.75, 0.75, 1.0)
    assert (b.tenant, b.fair_share, b.offered, b.received) == ("b", 0.25, 0.25, 0.0)
    assert (a.attainment, b.attainment) == (2 / 3, 0.0)
    assert (a.alone, a.worse_by) == (None, None)


def test_one_tenant_has_no_portion() -> None:
    assert summarised(workload(), INFO, Run([record(planned(), [0.1])])).portions == ()


def test_a_tenant_alone_sends_as_if_all_were_like_it() -> None:
    """At 10/s, `big` sends 5/s with a quarter of the engine: 20/s. The two small ones send 2/s and
    3/s with a quarter and a half.
    """
    load = replace(workload(rate=10.0), tenants={"big": 0.5, "small": 0.2, "heavy": 0.3})
    loads = list(alone(load, {"big": 1.0, "small": 1.0, "heavy": 2.0}))
    assert [(names, each.arrivals.rate) for names, each in loads] == [
        (["big"], Rate(20.0, 20.0)),
        (["small"], Rate(8.0, 8.0)),
        (["heavy"], Rate(6.0, 6.0)),
    ]
    for (name,), each in loads:
        assert {request.tenant for request in plan(each)} == {name}
        assert each.duration_s == load.duration_s


def test_the_shape_of_the_load_stays() -> None:
    load = replace(workload(), tenants={"a": 0.8, "b": 0.2})
    wave = replace(load, arrivals=replace(load.arrivals, rate=parse_rate("2..5/2s")))
    rates = [each.arrivals.rate for _, each in alone(wave, {})]
    assert [str(rate) for rate in rates] == ["square:3.2..8/2s", "square:0.8..2/2s"]


def test_tenants_that_differ_in_their_names_run_once() -> None:
    tenants = {"big": 0.55, **{f"t{n}": 0.05 for n in range(9)}}
    groups = [names for names, _ in alone(replace(workload(), tenants=tenants), {})]
    assert groups == [["big"], [f"t{n}" for n in range(9)]]


@dataclass
class Counting:
    """Serves 12 requests of a run in time, and none after them."""

    runs: list[list[PlannedRequest]] = field(default_factory=list)
    interrupted_at: int = 99  # which run is

    def info(self) -> TargetInfo:
        return INFO

    def run(self, requests: Iterable[PlannedRequest], watch: Watch) -> Run:
        self.runs.append(list(requests))
        records: list[Record] = [
            record(each, [each.at + (0.1 if n < 12 else 50.0)] * 3)
            for n, each in enumerate(self.runs[-1])
        ]
        if len(self.runs) > self.interrupted_at:
            return Run(records, end=End.INTERRUPTED, problem="interrupted", interrupted_by=2)
        return Run(records)


LOAD = replace(workload(rate=2.0), tenants={"big": 0.75, "small": 0.25})


def test_each_tenant_is_held_against_its_fair_share_alone() -> None:
    target = Counting()
    done = measure(target, INFO, LOAD, WHOLE, fair_share=True)
    shared, big, small = target.runs
    assert len(done.records) == len(shared)
    portions = {each.tenant: each for each in done.summary.portions}
    assert portions["big"].alone == pytest.approx(12 / len(big))
    assert portions["small"].alone == pytest.approx(min(1.0, 12 / len(small)))
    for each in portions.values():
        assert each.alone is not None
        assert each.worse_by == max(0.0, each.alone - each.attainment)


def test_without_the_flag_and_of_one_tenant_nobody_runs_alone() -> None:
    for load, fair_share in ((LOAD, False), (workload(), True)):
        target = Counting()
        measure(target, INFO, load, WHOLE, fair_share=fair_share)
        assert len(target.runs) == 1


def test_an_interruption_of_a_tenant_alone_is_one_of_the_run() -> None:
    done = measure(Counting(interrupted_at=1), INFO, LOAD, WHOLE, fair_share=True)
    assert (done.summary.end, done.interrupted_by) == (End.INTERRUPTED, 2)
    assert [each.alone for each in done.summary.portions] == [None, None]
