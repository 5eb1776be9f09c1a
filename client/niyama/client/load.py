"""The load of a server's engine, as `Client.load` returns it. Durations are in seconds, and work is
engine time, as predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from niyama.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Work:
    """An amount of work. Tokens are those to be computed: of who waits the ones to be prefilled
    that were not cached, of who decodes the ones that are expected yet.
    """

    sequences: int
    seconds: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a typical request of a tier that came now would have to expect."""

    headroom: float  # work that could come before it and it would still be called on time
    late_chance: float  # from 0 to 1
    ttft: float
    ahead: Work  # what waits and would be served before it
    target: float  # the time until its first token is due or, with a TTLT, its last
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TierLoad:
    """What waits of a tier, and what decodes. `outlook` is None for a tier without targets, and
    before the first request of any.
    """

    waiting: Work  # targets are to be kept
    relegated: Work
    best_effort: Work
    running: Work
    outlook: Outlook | None


@dataclass(frozen=True, slots=True)
class Rates:
    """What came and what was computed, per second."""

    requests: float
    generated_tokens: float
    prefilled_tokens: float


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast the engine is of late."""

    iteration: float  # in which each stream gets a token
    prefill_tokens_per_second: float  # with nothing else to do
    slowdown: float  # time that passes for each second of work ahead of a request
    decode: float  # of engine time, that one more token of an output takes


@dataclass(frozen=True, slots=True)
class Memory:
    """Whose the memory of keys and values is, in tokens. `usage` is how full it is for a stream
    that comes now, from 0 to 1.
    """

    total_tokens: int
    free_tokens: int  # the cached ones among them
    cached_tokens: int
    patient_tokens: int  # held by requests without a TBT, and by relegated ones
    usage: float


@dataclass(frozen=True, slots=True)
class Load:
    """How loaded an engine is. `waiting` is what should repel a request that comes now, `backlog`
    all else that waits.
    """

    tiers: dict[str, TierLoad]  # by name; "": requests with targets of their own
    waiting: Work
    backlog: Work
    running: Work
    demand: float  # engine time that is asked for per second: above 1 is overload
    rates: Rates
    speeds: Speeds
    memory: Memory
    batch_fill: float  # from 0 to 1


def from_load_response(message: pb.GetLoadResponse) -> Load:
    """Returns how loaded the engine is."""
    rates, speeds, memory = message.rates, message.speeds, message.memory
    return Load(
        tiers={tier.tier: _from_tier(tier) for tier in message.tiers},
        waiting=_from_work(message.waiting),
        backlog=_from_work(message.backlog),
        running=_from_work(message.running),
        demand=message.demand,
        rates=Rates(rates.requests, rates.generated_tokens, rates.prefilled_tokens),
        speeds=Speeds(
            _seconds(speeds.iteration),
            speeds.prefill_tokens_per_second,
            speeds.slowdown,
            _seconds(speeds.decode),
        ),
        memory=Memory(
            memory.total_tokens,
            memory.free_tokens,
            memory.cached_tokens,
            memory.patient_tokens,
            memory.usage,
        ),
        batch_fill=message.batch_fill,
    )


def _from_tier(tier: pb.TierLoad) -> TierLoad:
    states = (tier.waiting, tier.relegated, tier.best_effort, tier.running)
    waiting, relegated, best_effort, running = map(_from_work, states)
    outlook = _from_outlook(tier.outlook) if tier.HasField("outlook") else None
    return TierLoad(waiting, relegated, best_effort, running, outlook)


def _from_outlook(outlook: pb.Outlook) -> Outlook:
    return Outlook(
        _seconds(outlook.headroom),
        outlook.late_chance,
        _seconds(outlook.ttft),
        _from_work(outlook.ahead),
        _seconds(outlook.target),
        outlook.prompt_tokens,
    )


def _from_work(work: pb.Work) -> Work:
    return Work(work.sequences, _seconds(work.time), work.tokens)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
