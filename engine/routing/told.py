"""What an engine tells a router, of what it says of itself.

What should repel a request that comes is the work ahead of a typical one of each tier, counted by
the part of the tightest tier's time that its own time stands for, and of these the most: a night's
work is due so late that it counts for next to nothing.
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
)
from engine.deciding.stats import Outlook, Saturation
from engine.routing.states import TierTold, Told


def told_of(saturation: Saturation, tokens_per_s: float, at: float) -> Told:
    """Returns what is told of an engine that says so of itself at that instant, and has computed so
    many tokens per second of late.
    """
    speeds, memory, amounts = saturation.speeds, saturation.memory, saturation.amounts
    outlooks = saturation.outlooks
    names = sorted({*outlooks, *(tier for tier, _ in amounts)})
    queued = _sum(amounts, (WAITING, RELEGATED, BEST_EFFORT))
    repelling = repelling_of(outlooks.values())
    return Told(
        at,
        {name: _tier(name, amounts, outlooks.get(name)) for name in names},
        backlog_s=_sum(amounts, (RELEGATED, BEST_EFFORT)).seconds,
        prefill_s=1 / max(1e-9, speeds.prefill_tokens_per_s),
        decode_s=speeds.decode_s,
        slowdown=speeds.slowdown,
        demand=saturation.demand,
        num_waiting=repelling.num,
        num_backlog=max(0, queued.num - repelling.num),
        waiting_tokens=repelling.tokens,
        backlog_tokens=max(0, queued.tokens - repelling.tokens),
        tokens_per_s=tokens_per_s,
        kv_usage=memory.usage,
        kv_held=memory.held / memory.total,
    )


def repelling_of(outlooks: Iterable[Outlook]) -> Amount:
    """Returns what should repel a request that comes, as the module says."""
    outlooks = list(outlooks)
    if not outlooks:
        return NOTHING
    tightest_s = min(outlook.patience_s for outlook in outlooks)
    parts = [(tightest_s / outlook.patience_s, outlook.ahead) for outlook in outlooks]
    return Amount(
        int(max(part * ahead.num for part, ahead in parts)),
        max(part * ahead.seconds for part, ahead in parts),
        int(max(part * ahead.tokens for part, ahead in parts)),
    )


def _tier(name: str, amounts: Mapping[Group, Amount], outlook: Outlook | None) -> TierTold:
    waiting, running = (amounts.get((name, state), NOTHING) for state in (WAITING, RUNNING))
    work = waiting.seconds, running.seconds
    if outlook is None:  # without targets; those that requests state themselves may be any
        return TierTold(math.inf if name else 0.0, None, *work)
    told = outlook.patience_s, outlook.headroom_s
    return TierTold(*told, *work, outlook.prompt_len, outlook.ahead.seconds)


def _sum(amounts: Mapping[Group, Amount], states: tuple[str, ...]) -> Amount:
    found = NOTHING
    for (_, state), amount in amounts.items():
        if state in states:
            found = found.plus(amount)
    return found
