"""What is to be expected of a request, from the load at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from engine.deciding.demand import Demand
from engine.deciding.request import TargetKind
from engine.deciding.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Forecast:
    """Durations in seconds, from the request's arrival."""

    on_time: bool
    ttft_s: float
    ttlt_s: float
    ahead_s: float  # work that is served before it


def forecast(
    sequence: Sequence,
    ahead_s: float,
    demand: Demand,
    iteration_s: float,
    now: float,
    output_len: int | None = None,
) -> Forecast:
    """For a waiting sequence with that much work ahead, while iterations take `iteration_s`.

    `output_len` stands in for what history says, where it is known.
    First token: what has passed, the work ahead, its own prefill, and the iteration in progress.
    Each further token: one iteration.
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
