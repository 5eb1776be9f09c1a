"""To which of several live servers a request goes: the load generator as a router before a fleet.

It decides as any router does (`engine.routing`): each server is asked for its load every TELL_S,
and what was sent there since is counted. A server that does not answer is left out until it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.deciding.history import OutputLengths
from engine.deciding.memory import Memory
from engine.deciding.queued_work import BEST_EFFORT, RELEGATED, RUNNING, WAITING, Amount
from engine.deciding.request import Importance, Targets, key_of
from engine.deciding.stats import Outlook, Saturation, Speeds
from engine.fleet import TELL_S
from engine.routing.prefixes import PREFIX_LEN, prefix_keys
from engine.routing.router import Router
from engine.routing.states import Asked, Told
from engine.routing.told import told_of
from loadgen.targets.record import Outcome, Record
from loadgen.workload.plan import PlannedRequest
from niyama.client import AsyncClient, TimedOut, Unavailable
from niyama.client.load import Load, Work


@dataclass(slots=True)
class Spread:
    """The servers, by their addresses, and the router before them. `pinned` has the index of a
    server by the name of a tier.
    """

    servers: Sequence[str]
    router: Router
    pinned: Mapping[str, int] = field(default_factory=dict)
    _away: set[str] = field(default_factory=set)  # that did not answer when they were asked
    _lengths: OutputLengths = field(default_factory=lambda: OutputLengths(0.0))
    _sent: dict[int, str] = field(default_factory=dict)  # through the router, by index

    def choose(self, request: PlannedRequest, prompt: Sequence[int]) -> str:
        """Returns the server that the request is sent to, now."""
        if len(self.servers) == 1:
            return self.servers[0]
        pin = self.pinned.get(request.tier)
        if pin is not None and self.servers[pin] not in self._away:
            return self.servers[pin]
        there = [server for server in self.servers if server not in self._away]
        asked, now = self._asked(request, prompt), time.monotonic()
        server = self.router.ranked(asked, there or self.servers, now)[0]
        self.router.sent(server, asked, now, str(request.index))
        self._sent[request.index] = server
        return server

    def ended(self, record: Record) -> None:
        """A request has ended, however it did."""
        server = self._sent.pop(record.request.index, None)
        if server is not None:
            self.router.ended(server, str(record.request.index))
        if record.outcome is Outcome.FINISHED:
            self._lengths.observe(_group(record.request), len(record.token_at))

    async def ask(self, server: str, client: AsyncClient) -> None:
        """Asks a server for its load, and waits TELL_S at most for the answer."""
        try:
            async with asyncio.timeout(TELL_S):
                load = await client.load()
        except (Unavailable, TimedOut, TimeoutError):
            self._away.add(server)
            return
        self._away.discard(server)
        self.router.told(server, told(load, time.monotonic()))

    async def listen(self, clients: Mapping[str, AsyncClient]) -> None:
        """Asks all servers again and again."""
        while True:
            await asyncio.gather(*(self.ask(*each) for each in clients.items()))
            await asyncio.sleep(TELL_S)

    def _asked(self, request: PlannedRequest, prompt: Sequence[int]) -> Asked:
        targets = request.targets
        importance = "NORMAL" if request.importance is None else request.importance.name
        return Asked(
            "" if request.explicit else request.tier,
            Targets(targets.ttft, targets.tbt, targets.ttlt),
            Importance[importance],
            request.prompt_len,
            self._lengths.mean(_group(request), request.output_len),
            prefix_keys(request.tenant, prompt, PREFIX_LEN),
            PREFIX_LEN,
        )


def _group(request: PlannedRequest) -> str:
    return key_of(request.tenant, request.application or request.tier)


def told(load: Load, at: float) -> Told:
    """Returns what a server's load tells a router."""
    amounts, outlooks = {}, {}
    for name, tier in load.tiers.items():
        amounts[name, WAITING] = _amount(tier.waiting)
        amounts[name, RELEGATED] = _amount(tier.relegated)
        amounts[name, BEST_EFFORT] = _amount(tier.best_effort)
        amounts[name, RUNNING] = _amount(tier.running)
        if (o := tier.outlook) is not None:
            outlooks[name] = Outlook(
                o.headroom, o.late_chance, o.ttft, _amount(o.ahead), o.target, o.prompt_tokens
            )
    speeds, memory = load.speeds, load.memory
    saturation = Saturation(
        amounts,
        load.demand,
        outlooks,
        Speeds(speeds.iteration, speeds.prefill_tokens_per_second, speeds.decode, speeds.slowdown),
        Memory(
            page_size=1,
            total=memory.total_tokens,
            idle=memory.cached_tokens,
            held=memory.total_tokens - memory.free_tokens,
            patient=memory.patient_tokens,
        ),
    )
    return told_of(saturation, at)._replace(kv_usage=memory.usage)


def _amount(work: Work) -> Amount:
    return Amount(work.sequences, work.seconds, work.tokens)
