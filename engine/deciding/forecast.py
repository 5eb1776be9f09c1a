"""What is to be expected of a request: its instants, judged by the load at one moment, and whether
it will be on time, judged by how requests like it have fared lately (experience.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from engine.deciding.demand import Demand
from engine.deciding.experience import MOST_RISK, Experience, Likeness
from engine.deciding.request import TargetKind, Targets
from engine.deciding.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a request. Durations are in seconds, from its arrival."""

    on_time: bool  # whether all of its targets are expected to be met
    ttft_s: float
    ttlt_s: float
    ahead_s: float  # work that is served before it, in seconds of the engine's time
    late_chance: float = 0.0  # in [0, 1]
    like: Likeness | None = None  # what it was compared by; None where it has no target
    refusal: str = ""  # of an estimate: why the policy would turn it away now
    retry_s: float = 0.0  # after which it would not, if nothing else came
    on_time_in_s: float = 0.0  # after which it would be on time then, where it is not; inf: never


def forecast(
    sequence: Sequence,
    ahead_s: float,
    demand: Demand,
    experience: Experience,
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
    request = sequence.request
    waited_s = now - request.arrived_at
    prefill_s = demand.prefill_s(sequence)
    work_s = ahead_s + prefill_s + iteration_s / 2
    ttft_s = waited_s + experience.slowdown * work_s
    output_left = demand.output_left(sequence) if output_len is None else output_len
    ttlt_s = ttft_s + (output_left - 1) * iteration_s
    if request.targets.kind is TargetKind.BEST_EFFORT:
        return Forecast(True, ttft_s, ttlt_s, ahead_s)
    ratio = _time_ratio(request.targets, ttft_s, ttlt_s, iteration_s)
    own_s = prefill_s + demand.decodes_s(sequence)
    like = Likeness.of(sequence.importance, ratio, own_s)
    chance = experience.late_chance(like)
    return Forecast(chance < MOST_RISK, ttft_s, ttlt_s, ahead_s, chance, like)


def on_time_in_s(at: Callable[[float], Forecast], ahead_s: float, slowdown: float) -> float:
    """Returns the seconds after which enough of the work ahead would be done for a request to be
    called on time, if nothing else came; inf where it would not be with nothing ahead. `at(ahead)`
    is what is expected with so much ahead, and `slowdown` how long a second of work takes.

    It is sought by halves, to a thousandth of the work ahead.
    """
    if at(ahead_s).on_time:
        return 0.0
    if not at(0.0).on_time:
        return math.inf
    enough_s, too_much_s = 0.0, ahead_s
    for _ in range(10):
        middle_s = (enough_s + too_much_s) / 2
        if at(middle_s).on_time:
            enough_s = middle_s
        else:
            too_much_s = middle_s
    return slowdown * (ahead_s - enough_s)


def lateness(targets: Targets, expected: Forecast) -> str:
    """Returns why a request is expected to be late, for a person."""
    if targets.ttlt_s is not None:
        which, asked_s, told_s = "last", targets.ttlt_s, expected.ttlt_s
    else:
        assert targets.ttft_s is not None
        which, asked_s, told_s = "first", targets.ttft_s, expected.ttft_s
    if told_s > asked_s:
        return f"its {which} token is expected after {told_s:.3g} s, and due after {asked_s:.3g} s"
    return f"of requests like it {expected.late_chance:.0%} have been late lately"


def _time_ratio(targets: Targets, ttft_s: float, ttlt_s: float, iteration_s: float) -> float:
    """Returns the time that a request has over the time that it is forecast to take. A pace that
    can be had makes no difference, however easily.
    """
    if targets.ttlt_s is not None:
        return targets.ttlt_s / ttlt_s
    assert targets.ttft_s is not None
    assert targets.tbt_s is not None
    ratio = targets.ttft_s / ttft_s
    return ratio if iteration_s <= targets.tbt_s else min(ratio, targets.tbt_s / iteration_s)
