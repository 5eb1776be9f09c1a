"""How loaded the engine is, for whoever spreads calls over several: one answer a second at most,
and only while somebody asks.

What waits is told apart by what may come of it. A balancer that counted work which nobody hurries
for as a queue would send a person's request elsewhere, where it waits longer. So what repels is not
what waits, but what a request that comes now would have before it. Balancers know one number, and
there are several tiers: it is told of the one that has the least time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from engine.deciding.memory import Memory
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
from engine.deciding.stats import EngineStats, Outlook, Speeds, Totals
from engine.linking.errors import EngineLost, Unanswered
from engine.messages import EngineInfo
from engine.routing.told import repelling_of

FRESH_S = 1.0  # an answer is as good as a new one
STALE_S = 10.0  # it is worth nothing


class Rates(NamedTuple):
    """What came and what was computed, per second."""

    requests: float = 0.0
    generated_tokens: float = 0.0
    prefilled_tokens: float = 0.0


class TierLoad(NamedTuple):
    """What waits of a tier and what decodes; the outlook is None for a tier without targets, and
    before the first request of any.
    """

    waiting: Amount
    relegated: Amount
    best_effort: Amount
    running: Amount
    outlook: Outlook | None = None

    @property
    def queued(self) -> Amount:
        """Returns all that waits."""
        return total((self.waiting, self.relegated, self.best_effort))


class Load(NamedTuple):
    """The load of an engine at one moment. Seconds of work are engine time, as predicted."""

    tiers: Mapping[str, TierLoad]  # by name; "" for explicit targets
    waiting: Amount  # that should repel: see the module
    backlog: Amount  # all else that waits
    running: Amount
    demand: float  # engine time that is asked for per second: above 1 is overload
    rates: Rates
    speeds: Speeds
    memory: Memory
    batch_fill: float  # sequences that decode, of the most in one iteration
    cache_hits: float  # of the tokens of prompts, those that were cached, since the engine began

    @property
    def num_sequences(self) -> int:
        """Returns how many wait or decode, of any kind."""
        return self.waiting.num + self.backlog.num + self.running.num


def load_of(stats: EngineStats, info: EngineInfo, rates: Rates) -> Load:
    """Returns the load that an engine tells of."""
    saturation, totals = stats.saturation, stats.scheduler.totals
    amounts, outlooks = saturation.amounts, saturation.outlooks
    tiers = {
        tier: _tier_load(tier, amounts, outlooks.get(tier))
        for tier in sorted({*outlooks, *(tier for tier, _ in amounts)})
    }
    waiting = repelling_of(outlooks.values())
    running = total(tier.running for tier in tiers.values())
    return Load(
        tiers=tiers,
        waiting=waiting,
        backlog=total(tier.queued for tier in tiers.values()).less(waiting),
        running=running,
        demand=saturation.demand,
        rates=rates,
        speeds=saturation.speeds,
        memory=saturation.memory,
        batch_fill=min(1.0, running.num / info.max_batch_size),
        cache_hits=totals.cached_tokens / max(1, totals.prompt_tokens),
    )


def _tier_load(name: str, amounts: Mapping[Group, Amount], outlook: Outlook | None) -> TierLoad:
    waiting, relegated, best_effort, running = (
        amounts.get((name, state), NOTHING) for state in (WAITING, RELEGATED, BEST_EFFORT, RUNNING)
    )
    return TierLoad(waiting, relegated, best_effort, running, outlook)


def rates_of(before: Totals, now: Totals, seconds: float) -> Rates:
    """Returns what has come of totals per second; those of another engine have seen nothing."""
    per_s = 1 / max(1e-3, seconds)
    return Rates(
        max(0, now.num_submitted - before.num_submitted) * per_s,
        max(0, now.decode_tokens - before.decode_tokens) * per_s,
        max(0, now.prefill_tokens - before.prefill_tokens) * per_s,
    )


class Loads:
    """The newest load of an engine that comes and goes. `ask()` has it answer, and raises
    EngineLost and Unanswered; `info()` is what the engine that serves says of itself, None before
    the first.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[EngineStats]],
        info: Callable[[], EngineInfo | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._info = info
        self._clock = clock
        self._load: Load | None = None
        self._told_at = float("-inf")  # what is known now, be it that nothing is
        self._totals: tuple[Totals, float] | None = None  # when it was told
        self._asking: asyncio.Task[None] | None = None

    async def now(self) -> Load | None:
        """Returns the load, no older than FRESH_S; None where no engine tells of it."""
        if self._clock() - self._told_at >= FRESH_S:
            await asyncio.shield(self._refresh())  # others wait for it too
        return self._load

    def newest(self) -> Load | None:
        """Returns the load that is known, without waiting, and has the engine asked where that is
        old; None where it is older than STALE_S, too.
        """
        age_s = self._clock() - self._told_at
        if age_s >= FRESH_S:
            self._refresh()
        return self._load if age_s < STALE_S else None

    async def stop(self) -> None:
        """Asks no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _refresh(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._tell())
        return self._asking

    async def _tell(self) -> None:
        info = self._info()
        try:
            stats = await self._ask()
        except (EngineLost, Unanswered):
            info = None
        now, self._load = self._clock(), None
        if info is not None:
            before, self._totals = self._totals, (stats.scheduler.totals, now)
            since = (stats.scheduler.totals, now) if before is None else before
            rates = rates_of(since[0], stats.scheduler.totals, now - since[1])
            self._load = load_of(stats, info, rates)
        self._told_at = now
