"""How loaded the engine is, for whoever spreads calls over several: one answer a second at most,
and only while somebody asks.

What waits is told apart by what may come of it. A balancer that counted work which nobody hurries
for as a queue would send a person's request elsewhere, where it waits longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from engine.deciding.queued_work import BEST_EFFORT, RELEGATED, RUNNING, WAITING, Amount
from engine.deciding.stats import EngineStats
from engine.linking.errors import EngineLost, Unanswered
from engine.messages import EngineInfo

FRESH_S = 1.0  # an answer is as good as a new one
STALE_S = 10.0  # it is worth nothing


class Load(NamedTuple):
    """The load of an engine at one moment. Sequences that wait are those whose targets are to be
    kept; the backlog is of relegated and best-effort ones. Seconds are engine time, as predicted.
    """

    kv_usage: float  # of the memory of keys and values, from 0 to 1
    batch_fill: float  # sequences that decode, of the most in one iteration
    demand: float  # engine time that is asked for per second: above 1 is overload
    requests_per_s: float
    num_waiting: int
    num_running: int
    num_backlog: int
    waiting_s: float
    backlog_s: float
    headroom_s: Mapping[str, float]  # by tier: see `engine.deciding.stats.Outlook`


def load_of(stats: EngineStats, info: EngineInfo, requests_per_s: float) -> Load:
    """Returns the load that an engine tells of."""
    scheduler, saturation = stats.scheduler, stats.saturation
    waiting, running, backlog = (
        _sum(saturation.amounts, states)
        for states in ((WAITING,), (RUNNING,), (RELEGATED, BEST_EFFORT))
    )
    return Load(
        kv_usage=1 - scheduler.pages_free / scheduler.pages_total,
        batch_fill=min(1.0, running.num / info.max_batch_size),
        demand=saturation.demand,
        requests_per_s=requests_per_s,
        num_waiting=waiting.num,
        num_running=running.num,
        num_backlog=backlog.num,
        waiting_s=waiting.seconds,
        backlog_s=backlog.seconds,
        headroom_s={tier: each.headroom_s for tier, each in saturation.outlooks.items()},
    )


def _sum(amounts: Mapping[tuple[str, str], Amount], states: tuple[str, ...]) -> Amount:
    found = [amount for (_, state), amount in amounts.items() if state in states]
    return Amount(sum(each.num for each in found), sum(each.seconds for each in found))


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
        self._submitted: tuple[int, float] | None = None  # how many had come when it was told
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
            num, before = stats.scheduler.totals.num_submitted, self._submitted
            self._submitted = (num, now)
            per_s = 0.0 if before is None else max(0, num - before[0]) / max(1e-3, now - before[1])
            self._load = load_of(stats, info, per_s)
        self._told_at = now
