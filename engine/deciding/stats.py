"""What an engine reports of itself: how much it has done, and how full it is."""

from __future__ import annotations

from dataclasses import dataclass

from engine.deciding.latency import LatencyErrors


@dataclass(slots=True)
class Totals:
    """What a scheduler has counted since it began."""

    num_iterations: int = 0
    num_submitted: int = 0
    num_finished: int = 0  # for whatever reason
    num_failed: int = 0  # of the finished: the model's logits were not finite
    num_preemptions: int = 0
    num_relegations: int = 0
    num_holds: int = 0  # of running sequences, each for an iteration
    prefill_tokens: int = 0
    decode_tokens: int = 0
    cached_tokens: int = 0  # of prompts: taken from the prefix index


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """The state of a scheduler at one moment, and its totals until then (a copy)."""

    num_waiting: int  # prefill not complete
    num_running: int  # decoding
    num_relegated: int  # of the waiting
    num_held: int  # of the running: sat the last iteration out
    pages_total: int
    pages_free: int  # free or reclaimable
    pages_cached: int
    alpha: float  # weight of work against deadline in the order of prefills
    latency_errors: LatencyErrors | None  # None before the first iteration
    totals: Totals


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the scheduler and the executor of an engine report together."""

    scheduler: SchedulerStats
    num_compilations: int  # by the executor, since it began to serve: none is expected
