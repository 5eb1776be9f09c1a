"""Decides, iteration by iteration, which tokens are computed next.

    plan = scheduler.plan(now)
    pending = executor.launch(plan)
    events = scheduler.commit(plan, pending.tokens(), now)

The scheduler owns every sequence and every page. What differs between policies (order of prefills,
size of the chunk, who is relegated) is in policies.py and niyama.py; everything else is here and
shared. It never reads a clock: `now` is always the caller's, in seconds on the clock of
`arrived_at`.

Look-ahead: `advance(plan, started_at)` says that a plan has been launched, and the next may be made
before this one is committed (else `commit` advances it). One at most is in flight. All that it
computes counts as computed; only which tokens it samples is open (`Sequence.num_in_flight`). Should
one of them end its request, the token that the next plan has for it is dropped.

Pages change hands while launched iterations use them: the next plan may share what is published,
and be granted what was taken from a sequence that ended or was preempted. That is safe because
iterations are computed in the order of their launches: all reads and writes of the old owner come
before those of the new, who writes each position before it reads it (or has it cleared, where it
is read with weight 0). An ended sequence still in flight spoils no shared page: there its prompt is
all that it can write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListOf
from dataclasses import replace
from typing import Any

from engine.deciding.demand import Demand
from engine.deciding.forecast import Forecast, forecast
from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel, add_chunk
from engine.deciding.niyama import Niyama
from engine.deciding.outcome import CHOICE, LOGITS, finished
from engine.deciding.pages import PagePool
from engine.deciding.plan import Accepted, Chunk, Event, Plan, Relegated, Sampled, Token, Work
from engine.deciding.policies import ORDERS, FixedChunk, Move, MoveKind, Policy
from engine.deciding.questions import Estimate
from engine.deciding.queue import SequenceQueue
from engine.deciding.record import DecisionLog, Timeline
from engine.deciding.request import Request, Sampling
from engine.deciding.scheduler_config import SchedulerConfig
from engine.deciding.sequence import FinishReason, Sequence, Status
from engine.deciding.stats import SchedulerStats, Totals


class Scheduler:
    """See the module. Single-threaded; the loop or the simulator that drives it owns it.

    `decision_sink` gets every entry of the record as a plain dict, for an append-only log.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        latency: LatencyModel,
        decision_sink: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.config = config
        self.latency = latency
        self.history = OutputLengths(config.output_deviations)
        self.pages = PagePool(config.num_pages, config.page_size, config.prefix_caching)
        is_told = config.record_capacity > 0 or decision_sink is not None
        self.record = DecisionLog(config.record_capacity, decision_sink) if is_told else None
        chunk = latency.saturating_chunk() if config.policy == "niyama" else config.chunk_size
        self._demand = Demand(latency, self.history, chunk)
        self.policy = self._make_policy()
        self._sequences: dict[str, Sequence] = {}
        self._waiting = SequenceQueue()
        self._partial: dict[Sequence, None] = {}  # waiting, and holding pages
        self._running: dict[Sequence, None] = {}
        self._held: set[Sequence] = set()  # running, and sitting out the last planned iteration
        self._events: list[Event] = []  # that planning caused; handed out by the next call
        self._in_flight: Plan | None = None  # advanced, and not committed
        self._started_at = 0.0  # when the plan in flight did
        self._iteration_s = 0.0  # recent duration of an iteration
        self._num_relegated = 0  # of the waiting
        self.totals = Totals()

    def _make_policy(self) -> Policy:
        config = self.config
        if config.policy != "niyama":
            return FixedChunk(ORDERS[config.policy], config.chunk_size, self._demand)
        held = int(config.niyama.max_held_share * config.num_pages)
        return Niyama(config.niyama, self.latency, self._demand, config.chunk_size, held)

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
            raise ValueError(f"request_id {request.name!r} is in flight")
        longest = len(request.prompt) + request.sampling.max_tokens
        if not self.can_ever_hold(longest):
            raise ValueError(
                f"prompt and max_tokens together are {longest} tokens; the context holds"
                f" {self.config.context_len} and the memory"
                f" {self.pages.num_pages * self.pages.page_size}"
            )
        sequence = Sequence(request, admitted_at=now)
        self._sequences[request.id] = sequence
        self.totals.num_submitted += 1
        self._waiting.add(sequence, self.policy.enter(sequence, now))
        expected = self._forecast(sequence, now)
        if self.record is not None:
            self.record.admitted(request, expected, now)
        return [Accepted(request.id, expected.on_time, expected.ttft_s, expected.ttlt_s)]

    def cancel(self, request_id: str, reason: FinishReason, now: float) -> list[Event]:
        """End a request early; its pages are free at once. No event if there is no such one."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return []
        events, self._events = self._events, []
        self._leave(sequence)
        return [*events, self._finish(sequence, reason, now)]

    def _leave(self, sequence: Sequence) -> None:
        if sequence.status is Status.WAITING:
            self._leave_queue(sequence)
        elif sequence.status is Status.DECODING:
            self._leave_running(sequence)

    def _leave_queue(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        self.policy.leave(sequence)
        self._partial.pop(sequence, None)
        self._num_relegated -= sequence.relegated

    def _leave_running(self, sequence: Sequence) -> None:
        del self._running[sequence]
        self._held.discard(sequence)

    def _finish(self, sequence: Sequence, reason: FinishReason, now: float, why: str = "") -> Event:
        self.pages.release(sequence)
        sequence.finish(reason, now)
        self.pages.forget(sequence.id)
        del self._sequences[sequence.id]
        self.totals.num_finished += 1
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.history.observe(sequence.request.output_group, len(sequence.output))
        event = finished(sequence, now, why)
        if self.record is not None:
            self.record.close(event, now)
        return event

    # Planning

    def plan(self, now: float) -> Plan | None:
        """The next iteration, to begin at `now`; None when there is nothing to compute. With one
        in flight that is the instant at which it is expected to end."""
        if not self._waiting and not self._running:
            return None
        self._apply(self.policy.review(now), now)
        while True:
            decodes = self._grant_decodes(now)
            work = Work(len(decodes), sum(s.num_known for s in decodes))
            self.policy.begin(decodes, work, now)
            chunks, work = self._grant_chunks(work, now)
            if decodes or chunks:
                cost_s, cleared = self.latency.predict(work), self.pages.take_fresh()
                return Plan(tuple(decodes), tuple(chunks), work, now, cost_s, cleared)
            if self._partial:  # they hold all memory: the last in order gives up its pages
                self._preempt(self._last_partial(), now)
            # Else all that runs sat out for a stream that has lost its pages: now it need not.

    def _apply(self, moves: list[Move], now: float) -> None:
        reordered = {m.sequence: m.key for m in moves if m.kind is MoveKind.REORDER}
        if reordered:
            self._waiting.rekey_all(reordered)
        for move in moves:
            if move.kind is not MoveKind.REORDER:
                self._waiting.rekey(move.sequence, move.key)
                if move.kind is MoveKind.RELEGATE:
                    self._relegate(move, now)
                else:
                    self._restore(move, now)

    def _relegate(self, move: Move, now: float) -> None:
        move.sequence.relegate()
        self._num_relegated += 1
        self.totals.num_relegations += 1
        expected = self._note_move(move, now)
        self._events.append(Relegated(move.sequence.id, move.reason, expected.ttlt_s))

    def _restore(self, move: Move, now: float) -> None:
        move.sequence.restore()
        self._num_relegated -= 1
        self._note_move(move, now)

    def _note_move(self, move: Move, now: float) -> Forecast:
        expected = self._forecast(move.sequence, now)
        if self.record is not None:
            self.record.moved(move.sequence, move.kind.value, move.told, expected, now)
        return expected

    def _grant_decodes(self, now: float) -> list[Sequence]:
        """The running sequences that decode now, each with a page for its next position."""
        decodes = list(self._running)
        held = self.policy.hold(decodes, now)
        if held or self._held:
            self._note_holds(held, now)
            decodes = [s for s in decodes if s not in self._held]
        page_size, num_preemptions = self.pages.page_size, self.totals.num_preemptions
        for sequence in decodes:
            if sequence.num_known > len(sequence.pages) * page_size:
                self._grant_page(sequence, now)
        if self.totals.num_preemptions == num_preemptions:
            return decodes
        return [s for s in self._running if s not in self._held]

    def _grant_page(self, sequence: Sequence, now: float) -> None:
        """Preempts until there is one, or the sequence itself had to give way."""
        while sequence in self._running and not self.pages.grow(sequence, sequence.num_known):
            self._preempt(self._victim(now), now)

    def _note_holds(self, held: list[Sequence], now: float) -> None:
        before, self._held = self._held, set(held)
        self.totals.num_holds += len(held)
        if self.record is not None:
            self.record.held((s for s in held if s not in before), now)

    def _victim(self, now: float) -> Sequence:
        """Whose pages are taken when a decode needs one: a partly prefilled sequence, the last in
        order, if there is any; else the running one that has most slack for being computed again.
        """
        if self._partial:
            return self._last_partial()

        def slack_after(sequence: Sequence) -> tuple[float, float, str]:
            again_s = self.latency.prefill_seconds(0, sequence.num_known, self._demand.chunk)
            return (sequence.due_at - now - again_s, -again_s, sequence.id)

        return max(self._running, key=slack_after)

    def _last_partial(self) -> Sequence:
        """Of the partly prefilled sequences the last in order. Their number, not the queue's, is
        what this costs."""
        return max(self._partial, key=self._waiting.place)

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Take all pages; what was computed is computed again later."""
        self.pages.release(sequence)
        is_running = sequence in self._running
        num_lost = sequence.preempt()
        if is_running:
            self._leave_running(sequence)
            self._num_relegated += sequence.relegated
            self._waiting.add(sequence, self.policy.enter(sequence, now))
        else:
            del self._partial[sequence]
            self._waiting.rekey(sequence, self.policy.progress(sequence))
        self.totals.num_preemptions += 1
        if self.record is not None:
            self.record.note(sequence.id, now, "preempted", "memory ran out", tokens_lost=num_lost)

    def _grant_chunks(self, work: Work, now: float) -> tuple[list[Chunk], Work]:
        """Prefill chunks in the policy's order, as far as its budget, memory and batch reach."""
        chunks: list[Chunk] = []
        for sequence in self._candidates(now):
            if sequence not in self._partial:
                if self.policy.room(work, sequence) <= 0:
                    break  # what it could share may be more by then
                self._start(sequence)
            # A token in flight can be decoded, but not put into a chunk.
            known = sequence.num_uncomputed - sequence.num_in_flight
            length = min(self.policy.room(work, sequence), known)
            start = sequence.num_computed
            if length <= 0 or not self.pages.grow(sequence, start + length):
                break
            self._partial[sequence] = None
            chunks.append(Chunk(sequence, start, length, length == sequence.num_uncomputed))
            work = add_chunk(work, start, length)
        return chunks, work

    def _candidates(self, now: float) -> Iterator[Sequence]:
        """In the policy's order, up to the first that cannot start; then what has begun."""
        seen: set[Sequence] = set()
        for sequence in self.policy.order(self._waiting, now):
            if sequence not in self._partial and not self._can_start(sequence):
                begun = [s for s in self._partial if s not in seen]
                yield from sorted(begun, key=self._waiting.place)
                return
            seen.add(sequence)
            yield sequence

    def _can_start(self, sequence: Sequence) -> bool:
        """A sequence starts only when the batch has a place for it, and the memory holds its whole
        prompt beside a page for every running sequence."""
        num_started = len(self._running) + len(self._partial)
        if num_started == 0:
            return True
        share = self.policy.share_to_start(sequence)
        if num_started >= share * self.config.max_batch_size:
            return False
        needed = self.pages.num_missing(sequence.request, sequence.num_known + 1)
        kept_open = int((1 - share) * self.pages.num_pages)
        return needed + len(self._running) <= self.pages.num_available - kept_open

    def _start(self, sequence: Sequence) -> None:
        """Take from the prefix index what it has."""
        cached = self.pages.attach(sequence)
        if cached:
            sequence.take_prefix(cached)
            self.totals.cached_tokens += cached
            self._partial[sequence] = None

    # Launching and committing

    def advance(self, plan: Plan, started_at: float) -> None:
        """The plan has been launched and begins at `started_at`, after what was launched before it:
        all is known of it but its tokens. That other plan has been committed."""
        assert self._in_flight is None, "one plan at most is in flight"
        self._in_flight, self._started_at = plan, started_at
        chunks = [c for c in plan.chunks if c.sequence.finish_reason is None]
        self.policy.launched([(c.sequence, c.length) for c in chunks])
        for sequence in plan.decodes:
            if sequence.finish_reason is None and sequence.expect_token(started_at):
                self._stop_computing(sequence)
        for chunk in chunks:
            self._advance_chunk(chunk, started_at)

    def _advance_chunk(self, chunk: Chunk, started_at: float) -> None:
        sequence, stop = chunk.sequence, chunk.start + chunk.length
        self.pages.publish(sequence, chunk.start, stop)
        if chunk.samples:
            self._leave_queue(sequence)
            self._running[sequence] = None
            if sequence.expect_token(started_at):
                self._stop_computing(sequence)
        else:
            sequence.prefill(chunk.length, started_at)
            self._waiting.rekey(sequence, self.policy.progress(sequence))

    def _stop_computing(self, sequence: Sequence) -> None:
        """Its last token is in flight: its memory is of no use to it any more."""
        self._leave_running(sequence)
        self.pages.release(sequence)

    def commit(self, plan: Plan, tokens: ListOf[Token], now: float) -> list[Event]:
        """The plan was carried out and gave `tokens`, in the order of `plan.sampling`. Those of
        requests that have ended meanwhile are nobody's. Not advanced, it began when planned."""
        if plan is self._in_flight:
            self._observe(plan, now - self._started_at)
        else:
            self._observe(plan, now - plan.planned_at)
            self.advance(plan, plan.planned_at)
        self._in_flight = None
        events, self._events = self._events, []
        if self.record is not None:
            self.record.computed(plan, now)
        for sequence, token in zip(plan.sampling, tokens, strict=True):
            if sequence.finish_reason is None and token.is_sampled:
                self._append(sequence, token, now, events)
            elif sequence.finish_reason is None:
                self._refuse(sequence, token, now, events)
        return events

    def _observe(self, plan: Plan, duration: float) -> None:
        self.latency.observe(plan.work, duration)
        self._iteration_s += 0.1 * (duration - self._iteration_s)
        self.policy.computed(duration)
        self.totals.num_iterations += 1
        self.totals.decode_tokens += plan.work.num_decodes
        self.totals.prefill_tokens += plan.work.num_prefill

    def _append(self, sequence: Sequence, token: Token, now: float, events: list[Event]) -> None:
        reason = sequence.take_token(token.id, now)
        if self.config.token_events:
            events.append(Sampled(sequence.id, token))
        if len(sequence.output) == 1 and self.record is not None:
            self.record.note(sequence.id, now, "first_token")
        if reason is not None:
            self._leave(sequence)
            events.append(self._finish(sequence, reason, now))

    def _refuse(self, sequence: Sequence, token: Token, now: float, events: list[Event]) -> None:
        """None was picked. Where its logits are not finite and it had taken pages from the prefix
        index, those may be why, and it is computed once more, all by itself. Else it ends."""
        self._leave(sequence)
        if token.is_finite:
            events.append(self._finish(sequence, FinishReason.ERROR, now, CHOICE))
            return
        self.pages.withdraw(sequence.request)
        if sequence.num_cached:
            self._restart(sequence, now)
        else:
            self.totals.num_failed += 1
            events.append(self._finish(sequence, FinishReason.ERROR, now, LOGITS))

    def _restart(self, sequence: Sequence, now: float) -> None:
        """With its output so far; the old sequence, which the plan in flight may have, is over."""
        self.pages.release(sequence)
        again = sequence.restart()
        self._sequences[again.id] = again
        self._num_relegated += again.relegated
        self._waiting.add(again, self.policy.enter(again, now))
        if self.record is not None:
            self.record.note(again.id, now, "restarted", f"{LOGITS}; now without shared pages")

    # Questions

    def sequence(self, request_id: str) -> Sequence:
        """The state of a request in flight. Raises KeyError where there is none of that id."""
        return self._sequences[request_id]

    def _forecast(self, sequence: Sequence, now: float, output_len: int | None = None) -> Forecast:
        ahead_s = self.policy.ahead_s(sequence, now)
        alone_s = self.latency.usual(Work(1, sequence.num_known))
        iteration_s = max(self._iteration_s, alone_s)
        tbt_s = sequence.request.targets.tbt_s
        if tbt_s is not None and self.policy.keeps_pace:
            context = sequence.num_known + sum(s.num_known for s in self._running)
            decodes_s = self.latency.usual(Work(1 + len(self._running), context))
            iteration_s = min(iteration_s, max(tbt_s, decodes_s))
        return forecast(sequence, ahead_s, self._demand, iteration_s, now, output_len)

    def estimate(self, asked: Estimate, now: float) -> Forecast:
        """What would become of such a request if it was sent now."""
        output_len = asked.output_len
        request = Request(
            "",
            range(asked.prompt_len),
            Sampling(max_tokens=asked.default_output_len if output_len is None else output_len),
            arrived_at=now,
            targets=asked.targets,
            importance=asked.importance,
            tier=asked.tier,
            application=asked.application,
            tenant=asked.tenant,
        )
        if output_len is None:
            known = self.history.known(request.output_group)
            output_len = asked.default_output_len if known is None else known
        return self._forecast(Sequence(request, admitted_at=now), now, output_len)

    def explain(self, request_id: str, tenant: str | None = "") -> Timeline:
        """The story of the request that a tenant (None: any) calls so. Raises LookupError when none
        is remembered, ValueError when several tenants' are."""
        if self.record is None:
            raise LookupError("nothing is remembered")
        return self.record.find(request_id, tenant)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_relegated=self._num_relegated,
            num_held=len(self._held),
            pages_total=self.pages.num_pages,
            pages_free=self.pages.num_available,
            pages_cached=self.pages.num_cached,
            alpha=self.policy.alpha,
            latency_errors=self.latency.errors(),
            totals=replace(self.totals),
        )

    def check(self) -> None:
        """Assert the invariants that hold between any two calls."""
        sequences = list(self._sequences.values())
        self.pages.check(sequences)
        waiting = {s for s in sequences if s.status is Status.WAITING}
        assert waiting == set(self._waiting), "queue and sequences disagree"
        assert set(self._partial) == {s for s in waiting if s.pages}
        assert self._num_relegated == sum(s.relegated for s in waiting)
        assert len(self._running) + len(self._partial) <= self.config.max_batch_size
        assert {s for s in sequences if s.status is Status.DECODING} == set(self._running)
        sampling = [] if self._in_flight is None else self._in_flight.sampling
        in_flight = {s for s in sampling if s.status is not Status.FINISHED}
        assert all(s.num_in_flight == (s in in_flight) for s in sequences)
        for sequence in sequences:
            sequence.check(self.pages.page_size)
