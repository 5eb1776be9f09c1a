"""The decision: the replicas for a request, the best first.

*Slack* is what a replica leaves of the request's target: the headroom that it told for the
request's tier, less what the router has sent there since that is due no later, plus what the
replica has had time to do of what was ahead, and less what the request's own prompt takes more than
a typical one. A request is on time *for sure* where its slack is SURE of its target at least, which
allows for what the router does not know: others that send there, too, and forecasts that err.

Among the replicas where it is on time for sure the one with the least *urgent work* is best: all
that waits and runs there with targets no longer than the request's own, and the request's own work.
So interactive requests do not see a backlog of batch, however long, and batch sees all there is and
goes where there is most room. What a replica holds of the prompt is work saved for everybody there:
it counts AFFINITY times besides, so that a prefix stays with its replica for as long as requests
are on time there for sure and the others are not emptier by more than that.

Differences of less than the request's own work are none: chance decides, so that several routers
who were told the same do not all choose the same replica.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from engine.deciding.request import TargetKind
from engine.routing.states import Asked, Moment, Replica, TierTold, Told

SURE: Final = 0.1  # of the target
AFFINITY: Final = 1.0


class View(NamedTuple):
    """What one replica would be for a request. Seconds."""

    slack_s: float  # inf where the request has no target; -inf where nothing is known
    urgent_s: float  # work there that is as urgent as the request, and its own
    own_s: float  # the request's own work there
    saved_s: float  # work of which the request finds the result there


def ranked(asked: Asked, replicas: Sequence[Replica], moment: Moment) -> list[int]:
    """Returns the indices of the replicas, the best one for the request first."""
    views = [view(asked, replica, moment.now) for replica in replicas]
    least_s = SURE * asked.target_s if asked.target_s < math.inf else -math.inf

    def place(index: int) -> tuple[int, float]:
        each = views[index]
        if not replicas[index].is_known(moment.now):
            return (2, replicas[index].num_in_flight)
        if each.slack_s >= least_s:
            return (0, _cost(each))
        return (1, -each.slack_s)

    order = sorted(range(len(replicas)), key=place)
    if not order:
        return order
    best = place(order[0])
    tie_s = views[order[0]].own_s if best[0] == 0 else 0.0
    ties = [i for i in order if place(i)[0] == best[0] and place(i)[1] <= best[1] + tie_s]
    chosen = ties[int(moment.draw * len(ties))]
    return [chosen, *(i for i in order if i != chosen)]


def _cost(view: View) -> float:
    return view.urgent_s - AFFINITY * view.saved_s


def view(asked: Asked, replica: Replica, now: float) -> View:
    """Returns what the replica would be for the request."""
    told = replica.told
    if told is None:
        return View(-math.inf, 0.0, 0.0, 0.0)
    saved_s = replica.cached_len * told.prefill_s
    own_s = asked.prompt_len * told.prefill_s - saved_s + asked.output_len * told.decode_s
    target_s, elapsed_s = asked.target_s, max(0.0, now - told.at)
    ahead_s = sum(t.waiting_s for t in told.tiers.values() if t.target_s <= target_s)
    running_s = sum(t.running_s for t in told.tiers.values() if t.target_s <= target_s)
    sent_s = sum(work_s for due_s, work_s in replica.sent_s.items() if due_s <= target_s)
    behind_s = told.backlog_s if asked.targets.kind is not TargetKind.INTERACTIVE else 0.0
    urgent_s = max(0.0, ahead_s + running_s + behind_s + sent_s - elapsed_s) + own_s
    if target_s == math.inf:
        return View(math.inf, urgent_s, own_s, saved_s)
    ahead_now_s = max(0.0, ahead_s + sent_s - elapsed_s)
    left_s = target_s - ahead_now_s - (asked.prompt_len - replica.cached_len) * told.prefill_s
    tier = _tier(asked, told)
    if tier is None or tier.headroom_s is None:
        return View(left_s, urgent_s, own_s, saved_s)
    longer = asked.prompt_len - replica.cached_len - tier.typical_len
    slack_s = tier.headroom_s + ahead_s - ahead_now_s - longer * told.prefill_s
    if not tier.headroom_s:  # how late a request would be is not told
        slack_s = min(slack_s, left_s)
    return View(slack_s, urgent_s, own_s, saved_s)


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
