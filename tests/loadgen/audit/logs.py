"""Decision logs of the service's own scheduler in virtual time, of which the truth is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from engine import simulator
from engine.deciding.entries import Unserved
from engine.deciding.latency import A100_LLAMA3_8B, LatencyModel
from engine.deciding.plan import Plan
from engine.deciding.request import Importance, Request, Sampling, Share, Targets, key_of
from engine.deciding.scheduler import Scheduler
from engine.decision_header import Service
from engine.driving.decision_file import DecisionFile
from engine.simulator import STOP, Arrival, Replica
from engine.tiers import Tier
from loadgen.targets import profiles
from loadgen.targets.simulated import Setup

BEGAN = 1_764_460_800.0  # 2025-11-30, midnight in UTC
CHAT = Tier("chat", Targets(1.0, 0.05), Importance.NORMAL)
REPORT = Tier("report", Targets(ttlt_s=20.0), Importance.LOW)
Observe = Callable[[Replica, Plan], None]


class Sender(NamedTuple):
    """A tenant that sends requests of a tier at a mean rate, between two instants."""

    tenant: str
    rate: float
    tier: Tier = CHAT
    prompt: int = 1000
    output: int = 50
    application: str = ""
    from_s: float = 0.0
    to_s: float = 60.0


def arrivals(senders: Iterable[Sender], weights: Mapping[str, float]) -> list[Arrival]:
    """Everything that they send, in order of time."""
    found = []
    for sender in senders:
        rng = random.Random(repr(sender))
        at = sender.from_s + rng.expovariate(sender.rate)
        while at < sender.to_s:
            found.append(_arrival(sender, at, rng, weights))
            at += rng.expovariate(sender.rate)
    found.sort(key=lambda arrival: arrival.request.arrived_at)
    return [_named(arrival, number) for number, arrival in enumerate(found)]


def _arrival(
    sender: Sender, at: float, rng: random.Random, weights: Mapping[str, float]
) -> Arrival:
    weight = weights.get(sender.tenant)
    request = Request(
        "",
        range(rng.randint(sender.prompt // 2, sender.prompt * 3 // 2)),
        Sampling(max_tokens=1024, stop_token_ids=frozenset([STOP])),
        at,
        sender.tier.targets,
        sender.tier.importance,
        sender.tier.name,
        sender.application,
        sender.tenant,
        "tier",
        Share() if weight is None else Share(sender.tenant, weight),
    )
    output = rng.randint(max(1, sender.output // 2), sender.output * 3 // 2)
    return Arrival(request, timeout_s=120.0, output_len=output)


def _named(arrival: Arrival, number: int) -> Arrival:
    """Gives a request an id, and a prompt that begins like no other's."""
    request, start = arrival.request, number << 32
    prompt = range(start, start + len(request.prompt))
    named = replace(request, id=key_of(request.tenant, f"r{number}"), prompt=prompt)
    return arrival._replace(request=named)


def described(
    weights: Mapping[str, float], policy: str = "niyama", started: float = BEGAN
) -> dict[str, Any]:
    """What the log says of the engine."""
    profile = profiles.A100
    return {
        "version": "1",
        "model": "small",
        "policy": policy,
        "chunk_size": 512,
        "kv_tokens": profile.kv_tokens,
        "page_size": 64,
        "context_len": profile.context_len,
        "max_batch_size": profile.max_batch_size,
        "started_unix_s": started,
        "profile": A100_LLAMA3_8B.to_dict(),
        **Service((CHAT, REPORT), "chat", weights).described(),
    }


def write(
    path: Path,
    sent: Iterable[Arrival],
    weights: Mapping[str, float] | None = None,
    policy: str = "niyama",
    refused: Iterable[Unserved] = (),
    observe: Observe | None = None,
    most_bytes: int = 1 << 30,
) -> None:
    """Serves them, and writes what was decided. `refused` are told at the end."""
    file = DecisionFile(path, BEGAN, described(weights or {}, policy), most_bytes, 1000)
    profile = profiles.A100
    config = Setup(profile, policy=policy, chunk_size=512).scheduler_config()
    scheduler = Scheduler(config, LatencyModel(A100_LLAMA3_8B), file.write)
    cost = LatencyModel(A100_LLAMA3_8B, learns=False).predict
    for _ in _served(sent, Replica(0, scheduler, cost), observe):
        file.flush()
    for call in refused:
        scheduler.unserved(call)
    file.flush()
    file.close()


def _served(
    sent: Iterable[Arrival], replica: Replica, observe: Observe | None
) -> Iterator[simulator.Result]:
    return simulator.simulate(sent, [replica], observe=observe)
