"""The simulated target: replicas of an engine in virtual time, run by the scheduler of the service.

Takes the same planned requests as a live server and gives back the same records, so that every
mode, score and report works on both. What is not modelled: the network, the front end, and the
tokens themselves. Seconds throughout.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from engine import simulator
from engine.deciding.entries import Entry
from engine.deciding.latency import LatencyModel
from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pages import PAGE_SIZE
from engine.deciding.plan import Work
from engine.deciding.policies import longest_gap
from engine.deciding.request import Importance, Request, Sampling, Share, Targets, key_of
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.deciding.sequence import FinishReason
from engine.deciding.stats import TierAsked
from engine.fleet import Fleet, Outage
from engine.routing.router import ROUTING, ROUTINGS, Router
from engine.simulator import Arrival, Cost, Refusal, Replica, Result
from loadgen import interrupts
from loadgen.targets.decisions import DecisionLines
from loadgen.targets.profiles import Profile
from loadgen.targets.record import Outcome, Record
from loadgen.targets.series import SeriesRecorder
from loadgen.targets.target import WATCH_INTERVAL_S, End, Progress, Run, Watch
from loadgen.workload.lengths import USUALLY_STATED, Fixed, Stated, state
from loadgen.workload.plan import PlannedRequest
from loadgen.workload.served import TargetInfo
from niyama.client import values

COARSE_PAGE_SIZE = 64  # where no prefix is shared: fewer pages, nearly the same memory
_SCHEDULER = SchedulerConfig(num_pages=1, context_len=1)  # for its defaults
VOCABULARY_SIZE = 32_000
LEAST_NOISE = 0.1  # an iteration never takes less than this share of what is expected
_WATCH_EVERY = 64  # records
_STOPS = frozenset([simulator.STOP])


@dataclass(frozen=True, slots=True)
class Setup:
    """One group of equal replicas and how it is run. Raises ValueError, naming the field."""

    profile: Profile
    policy: str = _SCHEDULER.policy
    chunk_size: int = _SCHEDULER.chunk_size  # of the fixed-chunk policies
    replicas: int = 1
    routing: str = ROUTING
    pinned: Mapping[str, int] = field(default_factory=dict)  # tiers that go past the router
    outages: tuple[Outage, ...] = ()
    slow: Mapping[int, float] = field(default_factory=dict)  # replicas, how many times as slow
    predictor_error: float = 0.0  # standard deviation of actual / predicted, seeded
    max_requests: float = math.inf  # waiting or running, per replica
    drain_s: float = math.inf  # longest wait for the last answers
    prefix_caching: bool = False
    stated_output: Stated = USUALLY_STATED  # what callers state as `max_tokens`
    niyama: NiyamaConfig = field(default_factory=NiyamaConfig)
    # Of tenants that have a share of their own; all others have one together.
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0  # of the noise
    keeps_series: bool = False  # chunk size and queue length over time
    # How slow the machine is: until each instant, in turn, it takes so many times what the profile
    # says, and after the last as many times as before it.
    slowness: tuple[tuple[float, float], ...] = ()
    decision_log: Path | None = None  # of the last run

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {self.replicas}")
        if self.max_requests < 1:
            raise ValueError(f"max_requests must be at least 1, got {self.max_requests:g}")
        if not 0 <= self.predictor_error < 1:
            raise ValueError(f"predictor_error must be in [0, 1), got {self.predictor_error}")
        if self.routing not in ROUTINGS:
            raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}")
        if not all(factor > 0 for factor in self.slow.values()):
            raise ValueError("a replica is slow by a positive factor")
        self.scheduler_config()
        self.fleet()

    def scheduler_config(self) -> SchedulerConfig:
        """Says how the scheduler of each replica is configured."""
        page_size = PAGE_SIZE if self.prefix_caching else COARSE_PAGE_SIZE
        return SchedulerConfig(
            num_pages=max(1, self.profile.kv_tokens // page_size),
            context_len=self.profile.context_len,
            page_size=page_size,
            policy=self.policy,
            chunk_size=self.chunk_size,
            max_batch_size=self.profile.max_batch_size,
            prefix_caching=self.prefix_caching,
            record_capacity=0,
            token_events=False,
            niyama=self.niyama,
        )

    def fleet(self, sink: Callable[[Entry], None] | None = None) -> Fleet:
        """Makes the replicas, each idle at instant 0, and the router before them. `sink` gets every
        decision. Raises ValueError for a replica that there is not.
        """
        return Fleet(
            lambda index: self.replica(index, sink),
            self.replicas,
            Router(self.routing, self.seed),
            [
                TierAsked(
                    tier.name, _targets(tier.targets, None, None), _IMPORTANCE[tier.importance]
                )
                for tier in self.profile.tiers
            ],
            self.prefix_caching,
            self.pinned,
            self.outages,
        )

    def replica(self, index: int, sink: Callable[[Entry], None] | None = None) -> Replica:
        """Makes one of the replicas, idle at instant 0."""
        varies = self.predictor_error or self.slowness or index in self.slow
        model = LatencyModel if varies else _Exact
        scheduler = Scheduler(self.scheduler_config(), model(self.profile.latency), sink)
        cost = self._cost(index)
        replica = Replica(index, scheduler, cost if varies else None, self.max_requests)
        slowness = self.slowness
        if index in self.slow:
            slowness = ((math.inf, self.slow[index]),)
        if slowness:
            replica.cost = _slowed(replica, cost, slowness)
        return replica

    def _cost(self, index: int) -> Cost:
        """Makes the function that says what an iteration really takes. The scheduler sees only
        that, and learns from it.
        """
        predict = LatencyModel(self.profile.latency, learns=False).predict
        if not self.predictor_error:
            return predict
        gauss, error = random.Random(f"{self.seed}/cost/{index}").gauss, self.predictor_error

        def cost(work: Work) -> float:
            return predict(work) * max(LEAST_NOISE, 1 + gauss(0.0, error))

        return cost


def _slowed(replica: Replica, cost: Cost, slowness: Sequence[tuple[float, float]]) -> Cost:
    """Makes the replica's cost that of a machine that is so slow. Its time never goes back."""
    later = iter(slowness)
    until, factor = next(later)

    def slowed(work: Work) -> float:
        nonlocal until, factor
        began_at = now = replica.now
        left_s = cost(work)
        while now + factor * left_s > until:
            left_s -= max(0.0, until - now) / factor
            now = max(now, until)
            until, factor = next(later, (math.inf, factor))
        return now + factor * left_s - began_at

    return slowed


