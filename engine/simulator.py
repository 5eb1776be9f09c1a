"""Runs the real scheduler in virtual time: the executor is a cost function, the clock a number.

It takes arrivals in order of time and yields what became of each; of workloads and reports it knows
nothing. The decisions are those of the service, since the code is the same. All durations and
instants are in seconds.

A token has no text here: its id is the number of the iteration that made it, so that a sequence's
output says when each of its tokens came (`Replica.ends`), and nothing is kept per token.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from engine.deciding.plan import Accepted, Event, Finished, Plan, Relegated, Token, Work
from engine.deciding.request import Request
from engine.deciding.scheduler import Scheduler
from engine.deciding.sequence import FinishReason, Sequence

Cost = Callable[[Work], float]  # the seconds that an iteration really takes
Observer = Callable[["Replica", Plan], None]  # is shown each plan before it is carried out

_DRAIN_STEP_S = 60.0


class Arrival(NamedTuple):
    """A request as it arrives, and how long its caller waits for it."""

    request: Request
    leaves_after: int | None = None  # tokens after which the caller hangs up
    timeout_s: float | None = None  # from its arrival


class Refusal(Enum):
    """Why a request that arrived never got into the engine."""

    QUEUE_FULL = "queue full"
    INVALID = "invalid"
    REJECTED = "rejected"  # by the policy


class Result(NamedTuple):
    """What became of an arrival. `finished` is None where it was refused or is still going on."""

    request: Request
    replica: int
    finished: Finished | None
    token_at: array[float]  # the instant of each token
    ended_at: float | None = None  # None: it is still going on
    relegated: bool = False  # at any time
    refusal: Refusal | None = None
    error: str = ""
    promised: bool | None = None  # `on_time` of its Accepted; None: it was refused


@dataclass(eq=False, slots=True)
class Replica:
    """One engine: a scheduler, and the instant up to which it has been simulated."""

    index: int
    scheduler: Scheduler
    cost: Cost
    max_requests: float = math.inf  # waiting or running
    now: float = 0.0
    ends: array[float] = field(default_factory=lambda: array("d"))  # of every iteration
    # Of the requests in flight, by their ids:
    _arrivals: dict[str, Arrival] = field(default_factory=dict)
    _leaving: dict[str, int] = field(default_factory=dict)  # tokens after which the caller hangs up
    _timeouts: list[tuple[float, str]] = field(default_factory=list)  # heap of (instant, id)
    _relegated: set[str] = field(default_factory=set)
    _promised: dict[str, bool] = field(default_factory=dict)  # `on_time` of their Accepted

    @property
    def num_in_flight(self) -> int:
        return len(self._arrivals)

    def submit(self, arrival: Arrival) -> Result | None:
        """Takes a request in, or returns the result that says why it was refused."""
        request, id = arrival.request, arrival.request.id
        if len(self._arrivals) >= self.max_requests:
            return self._refuse(request, Refusal.QUEUE_FULL, "the queue is full")
        try:
            events = self.scheduler.submit(request, self.now)
        except ValueError as error:
            return self._refuse(request, Refusal.INVALID, str(error))
        for event in events:
            if type(event) is Finished:
                refused = self._refuse(request, Refusal.REJECTED, event.detail)
                return refused._replace(ended_at=self.now)  # when the engine had looked at it
            if type(event) is Accepted:
                self._promised[id] = event.on_time
        self._arrivals[id] = arrival
        if arrival.leaves_after is not None:
            self._leaving[id] = arrival.leaves_after
        if arrival.timeout_s is not None:
            heapq.heappush(self._timeouts, (request.arrived_at + arrival.timeout_s, id))
        return None

    def _refuse(self, request: Request, refusal: Refusal, error: str) -> Result:
        at = request.arrived_at
        return Result(request, self.index, None, array("d"), at, refusal=refusal, error=error)

    def run_until(self, instant: float, observe: Observer | None = None) -> Iterator[Result]:
        """Runs every iteration that starts before `instant`, of which the last may end after it;
        yields what became of those that ended.
        """
        scheduler, cost, ends = self.scheduler, self.cost, self.ends
        while self.now < instant:
            if self._timeouts and self._timeouts[0][0] <= self.now:
                yield from self._time_out()
            plan = scheduler.plan(self.now)
            if plan is None:
                self.now = instant
                return
            if observe is not None:
                observe(self, plan)
            self.now += cost(plan.work)
            token = Token(len(ends))
            ends.append(self.now)
            sampling = plan.sampling
            events = scheduler.commit(plan, [token] * len(sampling), self.now)
            if events:
                yield from self._ended(events, sampling)
            if self._leaving:
                yield from self._hang_up(sampling)

    def in_flight(self) -> Iterator[Result]:
        """Yields the requests that have not ended, with the tokens that they have so far."""
        for id, arrival in self._arrivals.items():
            token_at = self._instants(self.scheduler.sequence(id).output)
            relegated = id in self._relegated
            yield Result(
                arrival.request,
                self.index,
                None,
                token_at,
                relegated=relegated,
                promised=self._promised.get(id),
            )

    def _ended(self, events: list[Event], sampling: list[Sequence]) -> Iterator[Result]:
        """Yields what became of those that an iteration finished; notes whom planning relegated."""
        for event in events:
            if type(event) is Finished:
                output = next(s.output for s in sampling if s.id == event.request_id)
                yield self._result(event, output)
            elif type(event) is Relegated:
                self._relegated.add(event.request_id)

    def _hang_up(self, sampling: list[Sequence]) -> Iterator[Result]:
        for sequence in sampling:
            leaves_after = self._leaving.get(sequence.id)
            if leaves_after is not None and len(sequence.output) >= leaves_after:
                yield from self._cancel(sequence.id, FinishReason.CANCELLED)

    def _time_out(self) -> Iterator[Result]:
        while self._timeouts and self._timeouts[0][0] <= self.now:
            _, id = heapq.heappop(self._timeouts)
            if id in self._arrivals:
                yield from self._cancel(id, FinishReason.TIMEOUT)

    def _cancel(self, id: str, reason: FinishReason) -> Iterator[Result]:
        output = self.scheduler.sequence(id).output
        for event in self.scheduler.cancel(id, reason, self.now):
            if type(event) is Finished:
                yield self._result(event, output)

    def _result(self, finished: Finished, output: list[int]) -> Result:
        id = finished.request_id
        self._leaving.pop(id, None)
        relegated = id in self._relegated
        self._relegated.discard(id)
        request = self._arrivals.pop(id).request
        token_at = self._instants(output)
        promised = self._promised.pop(id, None)
        return Result(
            request, self.index, finished, token_at, self.now, relegated, promised=promised
        )

    def _instants(self, output: list[int]) -> array[float]:
        """Returns when each token of the output came."""
        if output and output[-1] - output[0] == len(output) - 1:  # a token in every iteration
            return self.ends[output[0] : output[-1] + 1]
        ends = self.ends
        return array("d", [ends[iteration] for iteration in output])


Route = Callable[[list[Replica], Request], Replica]  # which replica a request is sent to


def round_robin() -> Route:
    """Returns a route that takes the replicas in turn."""
    turn = -1

    def route(replicas: list[Replica], request: Request) -> Replica:
        nonlocal turn
        turn = (turn + 1) % len(replicas)
        return replicas[turn]

    return route


def least_loaded(replicas: list[Replica], request: Request) -> Replica:
    """Returns the replica with the fewest requests in flight, the first among equals."""
    return min(replicas, key=lambda r: (r.num_in_flight, r.index))


def simulate(
    arrivals: Iterable[Arrival],
    replicas: list[Replica],
    route: Route = least_loaded,
    drain_s: float = math.inf,
    observe: Observer | None = None,
) -> Iterator[Result]:
    """Yields what became of each arrival, exactly once, in the order of their ends on each replica.

    Arrivals must come in order of time. Those still going on `drain_s` after the last arrival come
    at the end, as they are then.
    """
    last_at = 0.0
    for arrival in arrivals:
        last_at = arrival.request.arrived_at
        for replica in replicas:
            if replica.now < last_at:
                yield from replica.run_until(last_at, observe)
        refused = route(replicas, arrival.request).submit(arrival)
        if refused is not None:
            yield refused
    for replica in replicas:
        while replica.num_in_flight and replica.now < last_at + drain_s:
            until = min(replica.now + _DRAIN_STEP_S, last_at + drain_s)
            yield from replica.run_until(until, observe)
        yield from replica.in_flight()
