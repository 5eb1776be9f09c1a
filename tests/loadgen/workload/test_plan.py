"""The plan: the same seed gives the same requests, and each property is drawn apart."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from loadgen.workload.arrivals import Process, Rate, Shape
from loadgen.workload.lengths import Fixed, Independent, Lognormal
from loadgen.workload.plan import Arrivals, SharedPrefix, TierLoad, Workload, plan, prompt_ids
from loadgen.workload.traces import Row
from niyama.client.values import Importance
from tests.loadgen.examples import CHAT, REPORT, planned, workload

TWO = (("interactive", 0.75, CHAT), ("standard", 0.25, REPORT))
VARIED = Independent(Lognormal(50, 100), Lognormal(10, 30))


def with_loads(load: Workload, **changes: object) -> Workload:
    return replace(load, tiers=tuple(replace(tier, **changes) for tier in load.tiers))  # type: ignore[arg-type]  # test values


def test_the_same_seed_gives_the_same_requests() -> None:
    load = workload(TWO, duration_s=30.0)
    assert list(plan(load)) == list(plan(load))
    assert list(plan(load)) != list(plan(replace(load, seed=1)))


def test_requests_come_in_order_of_time_and_only_while_the_run_lasts() -> None:
    requests = list(plan(workload(rate=50.0, duration_s=20.0)))
    assert [request.index for request in requests] == list(range(len(requests)))
    instants = [request.at for request in requests]
    assert instants == sorted(instants)
    assert 0 <= instants[0] <= instants[-1] < 20.0
    assert len(requests) == pytest.approx(1000, rel=0.1)


def test_changing_one_property_leaves_the_others_as_they_were() -> None:
    base = workload(TWO, duration_s=30.0)
    longer = with_loads(base, lengths=VARIED)
    hinted = replace(
        with_loads(longer, importance={Importance.LOW: 0.5, Importance.HIGH: 0.5}),
        tenants={"a": 0.5, "b": 0.5},
    )
    for one, other in ((base, longer), (longer, hinted)):
        pairs = list(zip(plan(one), plan(other), strict=True))
        assert all(a.at == b.at and a.tier == b.tier and a.seed == b.seed for a, b in pairs)
    lengths = [(request.prompt_len, request.output_len) for request in plan(longer)]
    assert lengths == [(request.prompt_len, request.output_len) for request in plan(hinted)]


def test_a_higher_rate_brings_the_same_requests_closer_together() -> None:
    slow, fast = workload(rate=10.0), workload(rate=10.0).at_rate(20.0)
    ten, twenty = list(plan(slow)), list(plan(fast))
    assert [a.at / 2 for a in ten] == pytest.approx([b.at for b in twenty[: len(ten)]])
    assert [a.seed for a in ten] == [b.seed for b in twenty[: len(ten)]]


def test_shares_are_met() -> None:
    load = replace(
        workload(TWO, rate=100.0, duration_s=100.0),
        tenants={"big": 0.9, "small": 0.1},
        applications={"chat": 0.5, "code": 0.5},
    )
    requests = list(plan(with_loads(load, importance={Importance.LOW: 0.2, Importance.HIGH: 0.8})))
    total = len(requests)

    def share(values: Counter[object], value: object) -> float:
        return values[value] / total

    assert share(Counter(r.tier for r in requests), "interactive") == pytest.approx(0.75, abs=0.02)
    assert share(Counter(r.tenant for r in requests), "small") == pytest.approx(0.1, abs=0.02)
    assert share(Counter(r.application for r in requests), "code") == pytest.approx(0.5, abs=0.02)
    low = Counter(r.importance for r in requests)
    assert share(low, Importance.LOW) == pytest.approx(0.2, abs=0.02)


def test_shares_must_add_up() -> None:
    with pytest.raises(ValueError, match=r"tenants add up to 0\.9, not 1"):
        replace(workload(), tenants={"a": 0.9})
    with pytest.raises(ValueError, match=r"tiers add up to 0\.75"):
        workload((("interactive", 0.75, CHAT),))


def test_prompt_and_output_are_cut_to_the_context() -> None:
    load = with_loads(workload(), lengths=Independent(Fixed(400), Fixed(200)))
    requests = list(plan(replace(load, context_length=512)))
    assert {(r.prompt_len, r.output_len) for r in requests} == {(312, 200)}
    load = with_loads(workload(), lengths=Independent(Fixed(400), Fixed(900)))
    requests = list(plan(replace(load, context_length=512)))
    assert {(r.prompt_len, r.output_len) for r in requests} == {(1, 511)}


def test_cancelled_requests_are_left_after_some_but_not_all_tokens() -> None:
    load = with_loads(
        workload(rate=100.0), cancel_rate=0.3, lengths=Independent(Fixed(5), Fixed(4))
    )
    requests = list(plan(load))
    leaving = [r.cancel_after for r in requests if r.cancel_after is not None]
    assert len(leaving) / len(requests) == pytest.approx(0.3, abs=0.05)
    assert set(leaving) == {1, 2, 3}


def test_shared_prefixes_come_before_the_own_prompt() -> None:
    load = with_loads(workload(rate=100.0), prefix=SharedPrefix(64, share=0.5, count=2))
    requests = list(plan(load))
    sharing = [r for r in requests if r.prefix is not None]
    assert len(sharing) / len(requests) == pytest.approx(0.5, abs=0.06)
    assert {r.prompt_len for r in sharing} == {74}
    prompts = [(r.prefix, prompt_ids(r, 1000, "run")) for r in sharing]
    assert len({(which, tuple(ids[:64])) for which, ids in prompts}) == 2
    assert len({tuple(ids[64:]) for _, ids in prompts}) == len(prompts)


def test_prompts_are_valid_ids_the_same_within_a_run_and_others_in_another() -> None:
    request = planned(prompt_len=2000, seed=7)
    ids = prompt_ids(request, 1000, "run")
    assert len(ids) == 2000
    assert ids == prompt_ids(request, 1000, "run")
    assert ids[:16] != prompt_ids(request, 1000, "next")[:16]
    assert min(ids) >= 300
    assert max(ids) < 1000
    assert set(prompt_ids(planned(prompt_len=50), 8, "run")) <= set(range(4, 8))


ROWS = (Row(0.0, 100, 1), Row(1.0, 200, 2), Row(4.0, 300, 3))


def replaying(rate: Rate | None, **changes: object) -> Workload:
    load = TierLoad("interactive", 1.0, CHAT, Independent(Fixed(10), Fixed(3)))
    return Workload(Arrivals(rate, replay=ROWS), (load,), 100.0, **changes)  # type: ignore[arg-type]  # test values


def test_a_replay_keeps_the_instants_of_the_trace() -> None:
    assert [r.at for r in plan(replaying(None))] == [0.0, 1.0, 4.0]
    assert [r.prompt_len for r in plan(replaying(None))] == [10, 10, 10]


def test_a_replay_may_take_lengths_from_the_rows() -> None:
    requests = list(plan(replaying(None, replay_lengths=True)))
    assert [(r.prompt_len, r.output_len) for r in requests] == [(100, 1), (200, 2), (300, 3)]


def test_a_replay_is_scaled_to_the_rate() -> None:
    """Two gaps in 4 s are 0.5 requests/s; at 2/s everything is 4 times as fast."""
    assert [r.at for r in plan(replaying(Rate(2.0, 2.0)))] == [0.0, 0.25, 1.0]
    assert [r.at for r in plan(replaying(None).at_rate(2.0))] == [0.0, 0.25, 1.0]


def test_a_replay_ends_with_its_trace() -> None:
    """Three rows at 2/s last 1.5 s; at 0.01/s they would last longer than the run."""
    assert replaying(None).at_rate(2.0).duration_s == 1.5
    assert replaying(Rate(1.0, 1.0)).at_rate(2.0).duration_s == 1.5
    assert replaying(None).at_rate(0.01).duration_s == 100.0
    at_once = Arrivals(None, replay=(Row(0.0, 1, 1),) * 4)
    assert (at_once.replay_s, list(at_once.times(1.0, random.Random(0)))) == (1.0, [0.0] * 4)


def test_a_replay_has_a_shape_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"one rate, not square:2\.\.5/900s"):
        replaying(Rate(2, 5, Shape.SQUARE, 900.0))


def test_where_nothing_arrives_there_is_nothing_to_scale() -> None:
    nothing = replace(workload(), arrivals=Arrivals(Rate(0, 5, Shape.SQUARE, 900.0)))
    with pytest.raises(ValueError, match=r"at square:0\.\.5/900s nothing arrives in 10 s"):
        nothing.at_rate(1.0)


def test_arrivals_state_what_they_need() -> None:
    with pytest.raises(ValueError, match="rate is needed"):
        Arrivals(None)
    for cv in (0.0, 1e-200, 1e200, math.inf, math.nan):
        with pytest.raises(ValueError, match="coefficient of variation"):
            Arrivals(Rate(1, 1), Process.GAMMA, cv)
    assert list(Arrivals(Rate(1, 1), Process.CONSTANT).times(2.5, random.Random(0))) == [1.0, 2.0]