class _Exact(LatencyModel):
    """A model that never learns: where every iteration takes what is predicted there is nothing to
    learn, and time to save.
    """

    def observe(self, work: Work, actual_s: float) -> None:
        """Learns nothing."""


@dataclass(frozen=True, slots=True)
class SimulatedTarget:
    """Replicas that share all requests."""

    setup: Setup

    def info(self) -> TargetInfo:
        """Returns what the replicas say of themselves."""
        return target_info(self.setup, self.setup.policy, self.setup.replicas)

    def run(
        self,
        requests: Iterable[PlannedRequest],
        watch: Watch,
        series: SeriesRecorder | None = None,
    ) -> Run:
        """Runs the requests in virtual time. A recorder that has watched other replicas may be
        handed on in `series`, and goes on with these.
        """
        if self.setup.keeps_series and series is None:
            series = SeriesRecorder()
        with uncollected(), _decisions(self.setup) as sink:
            return _Recorder(self.setup, watch, series=series, sink=sink).run(requests)


@contextlib.contextmanager
def _decisions(setup: Setup) -> Iterator[Callable[[Entry], None] | None]:
    """Yields what takes the decisions of a run while it lasts; None where no log was asked for.
    Raises OSError.
    """
    if setup.decision_log is None:
        yield None
        return
    config, weights = setup.scheduler_config(), dict(setup.weights)
    lines = DecisionLines(setup.decision_log, config, setup.profile, weights)
    try:
        yield lines.write
    finally:
        lines.close()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Turns the search for cyclic garbage off while the block lasts: none is made here, and looking
    for it takes 15 % of a simulation's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def records(setup: Setup, requests: Iterable[PlannedRequest]) -> Iterator[Record]:
    """Yields the record of each request as it ends; whoever has seen enough may stop."""
    return _Recorder(setup, lambda progress: None).ended(requests)


