"""Runs the real scheduler in virtual time: the executor is a cost function, the clock a number.

Knows nothing of workloads or reports: it takes requests in order of arrival and yields what became
of each. The decisions are those of the service, since the code is the same. Seconds throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from engine.deciding.plan import Event, Finished, Plan, Token, Work
from engine.deciding.request import Request
from engine.deciding.scheduler import Scheduler

Cost = Callable[[Work], float]
Observer = Callable[["Replica", Plan], None]

_TOKEN = Token(0)


class Outcome(NamedTuple):
    """How a request ended, on which replica."""

    request: Request
    finished: Finished
    replica: int


@dataclass(eq=False, slots=True)
class Replica:
    """One engine: a scheduler, and the instant up to which it has been simulated."""

    index: int
    scheduler: Scheduler
    cost: Cost
    now: float = 0.0
    busy_s: float = 0.0
    num_in_flight: int = 0

    def submit(self, request: Request) -> list[Event]:
        self.num_in_flight += 1
        return self.scheduler.submit(request, self.now)

    def run_until(self, instant: float, observe: Observer | None = None) -> Iterator[Finished]:
        """Every iteration that starts before `instant`; the last may end after it."""
        scheduler, cost = self.scheduler, self.cost
        while self.now < instant:
            plan = scheduler.plan(self.now)
            if plan is None:
                self.now = instant
                return
            if observe is not None:
                observe(self, plan)
            seconds = cost(plan.work)
            self.now += seconds
            self.busy_s += seconds
            for event in scheduler.commit(plan, [_TOKEN] * len(plan.sampling), self.now):
                if type(event) is Finished:
                    self.num_in_flight -= 1
                    yield event


Route = Callable[[list[Replica], Request], Replica]


def round_robin() -> Route:
    """Replicas in turn."""
    turn = -1

    def route(replicas: list[Replica], request: Request) -> Replica:
        nonlocal turn
        turn = (turn + 1) % len(replicas)
        return replicas[turn]

    return route


def least_loaded(replicas: list[Replica], request: Request) -> Replica:
    """The replica with the fewest requests in flight, the first among equals."""
    return min(replicas, key=lambda r: (r.num_in_flight, r.index))


def simulate(
    requests: Iterable[Request],
    replicas: list[Replica],
    route: Route = least_loaded,
    until: float = float("inf"),
    observe: Observer | None = None,
) -> Iterator[Outcome]:
    """What became of each request, in the order of their ends on each replica.

    Requests must come in order of arrival. Those not finished by `until` yield nothing.
    """
    in_flight: dict[str, Request] = {}

    def advance(instant: float) -> Iterator[Outcome]:
        for replica in replicas:
            for event in replica.run_until(instant, observe):
                yield Outcome(in_flight.pop(event.request_id), event, replica.index)

    for request in requests:
        yield from advance(min(request.arrived_at, until))
        if request.arrived_at > until:
            break
        in_flight[request.id] = request
        route(replicas, request).submit(request)
    while in_flight and any(r.now < until for r in replicas):
        ahead = max(r.now for r in replicas) + 60.0
        yield from advance(min(ahead, until))
