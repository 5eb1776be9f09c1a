"""What an engine tells a router, of what it says of itself.

What should repel a request that comes is the work ahead of a typical one of the tier that has the
least time: what waits behind people is no reason to send people elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from engine.deciding.queued_work import (
    BEST_EFFORT,
    NOTHING,
    RELEGATED,
    RUNNING,
    WAITING,
    Amount,
    Group,
    total,
)
from engine.deciding.stats import Outlook, Saturation
from engine.routing.states import TierTold, Told


def told_of(saturation: Saturation, at: float) -> Told:
    """Returns what is told of an engine that says so of itself at that instant."""
    speeds, memory, amounts = saturation.speeds, saturation.memory, saturation.amounts
    outlooks = saturation.outlooks
    names = sorted({*outlooks, *(tier for tier, _ in amounts)})
    repelling = repelling_of(outlooks.values())
    rest = _sum(amounts, (WAITING, RELEGATED, BEST_EFFORT)).less(repelling)
    return Told(
        at,
        {name: _tier(name, amounts, outlooks.get(name)) for name in names},
        backlog_s=_sum(amounts, (RELEGATED, BEST_EFFORT)).seconds,
        prefill_s=1 / max(1e-9, speeds.prefill_tokens_per_s),
        decode_s=speeds.decode_s,
        slowdown=speeds.slowdown,
        demand=saturation.demand,
        num_waiting=repelling.num,
        num_backlog=rest.num,
        waiting_tokens=repelling.tokens,
        backlog_tokens=rest.tokens,
        kv_usage=memory.usage,
        kv_held=memory.held / memory.total,
    )


def repelling_of(outlooks: Iterable[Outlook]) -> Amount:
    """Returns what should repel a request that comes, as the module says."""
    tightest = min(outlooks, key=lambda outlook: outlook.target_s, default=None)
    return NOTHING if tightest is None else tightest.ahead


def _tier(name: str, amounts: Mapping[Group, Amount], outlook: Outlook | None) -> TierTold:
    waiting, running = (amounts.get((name, state), NOTHING) for state in (WAITING, RUNNING))
    work = waiting.seconds, running.seconds
    if outlook is None:  # without targets; those that requests state themselves may be any
        return TierTold(math.inf if name else 0.0, None, *work)
    told = outlook.target_s, outlook.headroom_s
    return TierTold(*told, *work, outlook.prompt_len, outlook.ahead.seconds)


def _sum(amounts: Mapping[Group, Amount], states: tuple[str, ...]) -> Amount:
    return total(amount for (_, state), amount in amounts.items() if state in states)