def target_info(setup: Setup, policy: str, replicas: int) -> TargetInfo:
    """Returns what simulated replicas say of themselves, under the name of a policy."""
    profile = setup.profile
    name = f"simulated {profile.name}" + (f" x {replicas}" if replicas > 1 else "")
    if replicas > 1 and setup.routing != ROUTING:
        name += f", {setup.routing}"
    return TargetInfo(
        name,
        policy,
        profile.name,
        tuple(in_force(tier, policy, setup) for tier in profile.tiers),
        VOCABULARY_SIZE,
        profile.context_len,
        weights=setup.weights,
        stated_output=str(setup.stated_output),
    )


def in_force(tier: values.Tier, policy: str, setup: Setup) -> values.Tier:
    """Returns the tier with the `max_gap` that such a policy lets its requests have."""
    usual = longest_gap(policy, setup.niyama)
    if usual is None or tier.targets.tbt is None:
        return replace(tier, max_gap=None)
    return replace(tier, max_gap=usual if tier.max_gap is None else tier.max_gap)


@dataclass(slots=True)
class _Recorder:
    """One run: it makes arrivals of planned requests, and records of what became of them."""

    setup: Setup
    watch: Watch
    records: list[Record] = field(default_factory=list)
    by_id: dict[str, Record] = field(default_factory=dict)  # in flight
    num_finished: int = 0
    num_failed: int = 0
    watched_at: float = 0.0
    series: SeriesRecorder | None = None
    sink: Callable[[Entry], None] | None = None  # of decisions

    def run(self, requests: Iterable[PlannedRequest]) -> Run:
        """Runs to the end. A signal ends the run instead of the program, so that there is a
        report.
        """
        run = Run(self.records)
        try:
            for number, record in enumerate(self.ended(requests)):
                if number % _WATCH_EVERY == 0:
                    self._show(record.ended_at or 0.0)
        except KeyboardInterrupt as interrupt:
            run.end, run.problem = End.INTERRUPTED, "interrupted"
            run.interrupted_by = interrupts.number_of(interrupt)
            for record in self.by_id.values():
                record.outcome = Outcome.ABANDONED
        run.elapsed_s = max((record.ended_at or 0.0 for record in self.records), default=0.0)
        run.series = None if self.series is None else self.series.series()
        self.watch(self._progress(run.elapsed_s))
        return run

    def ended(self, requests: Iterable[PlannedRequest]) -> Iterator[Record]:
        """Yields records as their requests end."""
        fleet, drain_s = self.setup.fleet(self.sink), self.setup.drain_s
        observe = None if self.series is None else self.series.observe
        for result in fleet.run(self._arrivals(requests), drain_s, observe):
            yield self._note(result)

    def _arrivals(self, requests: Iterable[PlannedRequest]) -> Iterator[Arrival]:
        tiers = {tier.name: tier for tier in self.setup.profile.tiers}
        config, rng = self.setup.scheduler_config(), random.Random(f"{self.setup.seed}/stated")
        longest = min(config.context_len, config.num_pages * config.page_size)
        for planned in requests:
            record = Record(planned, sent_at=planned.at)
            self.records.append(record)
            room = longest - planned.prompt_len
            own = planned.stated
            said = self.setup.stated_output if own is None else Fixed(own)
            stated = state(said, planned.output_len, room, rng)
            arrival = Arrival(
                self._request(planned, tiers.get(planned.tier), stated),
                planned.cancel_after,
                planned.timeout_s,
                planned.output_len if planned.output_len < stated else None,
                planned.leaves_s,
            )
            self.by_id[arrival.request.id] = record
            yield arrival

    def _request(self, planned: PlannedRequest, tier: values.Tier | None, stated: int) -> Request:
        """Makes the request, with the share of its tenant."""
        request = _request(planned, tier, stated)
        weight = self.setup.weights.get(planned.tenant)
        return request if weight is None else replace(request, share=Share(planned.tenant, weight))

    def _note(self, result: Result) -> Record:
        record = self.by_id.pop(result.request.id)
        record.token_at = result.token_at
        record.server_ttft_s = record.ttft_s
        record.ended_at, record.replica = result.ended_at, str(result.replica)
        record.relegated, record.promised = result.relegated, result.promised
        record.outcome, record.error = _outcome(result), result.error
        if record.outcome is Outcome.FINISHED:
            self.num_finished += 1
        elif record.outcome.is_incomplete:
            self.num_failed += 1
        return record

    def _show(self, now: float) -> None:
        wall = time.monotonic()
        if wall >= self.watched_at + WATCH_INTERVAL_S:
            self.watched_at = wall
            self.watch(self._progress(now))

    def _progress(self, now: float) -> Progress:
        sent, in_flight = len(self.records), len(self.by_id)
        return Progress(now, sent, in_flight, self.num_finished, self.num_failed)


