"""The decision: the replicas for a request, the best first.

*Slack* is what a replica leaves of the request's target: the headroom that it told for the
request's tier, less what the router has sent there since that is due no later, plus what the
replica has had time to do of what was ahead, and less what the request's own prompt takes more than
a typical one. So it is the replica's own forecast, brought up to now.

A replica will do where the slack is the largest, or smaller by TOLERANCE of the target at most: the
deadline is met there as surely as anywhere, for all that a router knows. Of these the one with the
least *urgent work* is best. Of an interactive request that is what the router itself has in flight
there with targets no longer than its own, each like the request: it knows that to the instant, and
what it was told is older than most chats wait. So an interactive request does not see how much of a
night's work a replica has. Of others it is all work that waits and runs there, as it was told:
their time is long enough for any replica to do, and they go where most room is. What a replica
holds of the prompt is work that all are saved, and counts AFFINITY times: a prefix stays with its
replica while that will do and is not busier than others by more than that.

Differences of less than TIE of the request's own work are none: chance decides, so that several
routers who were told the same do not all choose the same replica.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from engine.deciding.request import TargetKind
from engine.routing.states import Asked, Moment, Replica, TierTold, Told

TOLERANCE: Final = 0.1  # of the target
AFFINITY: Final = 5.0
TIE: Final = 0.1


class View(NamedTuple):
    """What one replica would be for a request. Seconds."""

    slack_s: float  # inf where the request has no target; -inf where nothing is known
    urgent_s: float  # work there that is as urgent as the request, and its own
    own_s: float  # the request's own work there
    saved_s: float  # work of which the request finds the result there


def ranked(asked: Asked, replicas: Sequence[Replica], moment: Moment) -> list[int]:
    """Returns the indices of the replicas, the best one for the request first."""
    views = [view(asked, replica, moment.now) for replica in replicas]
    known = [i for i, replica in enumerate(replicas) if replica.is_known(moment.now)]
    most_s = max((views[i].slack_s for i in known), default=0.0)
    least_s = most_s - TOLERANCE * asked.target_s if most_s < math.inf else most_s

    def place(index: int) -> tuple[int, float]:
        each = views[index]
        if index not in known:
            return (2, replicas[index].num_in_flight)
        return (0, _cost(each)) if each.slack_s >= least_s else (1, -each.slack_s)

    order = sorted(range(len(replicas)), key=place)
    if not known:
        return order
    least, tie_s = place(order[0])[1], TIE * views[order[0]].own_s
    ties = [i for i in order if place(i)[0] == 0 and place(i)[1] <= least + tie_s]
    chosen = ties[int(moment.draw * len(ties))]
    return [chosen, *(i for i in order if i != chosen)]


def _cost(view: View) -> float:
    return view.urgent_s - (AFFINITY - 1) * view.saved_s


def view(asked: Asked, replica: Replica, now: float) -> View:
    """Returns what the replica would be for the request."""
    told = replica.told
    if told is None:
        return View(-math.inf, 0.0, 0.0, 0.0)
    saved_s = replica.cached_len * told.prefill_s
    prefill_s = asked.prompt_len * told.prefill_s - saved_s
    own_s = prefill_s + asked.output_len * told.decode_s
    done_s = max(0.0, now - told.at) / told.slowdown
    target_s = asked.target_s
    sent_s = sum(work_s for due_s, work_s in replica.sent_s.items() if due_s <= target_s)
    if asked.targets.kind is TargetKind.INTERACTIVE:
        later = sum(num for due_s, num in replica.in_flight.items() if due_s > target_s)
        urgent_s = (replica.num_in_flight - later) * (own_s + saved_s) + own_s
    else:
        tiers = [tier for tier in told.tiers.values() if tier.target_s <= target_s]
        there_s = told.backlog_s + sum(tier.waiting_s + tier.running_s for tier in tiers)
        urgent_s = max(0.0, there_s + sent_s - done_s) + own_s
    slack_s = math.inf
    if target_s < math.inf:
        slack_s = _slack_s(asked, told, sent_s - done_s, prefill_s)
    return View(slack_s, *(told.slowdown * each for each in (urgent_s, own_s, saved_s)))


def _slack_s(asked: Asked, told: Told, more_s: float, prefill_s: float) -> float:
    """Returns what is left of the target where there is so much more work ahead of the request than
    was told, or less.
    """
    tier = _tier(asked, told)
    if tier is None:
        return asked.target_s - told.slowdown * (max(0.0, more_s) + prefill_s)
    ahead_s = max(0.0, tier.ahead_s + more_s)
    left_s = asked.target_s - told.slowdown * (ahead_s + prefill_s)
    if tier.headroom_s is None:
        return left_s
    longer_s = prefill_s - tier.typical_len * told.prefill_s
    slack_s = told.slowdown * (tier.headroom_s + tier.ahead_s - ahead_s - longer_s)
    # How late a request would be is not told.
    return slack_s if tier.headroom_s else min(slack_s, left_s)


def _tier(asked: Asked, told: Told) -> TierTold | None:
    """Returns the tier whose headroom is the request's: its own, else the longest target that is no
    longer than its own.
    """
    named = told.tiers.get(asked.tier) if asked.tier else None
    if named is not None:
        return named
    tighter = [
        t for t in told.tiers.values() if t.target_s <= asked.target_s and t.headroom_s is not None
    ]
    return max(tighter, key=lambda t: t.target_s, default=None)
