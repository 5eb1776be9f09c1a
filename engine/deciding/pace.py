"""How long the next iteration may take for the sake of the streams that run.

Two bounds for a stream with targets TTFT and TBT (instants are absolute, `due` is the deadline of
its next token):

  envelope  the iteration ends by `due`, and leaves a reserve of slack for errors of prediction;
            a stream that has less slack than that is served a little faster than its pace, so that
            its reserve fills
  gap       the iteration ends within `max_gap` TBTs of the last token, however much slack an early
            first token left: accumulated slack must not turn into a visible stall

A stream that only has to be complete by a deadline (TTLT) was promised no pace. It has a wish
(`wished_s`): the time that is left, divided by the tokens that are left. A wish is granted as far
as it costs the others nothing, see chunking.py.

All durations are in seconds. What else bounds an iteration stands in chunking.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from engine.deciding.sequence import Sequence

LOST_GAP = 2.0  # where a pace cannot be had: iterations this many times as long as decodes alone


@dataclass(frozen=True, slots=True)
class PaceConfig:
    """How evenly tokens are to come. Values are in units of a stream's TBT target, unless they say
    otherwise. Raises ValueError, naming the field, for one out of range.
    """

    max_gap: float = 2.0  # longest raw time between two tokens; inf: the envelope alone counts
    reserve: float = 2.0  # slack that no iteration may spend
    catch_up: float = 0.9  # longest iteration while the reserve is not full
    response: float = 0.1  # longest iteration, in units of the shortest TTFT asked for lately

    def __post_init__(self) -> None:
        if not self.max_gap >= 1:
            raise ValueError(f"max_gap must be at least 1, got {self.max_gap}")
        if not self.reserve >= 0:
            raise ValueError(f"reserve must be 0 or more, got {self.reserve}")
        if not 0 < self.catch_up <= 1:
            raise ValueError(f"catch_up must be in (0, 1], got {self.catch_up}")
        if not self.response > 0:
            raise ValueError(f"response must be positive, got {self.response}")


def interactive_budget(
    config: PaceConfig, tbt_s: float, due: float, last_token_at: float, now: float
) -> float:
    """Returns the seconds that the iteration that gives a stream its next token may take.

    `due` is the deadline of that token; like `last_token_at` and `now` it is an instant in seconds.
    """
    slack = due - now
    gap = last_token_at + config.max_gap * tbt_s - now
    if slack <= 0:
        return gap  # this token is late already; its deadline has nothing left to protect
    spare = slack - config.reserve * tbt_s
    return min(gap, max(spare, min(slack, config.catch_up * tbt_s)))


def wished_s(
    decodes: Iterable[Sequence], output_left: Callable[[Sequence], float], now: float
) -> float:
    """Returns the shortest iteration that a stream with a TTLT wishes for, inf if there is none.

    `output_left` says how many tokens a stream may have left. One that is late has no wish.
    """
    shortest_s = math.inf
    for sequence in decodes:
        if sequence.request.targets.ttlt_s is not None and (due := sequence.due_at) > now:
            shortest_s = min(shortest_s, deadline_budget(due, output_left(sequence), now))
    return shortest_s


def deadline_budget(due: float, output_left: float, now: float) -> float:
    """Returns the seconds that an iteration may take for a stream to have all tokens by `due`."""
    return (due - now) / output_left


class Budget(NamedTuple):
    """How long the iteration may take."""

    seconds: float  # inf where nobody says anything
    tbt_s: float | None  # the TBT target of the stream that says so, if it has one


def iteration_budget(
    config: PaceConfig, decodes: Iterable[Sequence], floor_s: float, now: float
) -> Budget:
    """Returns the tightest bound over the streams with a TBT that decode.

    `floor_s` is what an iteration of decodes alone is predicted to take. A bound below it that will
    not relax by waiting binds nobody, as prefills must not starve for what cannot be had.
    """
    budget = Budget(math.inf, None)
    max_gap, reserve = config.max_gap, config.reserve
    for sequence in decodes:
        request = sequence.request
        tbt_s = request.targets.tbt_s
        # A token in flight comes when the iteration before this one ends, which is `now`.
        last = now if sequence.num_in_flight else sequence.last_token_at
        if tbt_s is not None and last is not None:
            if config.catch_up * tbt_s < floor_s:
                bound = max(max_gap, LOST_GAP) * floor_s
            else:
                least = now + budget.seconds  # bounds are at least min(gap, spare): see above
                if last + max_gap * tbt_s >= least <= sequence.due_at - reserve * tbt_s:
                    continue
                bound = interactive_budget(config, tbt_s, sequence.due_at, last, now)
            if bound < budget.seconds:
                budget = Budget(bound, tbt_s)
    return budget