def _outcome(result: Result) -> Outcome:
    if result.refusal is not None:
        invalid = result.refusal is Refusal.INVALID
        return Outcome.FAILED if invalid else Outcome.REJECTED
    if result.finished is None:
        return Outcome.FAILED if result.lost else Outcome.UNFINISHED
    return _OUTCOMES[result.finished.reason]


_OUTCOMES = {
    FinishReason.STOP: Outcome.FINISHED,
    FinishReason.LENGTH: Outcome.FINISHED,
    FinishReason.CANCELLED: Outcome.CANCELLED,
    FinishReason.TIMEOUT: Outcome.TIMED_OUT,
    FinishReason.DISPLACED: Outcome.REJECTED,
    FinishReason.ERROR: Outcome.FAILED,
}


def _request(planned: PlannedRequest, tier: values.Tier | None, stated: int) -> Request:
    """Makes the request that the server would make of what the live generator sends, but with the
    `max_tokens` that callers state who do not know how long the output will be. The tenant, which
    a live server reads off the caller's credentials, is taken from the plan.

    `tier` is what the profile has by the plan's name of it. Its `max_gap` holds for who names it.
    """
    importance = values.Importance.NORMAL if tier is None else tier.importance
    max_gap = None if tier is None or planned.explicit else tier.max_gap
    return Request(
        id=key_of(planned.tenant, str(planned.index)),
        prompt=_prompt(planned),
        sampling=_sampling(stated),
        arrived_at=planned.at,
        targets=_targets(planned.targets, max_gap, planned.timeout_s),
        importance=_IMPORTANCE[planned.importance or importance],
        tier="" if planned.explicit else planned.tier,
        application=planned.application,
        tenant=planned.tenant,
        target_source="request" if planned.explicit else "tier",
        timeout_s=planned.timeout_s,
        refuse_if_late=planned.refuse_if_late,
    )


def _prompt(planned: PlannedRequest) -> Sequence[int]:
    """Returns token ids that only a prompt with the same shared prefix has in common with this
    one.
    """
    own = range(planned.index << 32, (planned.index << 32) + planned.prompt_len)
    if planned.prefix is None:
        return own
    start = (1 << 62) + (planned.prefix << 32)
    return [*range(start, start + planned.prefix_len), *own[planned.prefix_len :]]


_IMPORTANCE = {each: Importance[each.name] for each in values.Importance}


@cache
def _sampling(max_tokens: int) -> Sampling:
    """Makes the sampling of an output that a stop token may end. It is checked once per length, not
    once per request.
    """
    return Sampling(max_tokens=max_tokens, stop_token_ids=_STOPS)


@cache
def _targets(targets: values.Targets, max_gap: float | None, timeout_s: float | None) -> Targets:
    """Returns the targets, none of which is later than the call's own deadline."""
    stated = Targets(targets.ttft, targets.tbt, targets.ttlt, max_gap)
    return stated if timeout_s is None else stated.within(timeout_s)
