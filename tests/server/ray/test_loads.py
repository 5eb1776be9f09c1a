"""What a replica's load tells a router, and how many replicas it takes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.states import TierTold
from niyama.v1 import inference_pb2 as pb
from server.ray.loads import for_scaling, needed, told_of
from server.ray.scaling import decide


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(value * 1e6))
    return duration


def work(value: float, tokens: int = 0) -> pb.Work:
    return pb.Work(sequences=1, time=seconds(value), tokens=tokens)


LOAD = pb.GetLoadResponse(
    tiers=[
        pb.TierLoad(
            tier="chat",
            waiting=work(0.5),
            relegated=work(0.25),
            running=work(2),
            outlook=pb.Outlook(
                headroom=seconds(0.3), target=seconds(1), ahead=work(0.7), prompt_tokens=90
            ),
        ),
        pb.TierLoad(tier="", waiting=work(3)),
        pb.TierLoad(tier="free", best_effort=work(40)),
    ],
    waiting=work(0.7, 500),
    backlog=work(40, 9000),
    demand=0.9,
    rates=pb.Rates(generated_tokens=30, prefilled_tokens=300),
    speeds=pb.Speeds(prefill_tokens_per_second=2000, slowdown=1.25, decode=seconds(0.002)),
    memory=pb.MemoryLoad(total_tokens=1000, free_tokens=400, usage=0.1),
)


def test_a_router_is_told_all_that_it_decides_by() -> None:
    told = told_of(LOAD, 7.0)
    assert told.at == 7.0
    assert told.tiers == {
        "chat": TierTold(1.0, 0.3, 0.5, 2.0, 90, 0.7),
        "": TierTold(0.0, None, 3.0, 0.0),  # may be due at any time
        "free": TierTold(math.inf, None, 0.0, 0.0),
    }
    assert (told.backlog_s, told.prefill_s, told.decode_s) == (40.25, 0.0005, 0.002)
    assert (told.slowdown, told.demand) == (1.25, 0.9)
    assert (told.num_waiting, told.waiting_tokens) == (1, 500)
    assert (told.num_backlog, told.backlog_tokens) == (1, 9000)
    assert (told.kv_usage, told.kv_held) == (0.1, 0.6)


def test_of_a_tier_counts_what_waits_and_its_target() -> None:
    assert for_scaling(LOAD) == {"demand": 0.9, "queued_s:chat": 0.75, "target_s:chat": 1.0}


CHAT, BATCH = {"target_s:chat": 1.0}, {"target_s:batch": 100.0}


@pytest.mark.parametrize(
    ("loads", "replicas"),
    [
        ([], 0.0),
        ([CHAT | {"queued_s:chat": 1.5}], 3.0),  # within half a second
        ([BATCH | {"queued_s:batch": 1.5}], 0.03),  # the same work, and time for it
        ([CHAT | {"queued_s:chat": 0.5}, CHAT | {"queued_s:chat": 1.0}], 3.0),  # of all together
        # Batch waits for chat, and chat not for batch.
        ([CHAT | BATCH | {"queued_s:chat": 0.5, "queued_s:batch": 199.5}], 4.0),
        ([{"demand": 0.5}, {"demand": 1.1}], 2.0),  # nothing waits, and there are just enough
        ([{"demand": 90.0}], 3.0),  # work without a hurry: none is started for it, none ended
    ],
)
def test_replicas_are_counted_by_work_and_its_targets(
    loads: list[dict[str, float]], replicas: float
) -> None:
    named = {str(i): each for i, each in enumerate(loads)}
    assert needed(named, 3, 0.5, 0.8) == pytest.approx(replicas)


TIERS = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e3), max_size=3)


@given(TIERS, TIERS, st.floats(0.01, 1e3))
def test_more_work_never_takes_fewer_replicas(
    some: dict[str, float], more: dict[str, float], target_s: float
) -> None:
    def load(queued_s: dict[str, float]) -> dict[str, dict[str, float]]:
        numbers = {f"queued_s:{tier}": value for tier, value in queued_s.items()}
        numbers |= {f"target_s:{t}": target_s * (i + 1) for i, t in enumerate("abc")}
        return {"one": numbers}

    both = {tier: some.get(tier, 0.0) + more.get(tier, 0.0) for tier in "abc"}
    assert needed(load(both), 2, 0.5, 0.8) >= needed(load(some), 2, 0.5, 0.8) * (1 - 1e-9)


def context(running: list[str], metrics: dict[str, dict[str, list[float]]]) -> SimpleNamespace:
    """What Ray shows a policy, as far as ours looks at it."""
    raw = {
        name: {each: [SimpleNamespace(value=v) for v in values] for each, values in of.items()}
        for name, of in metrics.items()
    }
    return SimpleNamespace(running_replicas=running, raw_metrics=raw, target_num_replicas=2)


def test_what_running_replicas_said_last_counts() -> None:
    metrics = {"demand": {"one": [0.1, 0.9], "gone": [50.0]}}
    assert decide(context(["one"], metrics)) == (2, {})
    assert decide(context(["one"], {})) == (2, {})  # nothing is known: as it is
    assert decide(context(["one"], {"demand": {"one": [0.0]}})) == (1, {})
