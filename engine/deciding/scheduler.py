"""Decides, iteration by iteration, which tokens are computed next.

    plan = scheduler.plan(now)
    tokens = executor.run(plan)
    events = scheduler.commit(plan, tokens, now)

The scheduler owns every sequence and every page. What differs between policies (order of prefills,
size of the chunk, who is relegated) is in policies.py; everything else is here and shared.
It never reads a clock: `now` is always the caller's, in seconds on the clock of `arrived_at`.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from dataclasses import dataclass

from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel, add_chunk
from engine.deciding.outcome import finished, note_token
from engine.deciding.pages import PagePool
from engine.deciding.plan import Accepted, Chunk, Event, Plan, Sampled, Token, Work
from engine.deciding.policies import Policy, make_policy
from engine.deciding.queue import SequenceQueue
from engine.deciding.request import Request
from engine.deciding.sequence import FinishReason, Sequence, Status


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Sizes in tokens unless said otherwise."""

    num_pages: int
    context_len: int
    page_size: int = 16
    policy: str = "niyama"
    chunk_size: int = 256  # of the fixed-chunk policies: all tokens of an iteration
    max_batch_size: int = 256  # sequences that have started and not finished
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("num_pages", "context_len", "page_size", "chunk_size", "max_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Counters and gauges at one moment."""

    num_waiting: int  # known tokens without KV, prefill not complete
    num_running: int  # decoding
    num_relegated: int  # of the waiting, those relegated
    pages_total: int
    pages_free: int  # free or reclaimable
    pages_cached: int
    num_iterations: int
    num_submitted: int
    num_finished: int
    num_preemptions: int
    num_relegations: int
    prefill_tokens: int
    decode_tokens: int
    cached_tokens: int
    backlog_s: float  # predicted seconds of prefill work waiting


class Scheduler:
    """See the module. Single-threaded; the loop or the simulator that drives it owns it."""

    def __init__(self, config: SchedulerConfig, latency: LatencyModel) -> None:
        self.config = config
        self.latency = latency
        self.history = OutputLengths()
        self.pages = PagePool(config.num_pages, config.page_size, config.prefix_caching)
        self.policy: Policy = make_policy(config.policy, config.chunk_size)
        self._sequences: dict[str, Sequence] = {}
        self._waiting = SequenceQueue()
        self._running: dict[Sequence, None] = {}
        self._events: list[Event] = []  # that planning caused; handed out by the next commit
        self._num_partial = 0  # waiting sequences that hold pages
        self.num_iterations = 0
        self.num_submitted = 0
        self.num_finished = 0
        self.num_preemptions = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.cached_tokens = 0

    # Arrivals and departures

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def can_ever_hold(self, num_positions: int) -> bool:
        """Whether a sequence of that length fits the context and the memory at all."""
        fits = self.pages.pages_for(num_positions) <= self.pages.num_pages
        return fits and num_positions <= self.config.context_len

    def submit(self, request: Request, now: float) -> list[Event]:
        """Take a request in. Raises ValueError, naming the field, if it could never be served."""
        if request.id in self._sequences:
            raise ValueError(f"request_id {request.id!r} is in flight")
        longest = len(request.prompt) + request.sampling.max_tokens
        if not self.can_ever_hold(longest):
            raise ValueError(
                f"prompt and max_tokens together are {longest} tokens; the context holds"
                f" {self.config.context_len} and the memory"
                f" {self.pages.num_pages * self.pages.page_size}"
            )
        sequence = Sequence(request, admitted_at=now)
        self._sequences[request.id] = sequence
        self.num_submitted += 1
        self._waiting.add(sequence, self.policy.key(sequence))
        return [Accepted(request.id, True, 0.0, 0.0)]

    def cancel(self, request_id: str, reason: FinishReason, now: float) -> list[Event]:
        """End a request early; its pages are free at once. No event if it is not in flight."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return []
        if sequence.status is Status.WAITING:
            self._leave_queue(sequence)
        else:
            del self._running[sequence]
        return [self._finish(sequence, reason, now)]

    def _leave_queue(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        if sequence.pages:
            self._num_partial -= 1

    def _finish(self, sequence: Sequence, reason: FinishReason, now: float) -> Event:
        sequence.status, sequence.finish_reason = Status.FINISHED, reason
        sequence.finished_at = now
        self.pages.release(sequence)
        self.pages.forget(sequence.id)
        del self._sequences[sequence.id]
        self.num_finished += 1
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            request = sequence.request
            self.history.observe(request.application or request.tier, len(sequence.output))
        return finished(sequence, now)

    # Planning

    def plan(self, now: float) -> Plan | None:
        """The next iteration, or None when there is nothing to compute."""
        while self._sequences:
            decodes = self._grant_decodes()
            context = sum(s.num_known for s in decodes)
            work = Work(len(decodes), context)
            chunks, work = self._grant_chunks(decodes, work, now)
            if decodes or chunks:
                predicted = self.latency.predict(work)
                return Plan(tuple(decodes), tuple(chunks), work, now, predicted)
            # Partly prefilled sequences hold all memory: the last in order gives up its pages.
            self._preempt(next(s for s in reversed(self._waiting) if s.pages))
        return None

    def _grant_decodes(self) -> list[Sequence]:
        """Every running sequence, each with a page for its next position."""
        for sequence in list(self._running):
            while sequence in self._running and not self.pages.grow(sequence, sequence.num_known):
                self._preempt(self._victim())
        return list(self._running)

    def _victim(self) -> Sequence:
        """Whose pages are taken when a decode needs one: a waiting sequence if any holds pages,
        the last in order first; else the running one that started last."""
        for sequence in reversed(self._waiting):
            if sequence.pages:
                return sequence
        return next(reversed(self._running))

    def _preempt(self, sequence: Sequence) -> None:
        """Take all pages; what was computed is recomputed later."""
        if sequence.status is Status.DECODING:
            del self._running[sequence]
            sequence.status = Status.WAITING
            sequence.num_computed = 0
            self.pages.release(sequence)
            self._waiting.add(sequence, self.policy.key(sequence))
        else:
            self._num_partial -= 1
            sequence.num_computed = 0
            self.pages.release(sequence)
            self._waiting.rekey(sequence, self.policy.key(sequence))
        sequence.num_preemptions += 1
        self.num_preemptions += 1

    def _grant_chunks(
        self, decodes: list[Sequence], work: Work, now: float
    ) -> tuple[list[Chunk], Work]:
        """Prefill chunks in the policy's order, as far as its budget, memory and batch reach."""
        chunks: list[Chunk] = []
        for sequence in self._waiting:
            started = bool(sequence.pages)
            if not started and (
                len(self._running) + self._num_partial >= self.config.max_batch_size
                or not self._has_memory_for(sequence)
            ):
                break
            if not started:
                self._attach_prefix(sequence)
            room = self.policy.room(work, sequence)
            length = min(room, sequence.num_uncomputed)
            start = sequence.num_computed
            if length <= 0 or not self.pages.grow(sequence, start + length):
                self._settle(sequence, started)
                break
            self._settle(sequence, started)
            if sequence.first_scheduled_at is None:
                sequence.first_scheduled_at = now
            chunks.append(Chunk(sequence, start, length, length == sequence.num_uncomputed))
            work = add_chunk(work, start, length)
        return chunks, work

    def _has_memory_for(self, sequence: Sequence) -> bool:
        """A sequence starts only when its whole prompt fits beside a page for every decode."""
        cached = self.pages.cached_prefix(sequence.request)
        needed = self.pages.pages_for(sequence.num_known + 1 - cached)
        if not self._running and not self._num_partial:
            return True
        return needed + len(self._running) <= self.pages.num_available

    def _attach_prefix(self, sequence: Sequence) -> None:
        sequence.num_computed = self.pages.attach(sequence)
        sequence.num_cached = max(sequence.num_cached, sequence.num_computed)

    def _settle(self, sequence: Sequence, started: bool) -> None:
        """Count the sequence among the partly prefilled if it came to hold pages."""
        if not started and sequence.pages:
            self._num_partial += 1

    # Committing

    def commit(self, plan: Plan, tokens: ListOf[Token], now: float) -> list[Event]:
        """The plan was carried out and gave `tokens`, in the order of `plan.sampling`."""
        self.latency.observe(plan.work, now - plan.planned_at)
        self.num_iterations += 1
        self.decode_tokens += plan.work.num_decodes
        self.prefill_tokens += plan.work.num_prefill
        events, self._events = self._events, []
        for sequence in plan.decodes:
            sequence.num_computed += 1
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.num_computed += chunk.length
            self.pages.publish(sequence, chunk.start, sequence.num_computed)
            if chunk.samples:
                self._leave_queue(sequence)
                sequence.status = Status.DECODING
                self._running[sequence] = None
            else:
                self._waiting.rekey(sequence, self.policy.key(sequence))
        for sequence, token in zip(plan.sampling, tokens, strict=True):
            self._advance(sequence, token, now, events)
        return events

    def _advance(self, sequence: Sequence, token: Token, now: float, events: list[Event]) -> None:
        sequence.output.append(token.id)
        note_token(sequence, now)
        events.append(Sampled(sequence.id, token))
        reason = self._end_of(sequence, token.id)
        if reason is not None:
            del self._running[sequence]
            events.append(self._finish(sequence, reason, now))

    def _end_of(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling, count = sequence.request.sampling, len(sequence.output)
        if token in sampling.stop_token_ids and count > sampling.min_tokens:
            return FinishReason.STOP
        if count >= sampling.max_tokens or sequence.num_known >= self.config.context_len:
            return FinishReason.LENGTH
        return None

    # Inspection

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_relegated=0,
            pages_total=self.pages.num_pages,
            pages_free=self.pages.num_available,
            pages_cached=self.pages.num_cached,
            num_iterations=self.num_iterations,
            num_submitted=self.num_submitted,
            num_finished=self.num_finished,
            num_preemptions=self.num_preemptions,
            num_relegations=0,
            prefill_tokens=self.prefill_tokens,
            decode_tokens=self.decode_tokens,
            cached_tokens=self.cached_tokens,
            backlog_s=0.0,
        )

    def check(self) -> None:
        """Assert the invariants that hold between any two calls."""
        self.pages.check(list(self._sequences.values()))
        waiting = [s for s in self._sequences.values() if s.status is Status.WAITING]
        assert set(waiting) == set(self._waiting), "queue and sequences disagree"
        assert self._num_partial == sum(bool(s.pages) for s in waiting)
        for sequence in self._sequences.values():
            assert (sequence.status is Status.DECODING) == (sequence in self._running)
            assert sequence.num_computed <= len(sequence.pages) * self.pages.page_size
            assert sequence.num_uncomputed >= 1
            if sequence.status is Status.DECODING:
                assert sequence.num_uncomputed == 1
