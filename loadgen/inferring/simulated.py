"""Sends the applications' calls to a scheduler in virtual time, with what the service's own code
infers for them.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

from engine.deciding.request import Request, Sampling, Targets, key_of
from engine.deciding.sequence import FinishReason
from engine.inferring.calls import CallSite, Coming, End, Ended, site_of
from engine.inferring.choice import choose
from engine.inferring.habit import Need
from engine.inferring.habits import Habits, Observed
from engine.inferring.rhythm import Rhythm
from engine.simulator import STOP, Arrival, Result
from engine.tiers import Tier, Tiers
from loadgen.inferring.applications import TIERS, Call, Caller
from loadgen.targets.profiles import Profile
from loadgen.targets.simulated import Setup

STEP_S = 0.005  # in which an answer is taken, and the next call sent
_ENDS = {
    FinishReason.STOP: End.SERVED,
    FinishReason.LENGTH: End.SERVED,
    FinishReason.CANCELLED: End.LEFT,
    FinishReason.TIMEOUT: End.EXPIRED,
}
_Event = tuple[float, int, Call, bool]  # instant, number, call, whether it gives up then


def server_tiers() -> Tiers:
    """Returns the tiers of `applications` as the server has them."""
    made = {name: Tier(name, Targets(t.ttft, t.tbt, t.ttlt)) for name, t in TIERS.items()}
    return Tiers(made, next(iter(made)))


def run(callers: Sequence[Caller], profile: Profile, is_on: bool) -> None:
    """Sends all calls and notes in each what became of it."""
    simulation = _Simulation(profile, is_on)
    for caller in callers:
        simulation.send(caller, caller.first())
    simulation.run()


class _Simulation:
    def __init__(self, profile: Profile, is_on: bool) -> None:
        self._replica = Setup(profile).replica(0)
        self._is_on = is_on
        self._tiers = server_tiers()
        self._habits, self._rhythm = Habits(), Rhythm()
        self._needs: dict[CallSite, Need | None] = {}
        self._events: list[_Event] = []
        self._numbers = itertools.count()
        self._going: dict[str, tuple[Call, Caller, CallSite, Coming]] = {}
        self._callers: dict[int, Caller] = {}
        self._now = 0.0

    def send(self, caller: Caller, calls: Iterator[Call]) -> None:
        for call in calls:
            self._callers[id(call)] = caller
            self._push(max(call.at, self._now), call, False)

    def run(self) -> None:
        replica = self._replica
        while self._events or self._going:
            at = self._events[0][0] if self._events else math.inf
            self._now = min(at, max(replica.now, self._now) + STEP_S)
            self._take(replica.run_until(self._now))
            while self._events and self._events[0][0] <= self._now:
                _, _, call, gives_up = heapq.heappop(self._events)
                (self._give_up if gives_up else self._submit)(call)

    def _push(self, at: float, call: Call, gives_up: bool) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), call, gives_up))

    def _submit(self, call: Call) -> None:
        own = call.application
        named = own.name if own.is_named else ""
        site = site_of("", "", named, own.is_stream, "", own.timeout_s, own.output_len)
        coming = self._rhythm.arrive(site, self._now)
        need = self._needs.get(site)
        choice = None if need is None else choose(need, self._tiers)
        inferred = choice.inferred if choice is not None and self._is_on else None
        quality = self._tiers.resolve(timeout_s=own.timeout_s, inferred=inferred)
        call.tier, call.inferred = quality.tier, "" if choice is None else choice.tier.name
        request = Request(
            key_of("", f"{own.name}/{call.number}"),
            range(call.prompt_len),
            Sampling(max_tokens=own.output_len, stop_token_ids=frozenset([STOP])),
            self._now,
            quality.targets,
            quality.importance,
            quality.tier,
            named,
        )
        leaves_s = call.leaves_s if own.is_stream else min(call.leaves_s, call.gives_up_s)
        self._going[request.id] = call, self._callers.pop(id(call)), site, coming
        refused = self._replica.submit(
            Arrival(
                request,
                call.leaves_after,
                own.timeout_s,
                leaves_s=None if leaves_s == math.inf else leaves_s,
            )
        )
        assert refused is None, refused.error
        if own.is_stream and call.gives_up_s < math.inf:
            self._push(self._now + call.gives_up_s, call, True)

    def _give_up(self, call: Call) -> None:
        if call.ended_at == math.inf:
            key = key_of("", f"{call.application.name}/{call.number}")
            self._take(self._replica.give_up(key))

    def _take(self, results: Iterator[Result]) -> None:
        for result in results:
            call, caller, site, coming = self._going.pop(result.request.id)
            assert result.finished is not None
            assert result.ended_at is not None
            call.token_at, call.ended_at = list(result.token_at), result.ended_at
            end = _ENDS[result.finished.reason]
            call.is_complete = end is End.SERVED
            if end is End.SERVED:
                self._rhythm.served(site, call.ended_at)
            timeout_s = call.application.timeout_s
            ended = Ended(
                end,
                math.inf if timeout_s is None else timeout_s,
                _silence_s(call, end, result.request.arrived_at),
                len(call.token_at),
                coming,
            )
            for learnt in self._habits.observe(Observed(site, ended)):
                self._needs[learnt.site] = learnt.need
            self._now = max(self._now, call.ended_at)
            self.send(caller, caller.answered(call))


def _silence_s(call: Call, end: End, arrived_at: float) -> float:
    """Returns the longest time that the caller saw nothing come: of one who left, the last."""
    at, ended_at = call.token_at, call.ended_at
    if not (call.application.is_stream and at):
        return ended_at - arrived_at
    if end is End.LEFT:
        return ended_at - at[-1]
    gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
    return max(at[0] - arrived_at, *gaps, 0.0)
