"""What is to be expected of a request, judged by the load at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from engine.deciding.demand import Demand
from engine.deciding.request import TargetKind
from engine.deciding.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a request. Durations are in seconds, from its arrival."""

    on_time: bool  # whether all of its targets are expected to be met
    ttft_s: float
    ttlt_s: float
    ahead_s: float  # work that is served before it, in seconds of the engine's time


def forecast(
    sequence: Sequence,
    ahead_s: float,
    demand: Demand,
    iteration_s: float,
    now: float,
    output_len: int | None = None,
) -> Forecast:
    """Returns what is expected at `now` of a waiting sequence with `ahead_s` of work ahead of it,
    while an iteration takes `iteration_s`.

    `output_len` is the number of output tokens; None: guessed from history. The first token comes
    after what has passed, the work ahead, the sequence's own prefill, and on average half of the
    iteration in progress. Each further token comes after one more iteration.
    """
    targets = sequence.request.targets
    waited_s = now - sequence.request.arrived_at
    ttft_s = waited_s + ahead_s + demand.prefill_s(sequence) + iteration_s / 2
    output_left = demand.output_left(sequence) if output_len is None else output_len
    ttlt_s = ttft_s + (output_left - 1) * iteration_s
    if targets.kind is TargetKind.INTERACTIVE:
        assert targets.ttft_s is not None
        assert targets.tbt_s is not None
        on_time = ttft_s <= targets.ttft_s and iteration_s <= targets.tbt_s
    else:
        on_time = targets.ttlt_s is None or ttlt_s <= targets.ttlt_s
    return Forecast(on_time, ttft_s, ttlt_s, ahead_s)
