"""What a replica says of its load: to the router, and to whoever decides how many there are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from engine.routing.states import TierTold, Told
from niyama.v1 import inference_pb2 as pb

# Of what a replica tells for autoscaling, each followed by the name of a tier.
QUEUED, TARGET = "queued_s:", "target_s:"
DEMAND = "demand"


def told_of(load: pb.GetLoadResponse, at: float) -> Told:
    """Returns what a router is told by a load, which held at that instant."""
    tiers = {each.tier: _tier(each) for each in load.tiers}
    per_s = load.speeds.prefill_tokens_per_second
    return Told(
        at,
        tiers,
        backlog_s=sum(_s(t.relegated.time) + _s(t.best_effort.time) for t in load.tiers),
        prefill_s=1 / per_s if per_s else 0.0,
        decode_s=_s(load.speeds.decode),
        slowdown=load.speeds.slowdown or 1.0,
        demand=load.demand,
        num_waiting=load.waiting.sequences,
        num_backlog=load.backlog.sequences,
        waiting_tokens=load.waiting.tokens,
        backlog_tokens=load.backlog.tokens,
        kv_usage=load.memory.usage,
        kv_held=1 - load.memory.free_tokens / max(1, load.memory.total_tokens),
    )


def _tier(load: pb.TierLoad) -> TierTold:
    waiting_s, running_s = _s(load.waiting.time), _s(load.running.time)
    if not load.HasField("outlook"):  # without targets; those that requests state may be any
        return TierTold(math.inf if load.tier else 0.0, None, waiting_s, running_s)
    outlook = load.outlook
    return TierTold(
        _s(outlook.target),
        _s(outlook.headroom),
        waiting_s,
        running_s,
        outlook.prompt_tokens,
        _s(outlook.ahead.time),
    )


def for_scaling(load: pb.GetLoadResponse) -> dict[str, float]:
    """Returns the numbers by which it is decided how many replicas there are: for each tier with a
    target the work that waits, relegated or not, and the target, both in seconds.
    """
    numbers = {DEMAND: load.demand}
    for tier in load.tiers:
        if tier.HasField("outlook"):
            numbers[QUEUED + tier.tier] = _s(tier.waiting.time) + _s(tier.relegated.time)
            numbers[TARGET + tier.tier] = _s(tier.outlook.target)
    return numbers


def needed(
    loads: Mapping[str, Mapping[str, float]], num_now: int, part: float, most_demand: float
) -> float:
    """Returns how many replicas it takes, of which there are `num_now` and which have said `loads`
    for scaling: so many that what waits of each tier, and of all tiers with shorter targets, is
    done within `part` of its target.

    Where fewer would do for what waits, as nothing waits while there are enough, there stay so many
    that no more than `most_demand` seconds of work arrive at each in a second. Work that arrives
    starts none by itself: it may have all night.
    """
    queued_s: dict[float, float] = {}  # by target
    for numbers in loads.values():
        for name, target_s in numbers.items():
            if name.startswith(TARGET) and target_s > 0:
                tier = name.removeprefix(TARGET)
                queued_s[target_s] = queued_s.get(target_s, 0.0) + numbers.get(QUEUED + tier, 0.0)
    demand = sum(numbers.get(DEMAND, 0.0) for numbers in loads.values())
    found, before_s = min(float(num_now), demand / most_demand), 0.0
    for target_s in sorted(queued_s):
        before_s += queued_s[target_s]
        found = max(found, before_s / (part * target_s))
    return found


def _s(duration: Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)
