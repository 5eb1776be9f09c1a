"""How long the next iteration may take for the sake of the streams that run.

Two bounds for a stream with targets TTFT and TBT (instants are absolute, `due` is the deadline of
its next token):

  envelope  the iteration ends by `due`, and leaves a reserve of slack for errors of prediction;
            a stream that has less slack than that is served a little faster than its pace, so that
            its reserve fills
  gap       the iteration ends within `max_gap` TBTs of the last token, however much slack an early
            first token left: accumulated slack must not turn into a visible stall. A tier may have
            a `max_gap` of its own. For a stream whose token is overdue it is LATE_GAP times as
            long: its pace is all that it has left to lose, and no reason for others to be late too

A stream that only has to be complete by a deadline (TTLT) was promised no pace. It has a wish
(`wished_s`): the time that is left, divided by the tokens that are left. A wish is granted as far
as it costs the others nothing, see chunking.py.

All durations are in seconds. What else bounds an iteration stands in chunking.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from engine.deciding.request import Pace
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams

HEAD_START = 1 / 8  # of the time that its prefill leaves, by which a stream begins early at most
LATE_GAP = 2.0  # longest gap of a stream that is late, in units of what holds for the others
LOST_GAP = 2.0  # where a pace cannot be had: iterations this many times as long as decodes alone


@dataclass(frozen=True, slots=True)
class PaceConfig:
    """How evenly tokens are to come. Values are in units of a stream's TBT target, unless they say
    otherwise. Raises ValueError, naming the field, for one out of range.
    """

    # Longest raw time between two tokens of streams that have none of their own; inf: the envelope
    # alone counts.
    max_gap: float = 1.25
    reserve: float = 2.0  # slack that no iteration may spend
    catch_up: float = 0.9  # longest iteration while the reserve is not full
    response: float = 0.5  # longest iteration, in units of the shortest TTFT asked for lately

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
    config: PaceConfig, tbt_s: float, max_gap: float, due: float, last_token_at: float, now: float
) -> float:
    """Returns the seconds that the iteration that gives a stream its next token may take.

    `due` is the deadline of that token, after `now`; like `last_token_at` these are instants in
    seconds.
    `max_gap` is what holds for this stream now, whatever the config says.
    """
    slack = due - now
    gap = last_token_at + max_gap * tbt_s - now
    spare = slack - config.reserve * tbt_s
    return min(gap, max(spare, min(slack, config.catch_up * tbt_s)))


def wished_s(
    decodes: Streams,
    output_left: Callable[[Sequence], float],
    most_left: Callable[[str], float],
    limit_s: float,
    now: float,
) -> float:
    """Returns the shortest iteration that a stream with a TTLT wishes for; `limit_s` where none
    wishes for a shorter one.

    `output_left` says how many tokens a stream may have left, and `most_left` how many one of an
    output group has at most: mostly nobody of a group needs a look. One that is late has no wish.
    """
    for group, (first_due, streams) in decodes.elastic_by_group.items():
        if first_due <= now or deadline_budget(first_due, most_left(group), now) < limit_s:
            due = [s for s in streams if s.due_at > now]
            wishes = (deadline_budget(s.due_at, output_left(s), now) for s in due)
            limit_s = min([limit_s, *wishes])
    return limit_s


def deadline_budget(due: float, output_left: float, now: float) -> float:
    """Returns the seconds that an iteration may take for a stream to have all tokens by `due`."""
    return (due - now) / output_left


class Budget(NamedTuple):
    """How long the iteration may take."""

    seconds: float  # inf where nobody says anything
    tbt_s: float | None  # the TBT target of the stream that says so, if it has one
    max_gap: float = math.inf  # in force for that stream, in TBTs


class Urgent(NamedTuple):
    """The instants by which the streams of one pace bound an iteration."""

    pace: Pace
    due_at: float  # of those that are not late: the first deadline of a token; inf without any
    waits_since: float  # of these: when the one that has waited longest got its last token
    late_since: float | None  # the same of all, where one is late


def most_urgent(decodes: Streams, now: float) -> list[Urgent]:
    """Returns these instants for the streams that decode with a TBT.

    Both bounds of a stream grow with the instants from which they run. So of streams with one pace
    that which has waited longest for a token has the tightest gap, and that whose next is due first
    the tightest envelope; with a token that is overdue a stream has none.
    """
    found = []
    for pace, streams in decodes.by_pace.items():
        due_at, since = min([s.due_at for s in streams]), _longest_waiting(streams, now)
        late_since = None
        if due_at <= now:
            late_since, streams = since, [s for s in streams if s.due_at > now]
            due_at = min([s.due_at for s in streams], default=math.inf)
            since = _longest_waiting(streams, now)
        found.append(Urgent(pace, due_at, since, late_since))
    return found


def iteration_budget(
    config: PaceConfig,
    urgent: list[Urgent],
    floor_s: float,
    now: float,
    most_gap: float = math.inf,
    least_s: float = math.inf,
) -> Budget:
    """Returns the tightest bound over the streams of these paces.

    `floor_s` is what an iteration of decodes alone is predicted to take. A bound below it that will
    not relax by waiting binds nobody, as prefills must not starve for what cannot be had. But a
    pace that one stream alone would have, with iterations of `least_s`, is lost to the number of
    streams, and each prefill makes one more: there the slack of those that are not late yet is
    kept, until some have ended. No gap exceeds `most_gap` TBTs, whatever the config and the streams
    say.
    """
    budget = Budget(math.inf, None)
    for (tbt_s, own_gap), due, last_token_at, late_since in urgent:
        max_gap = min(config.max_gap if own_gap is None else own_gap, most_gap)
        if config.catch_up * tbt_s < floor_s:
            bound = max(max_gap, LOST_GAP) * floor_s
            if least_s <= config.catch_up * tbt_s:
                bound = min(bound, due - now - config.reserve * tbt_s)
        else:
            bound = math.inf
            if late_since is not None:
                bound = late_since + LATE_GAP * max_gap * tbt_s - now
            if due < math.inf:
                own = interactive_budget(config, tbt_s, max_gap, due, last_token_at, now)
                bound = min(bound, own)
        if bound < budget.seconds:
            budget = Budget(bound, tbt_s, max_gap)
    return budget


def head_start_s(config: PaceConfig, tbt_s: float | None, spare_s: float) -> float:
    """Returns how much earlier than it is due the first token of a stream is to come.

    So it begins with its reserve of slack, and with a token more as nobody knows how iterations
    fall; to fill that afterwards every iteration beside it had to be shorter. It is a small part of
    the `spare_s` seconds that its prefill leaves at most, and 0 without a TBT.
    """
    if tbt_s is None:
        return 0.0
    return max(0.0, min((config.reserve + 1) * tbt_s, HEAD_START * spare_s))


def spare_slack_s(config: PaceConfig, decodes: Streams, now: float) -> float:
    """Returns the least slack beyond their reserve that streams with a TBT have, of those that are
    not late; inf where there are none.
    """
    spare_s = math.inf
    for (tbt_s, _), streams in decodes.by_pace.items():
        due = min((s.due_at for s in streams if s.due_at > now), default=math.inf)
        spare_s = min(spare_s, due - now - config.reserve * tbt_s)
    return spare_s


def _longest_waiting(streams: list[Sequence], now: float) -> float:
    """Returns when the stream that has waited longest for a token got its last. A token in flight
    comes when the iteration before this one ends, which is `now`. Without streams that is it, too.
    """
    last = [now if s.num_in_flight or (at := s.last_token_at) is None else at for s in streams]
    return min(last, default=now)
