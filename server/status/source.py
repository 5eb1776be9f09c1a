"""Where the pages of the metrics port have what they tell: the registry, the engine, its parts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from engine.deciding.questions import Recent
from engine.inferring.proposal import NOTHING_KNOWN, Known, proposal
from engine.linking.errors import EngineLost, Unanswered
from engine.linking.link import EngineLink
from niyama.v1 import inference_pb2 as pb
from server.explaining import Stories
from server.status.document import decisions, document
from server.status.findings import Parts
from server.status.history import History, Sample
from server.status.loop import LoopLine

SAMPLE_S = 1.0
RECENT_AGE_S = 1.0  # how old the latest decisions may be, while somebody looks
MOST_RECENT = 20  # of each kind
_SKIPPED = ("_bucket", "_created")


class Source:
    """What is told: `parts` says how the server's parts are. To be made on the event loop, and
    asked by other threads.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        link: EngineLink,
        parts: Callable[[], Parts],
        decision_log: Path | None = None,
        known: Callable[[], Known] = lambda: NOTHING_KNOWN,
    ) -> None:
        self._registry = registry
        self._link = link
        self._parts = parts
        self._known = known
        self._stories = Stories(link.ask, decision_log)
        self._line = LoopLine(asyncio.get_running_loop())
        self._began_at = time.monotonic()
        self._history = History()
        self._recent: list[dict[str, Any]] = []
        self._recent_at = -RECENT_AGE_S
        self._asking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Remembers what the metrics say, every second, until it is cancelled."""
        while True:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(SAMPLE_S)

    def sample(self) -> None:
        """Remembers what the metrics say now."""
        samples = [
            Sample(each.name, each.labels, each.value)
            for metric in self._registry.collect()
            if metric.name.startswith("niyama_")
            for each in metric.samples
            if not each.name.endswith(_SKIPPED)
        ]
        self._history.add(time.monotonic(), samples)

    def parts(self) -> Parts:
        """Returns how the server's parts are. Raises LoopSilent."""

        async def look() -> Parts:
            return self._parts()

        return self._line.ask(look)

    def document(self) -> dict[str, Any]:
        """Returns what the status page shows, but for the latest decisions. Raises LoopSilent."""
        parts, uptime_s = self.parts(), time.monotonic() - self._began_at
        return document(self._history.window(), parts, time.time(), uptime_s)

    def decisions(self) -> dict[str, Any]:
        """Returns the latest decisions as they were last told, and when that was; the engine is
        asked for them now, and not waited for. Raises LoopSilent.
        """

        async def look() -> dict[str, Any]:
            is_old = time.monotonic() - self._recent_at >= RECENT_AGE_S
            if is_old and (self._asking is None or self._asking.done()):
                self._asking = asyncio.create_task(self._ask_recent())
                await asyncio.wait([self._asking], timeout=RECENT_AGE_S / 2)
            age_s = round(time.monotonic() - self._recent_at, 1)
            return {"decisions": self._recent, "decisions_age_s": age_s}

        return self._line.ask(look)

    def inferred(self) -> str:
        """Returns what was inferred, as a file for the operator. Raises LoopSilent."""

        async def look() -> Known:
            return self._known()

        return proposal(self._line.ask(look))

    def explain(self, request_id: str, tenant: str | None) -> pb.ExplainResponse:
        """Returns the story of the request that a tenant (None: any) calls so. Raises CallError and
        LoopSilent.
        """

        async def ask() -> pb.ExplainResponse:
            return await self._stories.tell(request_id, tenant)

        return self._line.ask(ask)

    async def _ask_recent(self) -> None:
        """Asks the engine for the latest decisions; those that it had told stay where it does not
        answer.
        """
        with contextlib.suppress(EngineLost, Unanswered):
            recent = await self._link.ask(Recent(MOST_RECENT))
            now = self._recent_at = time.monotonic()
            self._recent = decisions(recent, now, time.time())
