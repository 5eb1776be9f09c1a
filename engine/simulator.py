"""Runs the real scheduler in virtual time: the executor is a cost function, the clock a number.

It takes arrivals in order of time and yields what became of each; of workloads and reports it knows
nothing. The decisions are those of the service, since the code is the same. All durations and
instants are in seconds.

A token has no text here: its id is the number of the iteration that made it, so that a sequence's
output says when each of its tokens came (`Replica.ends`), and nothing is kept per token.

How long an output is, the scheduler learns as an engine does: by a stop token (STOP) when it is
over. What it is told beforehand is `max_tokens`, which callers state with much to spare.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from engine.deciding.entries import Unserved
from engine.deciding.outcome import Fate
from engine.deciding.plan import Accepted, Event, Finished, Plan, Relegated, Token, Work
from engine.deciding.request import Request
from engine.deciding.scheduler import Scheduler
from engine.deciding.sequence import FinishReason, Sequence, Status

Cost = Callable[[Work], float]  # the seconds that an iteration really takes
Observer = Callable[["Replica", Plan], None]  # is shown each plan before it is carried out

STOP = 1 << 62  # the token that ends an output: the number of no iteration
_STOP_TOKEN = Token(STOP)
_DRAIN_STEP_S = 60.0


class Arrival(NamedTuple):
    """A request as it arrives, how long its caller waits for it, and how long its output is."""

    request: Request
    leaves_after: int | None = None  # tokens after which the caller hangs up
    timeout_s: float | None = None  # from its arrival
    # The tokens after which its output is over, if STOP is a stop token of it; None: `max_tokens`.
    output_len: int | None = None
    leaves_s: float | None = None  # after which the caller hangs up, from its arrival


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
    lost: bool = False  # with its replica


@dataclass(eq=False, slots=True)
class Replica:
    """One engine: a scheduler, and the instant up to which it has been simulated."""

    index: int
    scheduler: Scheduler
    cost: Cost | None  # None: what the scheduler predicts
    max_requests: float = math.inf  # waiting or running
    now: float = 0.0
    ends: array[float] = field(default_factory=lambda: array("d"))  # of every iteration
    # Of the requests in flight, by their ids:
    _arrivals: dict[str, Arrival] = field(default_factory=dict)
    _leaving: dict[str, int] = field(default_factory=dict)  # tokens after which the caller hangs up
    # Heap of (instant, id, whether its deadline passes; else its caller hangs up)
    _timeouts: list[tuple[float, str, bool]] = field(default_factory=list)
    _relegated: set[str] = field(default_factory=set)
    _promised: dict[str, bool] = field(default_factory=dict)  # `on_time` of their Accepted
    _output_len: dict[str, int] = field(default_factory=dict)  # of those that end by STOP
    # Who may get its last token in which iteration, and in none before it.
    _ending: dict[int, set[Sequence]] = field(default_factory=dict)

    @property
    def num_in_flight(self) -> int:
        return len(self._arrivals)

    def submit(self, arrival: Arrival) -> Result | None:
        """Takes a request in, or returns the result that says why it was refused."""
        request, id = arrival.request, arrival.request.id
        if len(self._arrivals) >= self.max_requests:
            why = "the queue is full"
            call = Unserved(request, Fate.REFUSED, "queue_full", why, request.arrived_at)
            self.scheduler.unserved(call)
            return self._refuse(request, Refusal.QUEUE_FULL, why)
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
        if arrival.output_len is not None:
            self._output_len[id] = arrival.output_len
        for seconds, is_deadline in ((arrival.timeout_s, True), (arrival.leaves_s, False)):
            if seconds is not None:
                heapq.heappush(self._timeouts, (request.arrived_at + seconds, id, is_deadline))
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
            self.now += plan.predicted_s if cost is None else cost(plan.work)
            sampling = plan.sampling
            tokens = self._tokens(plan, sampling)
            ends.append(self.now)
            events = scheduler.commit(plan, tokens, self.now)
            if events:
                yield from self._ended(events, sampling)
            if self._leaving:
                yield from self._hang_up(sampling)

    def _tokens(self, plan: Plan, sampling: list[Sequence]) -> list[Token]:
        """Returns the tokens that the next iteration gives.

        Nobody's tokens are counted one by one: who begins to decode in this iteration with n tokens
        to come gets the last of them n - 1 iterations later at the earliest. It is looked at then,
        and again after as many iterations as it has been left out of since.
        """
        iteration = len(self.ends)
        tokens = [Token(iteration)] * len(sampling)
        for chunk in plan.chunks:
            if chunk.samples and chunk.sequence.id in self._output_len:
                self._may_end(chunk.sequence, iteration)
        ending = self._ending.pop(iteration, None)
        if ending is None:
            return tokens
        for i, sequence in enumerate(sampling):
            if sequence in ending:
                ending.discard(sequence)
                if len(sequence.output) + 1 == self._output_len[sequence.id]:
                    tokens[i] = _STOP_TOKEN
                else:
                    self._may_end(sequence, iteration)
        for sequence in ending:  # left out of this one; who waits again is seen when it goes on
            if sequence.status is Status.DECODING:
                self._may_end(sequence, iteration + 1)
        return tokens

    def _may_end(self, sequence: Sequence, iteration: int) -> None:
        """Notes when the output is over, if each iteration from that one on adds a token to it."""
        left = self._output_len[sequence.id] - len(sequence.output)
        self._ending.setdefault(iteration + left - 1, set()).add(sequence)

    def give_up(self, id: str) -> Iterator[Result]:
        """Yields what became of a request in flight whose caller hangs up now, if nothing of it has
        come.
        """
        if not self.scheduler.sequence(id).output:
            yield from self._cancel(id, FinishReason.CANCELLED)

    def lose(self) -> Iterator[Result]:
        """Yields what became of those of whom something has come, when the replica is lost; others
        have begun nothing yet (`unanswered`). Nothing more may be asked of it.
        """
        for result in self.in_flight():
            if result.token_at:
                yield result._replace(ended_at=self.now, lost=True, error="its replica was lost")

    def unanswered(self) -> list[Arrival]:
        """Returns those in flight of whom nothing has come, in the order in which they arrived."""
        scheduler = self.scheduler
        return [each for id, each in self._arrivals.items() if not scheduler.sequence(id).output]

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
                outputs = (s.output for s in sampling if s.id == event.request_id)
                output = next(outputs, [])  # who has waited too long has none
                if output and output[-1] == STOP:
                    output[-1] = len(self.ends) - 1
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
            _, id, is_deadline = heapq.heappop(self._timeouts)
            if id in self._arrivals:
                reason = FinishReason.TIMEOUT if is_deadline else FinishReason.CANCELLED
                yield from self._cancel(id, reason)

    def _cancel(self, id: str, reason: FinishReason) -> Iterator[Result]:
        output = self.scheduler.sequence(id).output
        for event in self.scheduler.cancel(id, reason, self.now):
            if type(event) is Finished:
                yield self._result(event, output)

    def _result(self, finished: Finished, output: list[int]) -> Result:
        id = finished.request_id
        self._leaving.pop(id, None)
        self._output_len.pop(id, None)
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


class Incident(NamedTuple):
    """What happens at an instant that no arrival is: all replicas have come that far."""

    at: float
    happens: Callable[[], Iterable[Result]]


def the_only_one(replicas: list[Replica], request: Request) -> Replica:
    """Returns the replica where there is one."""
    (replica,) = replicas
    return replica


def simulate(
    arrivals: Iterable[Arrival | Incident],
    replicas: list[Replica],
    route: Route = the_only_one,
    drain_s: float = math.inf,
    observe: Observer | None = None,
) -> Iterator[Result]:
    """Yields what became of each arrival, exactly once, in the order of their ends on each replica.

    Arrivals and incidents must come in order of time. Those still going on `drain_s` after the last
    of them come at the end, as they are then.
    """
    last_at = 0.0
    for arrival in arrivals:
        last_at = arrival.at if isinstance(arrival, Incident) else arrival.request.arrived_at
        for replica in replicas:
            if replica.now < last_at:
                yield from replica.run_until(last_at, observe)
        if isinstance(arrival, Incident):
            yield from arrival.happens()
            continue
        refused = route(replicas, arrival.request).submit(arrival)
        if refused is not None:
            yield refused
    for replica in replicas:
        while replica.num_in_flight and replica.now < last_at + drain_s:
            until = min(replica.now + _DRAIN_STEP_S, last_at + drain_s)
            yield from replica.run_until(until, observe)
        yield from replica.in_flight()
