"""Turns the load of an engine into the answer to GetLoad."""

from __future__ import annotations

from engine.deciding.memory import Memory
from engine.deciding.queued_work import Amount
from engine.deciding.stats import Outlook, Speeds
from niyama.v1 import inference_pb2 as pb
from server.convert.outbound import to_duration
from server.loads import Load, TierLoad


def to_load(load: Load) -> pb.GetLoadResponse:
    """Returns the answer to GetLoad."""
    rates = load.rates
    return pb.GetLoadResponse(
        tiers=[_to_tier(name, tier) for name, tier in load.tiers.items()],
        waiting=_to_work(load.waiting),
        backlog=_to_work(load.backlog),
        running=_to_work(load.running),
        demand=load.demand,
        rates=pb.Rates(
            requests=rates.requests,
            generated_tokens=rates.generated_tokens,
            prefilled_tokens=rates.prefilled_tokens,
        ),
        speeds=_to_speeds(load.speeds),
        memory=_to_memory(load.memory),
        batch_fill=load.batch_fill,
    )


def _to_tier(name: str, tier: TierLoad) -> pb.TierLoad:
    return pb.TierLoad(
        tier=name,
        waiting=_to_work(tier.waiting),
        relegated=_to_work(tier.relegated),
        best_effort=_to_work(tier.best_effort),
        running=_to_work(tier.running),
        outlook=None if tier.outlook is None else _to_outlook(tier.outlook),
    )


def _to_outlook(outlook: Outlook) -> pb.Outlook:
    return pb.Outlook(
        headroom=to_duration(outlook.headroom_s),
        late_chance=outlook.late_chance,
        ttft=to_duration(outlook.ttft_s),
        ahead=_to_work(outlook.ahead),
        target=to_duration(outlook.target_s),
        prompt_tokens=outlook.prompt_len,
    )


def _to_work(amount: Amount) -> pb.Work:
    return pb.Work(
        sequences=amount.num, time=to_duration(amount.seconds), tokens=max(0, amount.tokens)
    )


def _to_speeds(speeds: Speeds) -> pb.Speeds:
    return pb.Speeds(
        iteration=to_duration(speeds.iteration_s),
        prefill_tokens_per_second=speeds.prefill_tokens_per_s,
        slowdown=speeds.slowdown,
        decode=to_duration(speeds.decode_s),
    )


def _to_memory(memory: Memory) -> pb.MemoryLoad:
    size = memory.page_size
    return pb.MemoryLoad(
        total_tokens=size * memory.total,
        free_tokens=size * (memory.total - memory.held),
        cached_tokens=size * memory.idle,
        patient_tokens=size * memory.patient,
        usage=memory.usage,
    )
