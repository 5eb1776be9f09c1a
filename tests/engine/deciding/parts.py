"""Requests and sequences in a line, and a driver that holds a scheduler to its contract."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from engine.deciding.latency import (
    A100_LLAMA3_8B,
    UNBOUNDED,
    LatencyModel,
    LatencyProfile,
    Segment,
)
from engine.deciding.plan import (
    NOT_FINITE,
    Accepted,
    Event,
    Finished,
    Plan,
    Relegated,
    Sampled,
    Timings,
    Token,
    Work,
)
from engine.deciding.policies import FixedChunk
from engine.deciding.request import BEST_EFFORT, Importance, Request, Sampling, Share, Targets
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.deciding.sequence import FinishReason, Sequence, Status
from engine.simulator import Arrival, Observer, Replica, Result, simulate
from tests.engine.deciding.memory import BAD, Memory

# 1 ms for an iteration, 1 ms more for each prefill token, 0.1 ms for each decode: round numbers.
MILLI = LatencyProfile(
    "milli", (Segment(UNBOUNDED, base=1e-3, prefill=1e-3, decode=1e-4),), max_chunk=64
)


def make_request(
    name: str = "r",
    prompt: int | ListOf[int] = 10,
    output: int = 5,
    at: float = 0.0,
    targets: Targets = BEST_EFFORT,
    importance: Importance = Importance.NORMAL,
    tenant: str = "",
    application: str = "",
    sampling: Sampling | None = None,
    share: Share | None = None,
    tier: str = "",
    attempt: int = 1,
    timeout_s: float | None = None,
) -> Request:
    """A request of a tenant that the operator has named, where `share` says nothing else."""
    return Request(
        name,
        range(prompt) if isinstance(prompt, int) else prompt,
        sampling or Sampling(temperature=0.0, max_tokens=output),
        at,
        targets,
        importance,
        tier,
        application,
        tenant,
        share=Share(tenant) if share is None else share,
        attempt=attempt,
        timeout_s=timeout_s,
    )


def make_sequence(name: str = "r", **of_request: object) -> Sequence:
    request = make_request(name, **of_request)  # type: ignore[arg-type] # passed on as they are
    return Sequence(request, admitted_at=request.arrived_at)


def decode(sequence: Sequence, count: int, now: float = 0.0) -> None:
    """As many tokens come, all of them at `now`."""
    for _ in range(count):
        sequence.expect_token(now)
        sequence.take_token(0, now)


def make_stream(
    targets: Targets, due_at: float, last_token_at: float = 0.0, prompt: int = 10
) -> Sequence:
    """A sequence that got its first token at `last_token_at`, and whose next is due at `due_at`."""
    due_after = make_request(targets=targets).token_due_at(2)
    at = 0.0 if due_after == math.inf else due_at - due_after
    sequence = make_sequence(prompt=prompt, targets=targets, at=at)
    decode(sequence, 1, last_token_at)
    return sequence


def decodes_only(decodes: Iterable[Sequence]) -> Work:
    """The work of an iteration that has these decodes and nothing else."""
    decodes = list(decodes)
    return Work(len(decodes), sum(s.num_known for s in decodes))


def interactive(ttft_s: float, tbt_s: float) -> Targets:
    return Targets(ttft_s=ttft_s, tbt_s=tbt_s)


def deadline(ttlt_s: float) -> Targets:
    return Targets(ttlt_s=ttlt_s)


# For random requests under MILLI: none, impossible, tight and easy ones.
TARGETS = [
    BEST_EFFORT,
    interactive(0.05, 0.004),
    interactive(0.5, 0.02),
    interactive(1e-5, 1e-6),  # impossible
    deadline(1e-5),
    deadline(0.05),
    deadline(0.5),
    deadline(5.0),
]


def work_of(plan: Plan) -> Work:
    """Returns the work of a plan, token by token from its definition in plan.py."""
    positions = [range(c.start, c.start + c.length) for c in plan.chunks]
    return Work(
        num_decodes=len(plan.decodes),
        decode_context=sum(s.num_computed + 1 for s in plan.decodes),
        num_prefill=sum(len(p) for p in positions),
        prefill_context=sum(c.start + c.length for c in plan.chunks),
        prefill_pairs=sum(i + 1 for p in positions for i in p),
        num_chunks=len(plan.chunks),
    )


def timings_of(request: Request, token_at: list[float], ended_at: float, done: bool) -> Timings:
    """Returns what `Finished` must say, from instants of tokens and the definitions alone."""
    targets, arrived = request.targets, request.arrived_at
    gaps = [b - a for a, b in pairwise(token_at)]
    last = (token_at[-1] if token_at else ended_at) - arrived
    ttft = token_at[0] - arrived if token_at else None
    on_pace = all(t <= request.token_due_at(n) for n, t in enumerate(token_at[1:], start=2))
    return Timings(
        queue_s=None,
        ttft_s=ttft,
        mean_tbt_s=sum(gaps) / len(gaps) if gaps else None,
        worst_tbt_s=max(gaps) if gaps else None,
        ttlt_s=last,
        ttft_met=None if targets.ttft_s is None else ttft is not None and ttft <= targets.ttft_s,
        tbt_met=None if targets.tbt_s is None else bool(token_at) and on_pace,
        ttlt_met=None if targets.ttlt_s is None else done and last <= targets.ttlt_s,
    )


def complete_len(sampling: Sampling) -> int:
    """Returns how many tokens a request has that nobody cancels, where token n has id n."""
    stops = (n for n in sampling.stop_token_ids if n >= sampling.min_tokens)
    return min([n + 1 for n in stops] + [sampling.max_tokens])


def is_stopped(sampling: Sampling) -> bool:
    """Returns whether a stop token ends the request, where token n has id n."""
    return complete_len(sampling) - 1 in sampling.stop_token_ids


@dataclass
class Story:
    """All that the outside saw of one request."""

    request: Request
    token_at: list[float] = field(default_factory=list)
    started_at: float | None = None
    relegations: int = 0
    finished: Finished | None = None


class Launched(NamedTuple):
    """A plan in flight."""

    plan: Plan
    tokens: list[Token]
    started_at: float
    ends_at: float


class Driver:
    """Plans, executes and commits, asserting what every policy owes on each call.

    Token n of each request has id n, so that a lost, doubled or swapped token shows. Given a
    memory, there is none where what it read was no number: exactly requests with BAD may fail.
    """

    def __init__(self, scheduler: Scheduler, memory: Memory | None = None) -> None:
        self.scheduler = scheduler
        self.memory = memory
        self.stories: dict[str, Story] = {}
        self.now = 0.0
        self.in_flight_plan: Launched | None = None

    def submit(self, request: Request) -> None:
        (event,) = self.scheduler.submit(request, self.now)
        assert event.request_id == request.id
        self.stories[request.id] = Story(request)
        if isinstance(event, Finished):
            assert event.reason in (FinishReason.REJECTED, FinishReason.WOULD_BE_LATE)
            self._take([event])
        else:
            assert isinstance(event, Accepted)
        self.scheduler.check()

    def cancel(self, name: str) -> None:
        events = self.scheduler.cancel(name, FinishReason.CANCELLED, self.now)
        ends = [type(event) is Finished for event in events]
        expected = self.stories[name].finished is None
        assert sum(ends) == expected, "cancelling ends exactly those in flight"
        assert ends == sorted(ends), "what planning led to is told first"
        self._take(events)
        self.scheduler.check()

    def step(self, slowdown: float = 1.0, ahead: bool = False) -> Plan | None:
        """Plans an iteration that takes `slowdown` times what is predicted, then commits the one in
        flight; the new one stays in flight if `ahead`, and is else committed too.
        """
        before = self._holders()
        last, self.in_flight_plan = self.in_flight_plan, None
        plan = self.scheduler.plan(self._next_at(last))
        self.scheduler.check()
        self._check_victims(before)
        sequences = self.scheduler.roster.sequences.values()
        assert (plan is None) == all(s.status is Status.ENDING for s in sequences)
        tokens = []
        if plan is not None:
            self._check_plan(plan, self._next_at(last))
            tokens = self._compute(plan)
        if last is not None:
            self._commit(last)
        if plan is None:
            return None
        launched = Launched(plan, tokens, self.now, self.now + slowdown * plan.predicted_s)
        for chunk in plan.chunks:
            story = self.stories[chunk.sequence.id]
            story.started_at = self.now if story.started_at is None else story.started_at
        if ahead or last is not None:  # else it began when it was planned
            self.scheduler.advance(plan, self.now)
            self.scheduler.check()
        if ahead:
            self.in_flight_plan = launched
        else:
            self._commit(launched)
        return plan

    def _compute(self, plan: Plan) -> list[Token]:
        spoiled = {} if self.memory is None else self.memory.compute(plan)
        return [Token(NOT_FINITE if spoiled.get(s) else s.num_output) for s in plan.sampling]

    def _next_at(self, last: Launched | None) -> float:
        """Returns when what is planned now is expected to begin."""
        if last is None:
            return self.now
        return max(self.now, last.started_at + last.plan.predicted_s)

    def _commit(self, launched: Launched) -> None:
        self.now = max(self.now, launched.ends_at)
        self._take(self.scheduler.commit(launched.plan, launched.tokens, self.now))
        self.scheduler.check()

    def _holders(self) -> list[tuple[Sequence, Status, int]]:
        """Returns who holds pages, whether it decodes, and how often it has been preempted."""
        sequences = self.scheduler.roster.sequences.values()
        return [(s, s.status, s.num_preemptions) for s in sequences if s.pages]

    def _check_victims(self, before: list[tuple[Sequence, Status, int]]) -> None:
        """Asserts that no decode lost its pages while a partly prefilled sequence kept its own."""
        evicted = [
            s.status
            for s, status, count in before
            if status is Status.DECODING and s.num_preemptions > count
        ]
        kept = [
            s
            for s, status, count in before
            if status is Status.WAITING and s.num_preemptions == count
        ]
        assert not evicted or not kept, "a decode was evicted before a prefill"

    @property
    def in_flight(self) -> list[str]:
        return [name for name, story in self.stories.items() if story.finished is None]

    def _check_plan(self, plan: Plan, at: float) -> None:
        config, pages = self.scheduler.config, self.scheduler.pages
        members = [*plan.decodes, *(c.sequence for c in plan.chunks)]
        assert members, "no plan is empty"
        assert len(set(members)) == len(members), "a sequence appears once"
        assert plan.work == work_of(plan)
        assert plan.planned_at == at
        assert plan.predicted_s == self.scheduler.latency.predict(plan.work)
        writes = [(s, s.num_computed, 1) for s in plan.decodes]
        assert all(s.num_uncomputed == 1 for s in plan.decodes)
        assert all(s.due_at == s.request.token_due_at(s.num_output + 1) for s in members)
        for sequence, start, length, samples in plan.chunks:
            assert start == sequence.num_computed
            assert 1 <= length <= sequence.num_uncomputed
            assert samples == (length == sequence.num_uncomputed)
            assert len(sequence.tokens(start, start + length)) == length, "a token in flight"
            writes.append((sequence, start, length))
        for sequence, _, length, _ in plan.chunks[:-1]:
            left = sequence.num_uncomputed - sequence.num_in_flight
            assert length == left, "none is cut but the last"
        for sequence, start, length in writes:
            assert start + length <= len(sequence.pages) * pages.page_size, "unbacked position"
        self._check_writers(writes, pages.page_size)
        if isinstance(self.scheduler.policy, FixedChunk):
            room = max(0, config.chunk_size - plan.work.num_decodes)
            assert plan.work.num_prefill <= room, "the token budget holds"

    def _check_writers(self, writes: list[tuple[Sequence, int, int]], size: int) -> None:
        """Asserts that a page that is written in this iteration is in nobody else's table."""
        sequences = self.scheduler.roster.sequences.values()
        for sequence, start, length in writes:
            written = set(sequence.pages[start // size : (start + length - 1) // size + 1])
            for other in sequences:
                assert other is sequence or not written & set(other.pages), "a page has one writer"

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            story = self.stories[event.request_id]
            assert story.finished is None, "nothing follows the end"
            if isinstance(event, Sampled):
                assert event.token.id == len(story.token_at), "tokens come in order"
                story.token_at.append(self.now)
            elif isinstance(event, Relegated):
                story.relegations += 1
            elif isinstance(event, Finished):
                story.finished = event
                self._check_finished(story, event)

    def _check_finished(self, story: Story, event: Finished) -> None:
        request, count = story.request, len(story.token_at)
        done = event.reason in (FinishReason.LENGTH, FinishReason.STOP)
        assert (event.prompt_tokens, event.output_tokens) == (len(request.prompt), count)
        assert done == (count == complete_len(request.sampling))
        is_bad = self.memory is not None and BAD in request.prompt
        early = (FinishReason.CANCELLED, FinishReason.REJECTED, FinishReason.DISPLACED)
        if event.reason not in early:
            assert (event.reason is FinishReason.ERROR) == is_bad, "who fails"
            assert ("not finite" in event.detail) == is_bad
        assert (event.reason is FinishReason.STOP) == (done and is_stopped(request.sampling))
        expected = timings_of(request, story.token_at, self.now, done)
        actual = event.timings
        if story.started_at is None:
            assert actual.queue_s is None
        else:
            assert actual.queue_s == story.started_at - request.arrived_at
        for name in ("ttft_s", "worst_tbt_s", "ttlt_s", "ttft_met", "tbt_met", "ttlt_met"):
            assert getattr(actual, name) == getattr(expected, name), name
        assert (actual.mean_tbt_s is None) == (expected.mean_tbt_s is None)
        if actual.mean_tbt_s is not None and expected.mean_tbt_s is not None:
            assert abs(actual.mean_tbt_s - expected.mean_tbt_s) < 1e-9

    def drain(self, most: int = 100_000) -> None:
        """Runs until nothing is in flight; then all must be free and accounted for."""
        while self.in_flight or self.in_flight_plan is not None:
            assert most > 0, "no progress"
            most -= 1
            self.step()
        scheduler, stats = self.scheduler, self.scheduler.stats()
        assert scheduler.plan(self.now) is None
        assert stats.pages_free == stats.pages_total, "all pages are free at the end"
        assert stats.totals.num_submitted == stats.totals.num_finished == len(self.stories)
        ends = [story.finished.reason for story in self.stories.values() if story.finished]
        assert stats.totals.num_failed == ends.count(FinishReason.ERROR)
        assert (stats.num_waiting, stats.num_running, stats.num_held) == (0, 0, 0)
        assert stats.num_relegated == 0


# Requests made here begin alike: sharing prefixes is for the tests that ask for it.
_PLAIN = {"context_len": 10_000, "max_batch_size": 256, "prefix_caching": False}


def make_scheduler(
    policy: str = "niyama",
    num_pages: int = 1000,
    profile: LatencyProfile = MILLI,
    **changes: object,
) -> Scheduler:
    config = SchedulerConfig(num_pages, policy=policy, **{**_PLAIN, **changes})  # type: ignore[arg-type] # any field
    return Scheduler(config, LatencyModel(profile))


# The simulated A100: capacity about 10,000 prompt tokens per second


def make_replica(
    policy: str = "niyama", profile: LatencyProfile = A100_LLAMA3_8B, **changes: object
) -> Replica:
    """Makes an engine in virtual time whose iterations take exactly what is predicted."""
    config = {"num_pages": 25_000, "context_len": 16_384, **changes}
    return Replica(0, make_scheduler(policy, profile=profile, **config), profile.seconds)  # type: ignore[arg-type] # any field


def serve(
    requests: Iterable[Request], replica: Replica, observe: Observer | None = None
) -> dict[str, Result]:
    """Returns what became of each request, by id. They are sent as they arrive; each must end."""
    ordered = sorted(requests, key=lambda r: r.arrived_at)
    results = {o.request.id: o for o in simulate(map(Arrival, ordered), [replica], observe=observe)}
    assert len(results) == len(ordered)
    assert all(o.finished is not None for o in results.values())
    return results


def is_late(result: Result) -> bool:
    """Returns whether any target was missed, as `Finished` tells it."""
    assert result.finished is not None
    timings = result.finished.timings
    return False in (timings.ttft_met, timings.tbt_met, timings.ttlt_met)


def late_share(results: Iterable[Result]) -> float:
    late = [is_late(o) for o in results]
    return sum(late) / len(late)


def poisson(rate: float, duration_s: float, rng: random.Random) -> Iterator[float]:
    """Yields the instants of a Poisson process with `rate` per second."""
    at = rng.expovariate(rate)
    while at < duration_s:
        yield at
        at += rng.expovariate(rate)
