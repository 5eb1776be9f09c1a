"""Decides, iteration by iteration, which tokens are computed next.

    plan = scheduler.plan(now)
    pending = executor.launch(plan)
    events = scheduler.commit(plan, pending.tokens(), now)

The scheduler owns every sequence (sequence.py, roster.py) and every page (pages.py), and has each
iteration put together by planner.py. What differs between policies (order of prefills, size of the
chunk, who is relegated) is told in policy.py; everything else is shared. It never reads a clock:
`now` is always the caller's, in seconds on the clock of `arrived_at`.

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

from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListOf
from dataclasses import replace

from engine.deciding.entries import Entry, Unserved
from engine.deciding.expectations import Expectations
from engine.deciding.experience import Experience
from engine.deciding.flow import Flow
from engine.deciding.forecast import Forecast, lateness
from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel
from engine.deciding.memory import memory_of
from engine.deciding.notable import Notable
from engine.deciding.outcome import CHOICE, LOGITS, finished, is_on_time
from engine.deciding.pages import PagePool
from engine.deciding.plan import (
    Accepted,
    Chunk,
    Event,
    Plan,
    Relegated,
    Sampled,
    Token,
    make_sampled,
)
from engine.deciding.planner import Planner
from engine.deciding.policies import MAKERS, Resources
from engine.deciding.policy import Move, MoveKind
from engine.deciding.questions import Estimate
from engine.deciding.record import Record
from engine.deciding.request import Request
from engine.deciding.roster import Roster
from engine.deciding.scheduler_config import SchedulerConfig
from engine.deciding.sequence import FinishReason, Sequence
from engine.deciding.speed import SpeedNotes
from engine.deciding.stats import (
    ERROR_BOUNDS,
    ITERATION_BOUNDS,
    Distribution,
    Saturation,
    SchedulerStats,
    TierAsked,
    Totals,
)
from engine.deciding.timeline import Decision, Timeline
from engine.deciding.typical import TypicalRequests


class Scheduler:
    """The decisions of one engine, as the module describes them.

    It belongs to one thread, that of the loop or simulator that drives it. `decision_sink` gets
    every entry of the record as a plain dict, for an append-only log.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        latency: LatencyModel,
        decision_sink: Callable[[Entry], None] | None = None,
    ) -> None:
        self.config = config
        self.latency = latency
        self.experience = Experience()
        self.history = OutputLengths(config.output_deviations)
        self.pages = PagePool(config.num_pages, config.page_size, config.prefix_caching)
        self.prefixes = self.pages.index
        self.record = Record(config.record_capacity, decision_sink)
        self.totals = Totals()
        self.flow = Flow()
        self.typical = TypicalRequests()
        self._iterations = Distribution(ITERATION_BOUNDS)
        self._errors = Distribution(ERROR_BOUNDS)
        self._relegations: Counter[tuple[str, str]] = Counter()  # by tier and cause
        self._asked_s: dict[tuple[str, str], float] = {}  # by share and tier
        self._num_lost = 0  # of `totals.lost_tokens`: in the flow already
        resources = Resources(
            latency, self.history, config.num_pages, config.chunk_size, config.niyama
        )
        self.policy = MAKERS[config.policy](resources)
        self.roster = Roster(self.policy)
        self._expectations = Expectations(
            *(self.policy, self.roster, latency, self.history, self.experience),
            config.max_batch_size,
        )
        self._planner = Planner(
            self.roster,
            self.policy,
            self.pages,
            latency,
            config.max_batch_size,
            self.record,
            self.totals,
        )
        self._events: list[Event] = []  # that planning caused; handed out by the next call
        self._in_flight: Plan | None = None  # advanced, and not committed
        self._started_at = 0.0  # when the plan in flight did
        self._speed = None if decision_sink is None else SpeedNotes(latency.profile)

    # A request comes, and its caller may leave

    def submit(self, request: Request, now: float) -> list[Event]:
        """Takes a request in, or ends it at once where the policy turns it away. Raises ValueError,
        naming the field, if it could never be served.
        """
        if request.id in self.roster.sequences:
            raise ValueError(f"request_id {request.name!r} is in flight")
        self._check_fits(request)
        cached = self.pages.num_cached_of(request)
        sequence = Sequence(request, admitted_at=now, expected_prefix=cached)
        self.totals.num_submitted += 1
        if why := self._refusal(sequence, now):
            sequence.finish(FinishReason.REJECTED, now)
            return [self._reject(sequence, now, why, self.policy.retry_s(sequence, now))]
        promise = None
        if request.refuse_if_late and not self._is_of_a_call_let_in(request):
            promise = self._expectations.promise(sequence, now)
        if promise is not None and not promise.on_time:
            sequence.finish(FinishReason.WOULD_BE_LATE, now)
            why = lateness(request.targets, promise)
            told = promise.ttft_s, promise.ttlt_s
            return [self._reject(sequence, now, why, promise.on_time_in_s, told)]
        self.roster.wait(sequence, now)
        prefill_s = self.policy.demand.prefill_s(sequence)
        self._note_arrival(sequence, prefill_s, now)
        expected = promise or self._expectations.of(sequence, now)
        if expected.like is not None:
            first_at = request.arrived_at + expected.ttft_s
            self.experience.told(sequence, expected.like, first_at)
        if self.record.is_on:
            self._tell_admission(sequence, expected, prefill_s, now)
        return [Accepted(request.id, expected.on_time, expected.ttft_s, expected.ttlt_s)]

    def _note_arrival(self, sequence: Sequence, prefill_s: float, now: float) -> None:
        """Counts a request that was taken in, whose prefill takes so long."""
        self.totals.prompt_tokens += sequence.prompt_len
        self.typical.came(sequence.request.tier, sequence.prompt_len)
        prefills = sequence.prompt_len - sequence.expected_prefix
        decodes, decodes_s = self._expectations.decodes_of(sequence)
        self.flow.arrived(prefills, prefill_s, decodes, decodes_s, now)
        whose = sequence.request.share.name, sequence.request.tier
        self._asked_s[whose] = self._asked_s.get(whose, 0.0) + prefill_s + decodes_s

    def _tell_admission(
        self, sequence: Sequence, expected: Forecast, prefill_s: float, now: float
    ) -> None:
        policy, waiting = self.policy, self.roster.waiting
        self.record.admitted(
            sequence.request,
            expected,
            now,
            self._expectations.whose_is_ahead(sequence, expected),
            own_s=prefill_s,
            waiting=len(waiting) - 1,
            running=len(self.roster.running),
            overtaken_as_high=policy.num_overtaken_as_high(sequence, waiting),
        )

    def _refusal(self, sequence: Sequence, now: float) -> str:
        """Returns why the policy turns the request away, or ""."""
        is_let_in = self._is_of_a_call_let_in(sequence.request)
        return "" if is_let_in else self.policy.refusal(sequence, now)

    def _is_of_a_call_let_in(self, request: Request) -> bool:
        """Whether the first completion of its call was let in. Then the others are: the call would
        end for want of one, and all that its completions had waited for.
        """
        return request.first_of_call in self.roster.sequences

    def _reject(
        self,
        sequence: Sequence,
        now: float,
        why: str,
        retry_s: float,
        expected: tuple[float, float] | None = None,
    ) -> Event:
        """The request has ended before it began; returns its only event."""
        self.flow.asked(self._expectations.work_s(sequence), now)
        self.totals.num_finished += 1
        event = finished(sequence, now, why, retry_s, expected)
        self.record.rejected(sequence, event, now)
        return event

    def _check_fits(self, request: Request) -> None:
        longest = len(request.prompt) + request.sampling.max_tokens
        num_slots = self.pages.num_pages * self.pages.page_size
        if longest > min(self.config.context_len, num_slots):
            raise ValueError(
                f"prompt and max_tokens together are {longest} tokens; the context holds"
                f" {self.config.context_len} and the memory {num_slots}"
            )

    def cancel(self, request_id: str, reason: FinishReason, now: float) -> list[Event]:
        """Ends a request early; its pages are free at once. Without such a request there is no
        event.
        """
        sequence = self.roster.sequences.get(request_id)
        if sequence is None:
            return []
        events, self._events = self._events, []
        return [*events, self._finish(sequence, reason, now)]

    # An iteration is planned

    def plan(self, now: float) -> Plan | None:
        """Returns the next iteration, to begin at `now`; None when there is nothing to compute.
        With one in flight, `now` is the instant at which that is expected to end.
        """
        if not self.roster.waiting and not self.roster.running:
            if self._speed is not None:
                self._speed.idle()
            return None
        self._apply(self.policy.review(now), now)
        return self._planner.plan(now)

    def _apply(self, moves: list[Move], now: float) -> None:
        """Gives each the last key that a move has for it. Everybody is at its new place before
        anybody is told what to expect there.
        """
        if not moves:
            return  # as mostly
        keys = {move.sequence: move.key for move in moves}
        if any(move.kind is MoveKind.REORDER for move in moves):
            self.roster.waiting.rekey_all(keys)
        told = [move for move in moves if move.kind is not MoveKind.REORDER]
        for move in told:
            place = self.roster.relegate if move.kind is MoveKind.RELEGATE else self.roster.restore
            place(move.sequence, keys[move.sequence])
        for move in told:
            if move.kind is MoveKind.RESTORE:
                self._note(move, now)
                continue
            self.totals.num_relegations += 1
            self._relegations[move.sequence.request.tier, move.cause.value] += 1
            self.experience.learn(move.sequence.id, is_late=True)
            expected = self._note(move, now)
            self._events.append(Relegated(move.sequence.id, move.reason, expected.ttlt_s))

    def _note(self, move: Move, now: float) -> Forecast:
        sequence = move.sequence
        expected = self._expectations.of(sequence, now)
        if self.record.is_on:
            ahead = self._expectations.whose_is_ahead(sequence, expected)
            kind = move.kind.value
            self.record.moved(sequence, kind, move.told, expected, now, ahead, **move.values)
        return expected

    # It is launched

    def advance(self, plan: Plan, started_at: float) -> None:
        """Takes note that the plan has been launched, and begins at `started_at`: all is known of
        it but its tokens. What was launched before it has been committed.
        """
        assert self._in_flight is None, "one plan at most is in flight"
        self._in_flight, self._started_at = plan, started_at
        chunks = [c for c in plan.chunks if c.sequence.finish_reason is None]
        self.policy.launched([(c.sequence, c.length) for c in chunks])
        self._expect([s for s in plan.decodes if s.finish_reason is None], started_at)
        for chunk in chunks:
            self._advance_chunk(chunk, started_at)

    def _expect(self, sequences: list[Sequence], started_at: float) -> None:
        """A token of each of these is in flight. Where it is the last there is nothing left to
        compute, and no use for memory.
        """
        for sequence in self.roster.expect_tokens(sequences, started_at):
            self.roster.stop(sequence)
            self.pages.release(sequence)

    def _advance_chunk(self, chunk: Chunk, started_at: float) -> None:
        sequence, start, length, samples = chunk
        self.pages.publish(sequence, start, start + length)
        if not samples:
            sequence.prefill(length, started_at)
            self.roster.progress(sequence)
            return
        self.roster.run(sequence)
        self._expect([sequence], started_at)

    # Its tokens come

    def commit(self, plan: Plan, tokens: ListOf[Token], now: float) -> list[Event]:
        """Takes note that the plan was carried out by `now`, and gave `tokens` in the order of
        `plan.sampling`; returns what came of it, and of those who have waited too long. Tokens of
        requests that have ended meanwhile are nobody's. A plan that was not advanced is, and began
        when it was planned.
        """
        started_at = self._started_at if plan is self._in_flight else plan.planned_at
        self._observe(plan, now - started_at)
        if plan is not self._in_flight:
            self.advance(plan, started_at)
        self._in_flight = None
        events, self._events = self._events, []
        self.record.computed(plan, now, now - started_at)
        if self._speed is not None:
            for span in self._speed.ended(plan, started_at, now):
                self.record.ran(span)
        tells, tell = self.config.token_events, events.append
        for sequence, token in zip(plan.sampling, tokens, strict=True):
            if sequence.finish_reason is not None:
                continue
            token_id = token.id
            if token_id < 0:  # `is_sampled`, without a call for every token
                self._refuse(sequence, token, now, events)
                continue
            reason = sequence.take_token(token_id, now)
            if tells:
                tell(make_sampled(Sampled, (sequence.id, token)))
            if len(sequence.output) == 1:
                self.experience.began(sequence.id, now)
                self.record.first_token(sequence, now)
            if reason is not None:
                events.append(self._finish(sequence, reason, now))
        for sequence, why in self.policy.overdue(now):
            retry_s = self.policy.retry_s(sequence, now)
            events.append(self._finish(sequence, FinishReason.DISPLACED, now, why, retry_s))
        self.experience.pass_time(self.roster.sequences, now)
        return events

    def _observe(self, plan: Plan, duration: float) -> None:
        """Learns from the seconds that the plan took, and counts its tokens."""
        work, totals, predicted_s = plan.work, self.totals, plan.predicted_s
        self.latency.observe(work, duration)
        self.policy.demand.note_iteration(duration)
        self._iterations.add(duration)
        if predicted_s > 0:
            self._errors.add(duration / predicted_s)
        if plan.is_full:
            if plan.chunks:
                self.policy.demand.note_prefills(plan, duration)
            num_lost, self._num_lost = totals.lost_tokens - self._num_lost, totals.lost_tokens
            self.flow.done(work.num_prefill - num_lost, work.num_decodes, duration)
        totals.num_iterations += 1
        totals.predicted_s += predicted_s
        totals.num_chunks += work.num_chunks
        totals.decode_tokens += work.num_decodes
        totals.prefill_tokens += work.num_prefill

    def _refuse(self, sequence: Sequence, token: Token, now: float, events: list[Event]) -> None:
        """No token was picked. Where the logits are not finite and the sequence had taken pages
        from the prefix index, those may be why, and it is computed once more, all by itself. Else
        it ends.
        """
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
        """It is computed again, with its output so far."""
        self.roster.leave(sequence)
        self.pages.release(sequence)
        self.roster.wait(sequence.restart(), now)
        self.record.restarted(sequence, f"{LOGITS}; now without shared pages", now)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        why: str = "",
        retry_s: float = 0.0,
    ) -> Event:
        """The sequence ends, in whatever state it is; returns the last event of its request."""
        self.roster.leave(sequence)
        self.pages.release(sequence)
        self.pages.forget(sequence.id)
        sequence.finish(reason, now)
        self.totals.num_finished += 1
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.history.observe(sequence.output_group, len(sequence.output))
            self.typical.ended(sequence.request.tier, len(sequence.output))
        event = finished(sequence, now, why, retry_s)
        if reason in (FinishReason.CANCELLED, FinishReason.ERROR):
            self.experience.forget(sequence.id)
        else:
            self.experience.learn(sequence.id, is_late=not is_on_time(event))
        self.record.close(sequence, event, now)
        return event

    # Questions

    def sequence(self, request_id: str) -> Sequence:
        """Returns the state of a request in flight. Raises KeyError where there is none."""
        return self.roster.sequences[request_id]

    def estimate(self, asked: Estimate, now: float) -> Forecast:
        """Returns what would become of such a request if it was sent now."""
        return self._expectations.estimate(asked, now)

    def explain(
        self, request_id: str, tenant: str | None = "", now: float | None = None
    ) -> Timeline:
        """Returns what is remembered of the request that a tenant (None: any) calls so; of one in
        flight also, given `now`, where its time went and what it waits for. Raises LookupError when
        none is remembered, ValueError when several tenants' are.
        """
        timeline = self.record.find(request_id, tenant)
        sequence = self.roster.sequences.get(timeline.request.id)
        if sequence is None or now is None:
            return timeline
        decisions = list(timeline.decisions)
        if sequence in self.roster.waiting:
            decisions.append(self._waits(sequence, now))
        spent = self.record.spent(sequence.id, now)
        return Timeline(timeline.request, decisions, None, spent)

    def _waits(self, sequence: Sequence, now: float) -> Decision:
        """Returns what a waiting sequence waits for, told like a decision."""
        expected = self._expectations.of(sequence, now)
        first_at = None if sequence.output else sequence.request.arrived_at + expected.ttft_s
        values = {"ahead_s": expected.ahead_s, "late_chance": expected.late_chance}
        ahead = self._expectations.whose_is_ahead(sequence, expected)
        return Decision(now, "waiting", "it waits for its turn", values, first_at, ahead)

    def unserved(self, call: Unserved) -> None:
        """Takes note of a call, or a flood of calls, that ended before its requests came here."""
        self.record.unserved(call)
        work_s = self._expectations.work_s(Sequence(call.request, admitted_at=call.until))
        self.flow.asked(call.num_calls * work_s, call.until)

    def recent(self, most: int) -> tuple[Notable, ...]:
        """Returns the last notable decisions, `most` of each kind, the newest first."""
        return self.record.notable.last(most)

    def stats(self) -> SchedulerStats:
        """Returns how full the scheduler is now, and what it has done until now."""
        return SchedulerStats(
            num_waiting=len(self.roster.waiting),
            num_running=len(self.roster.running),
            num_relegated=self.roster.num_relegated,
            num_held=len(self.roster.held),
            pages_total=self.pages.num_pages,
            pages_free=self.pages.num_available,
            pages_idle=self.pages.num_idle,
            alpha=self.policy.alpha,
            latency_errors=self.latency.errors(),
            speed=self.latency.speed,
            iterations=self._iterations.counts(),
            errors=self._errors.counts(),
            relegations=dict(self._relegations),
            asked_s=dict(self._asked_s),
            totals=replace(self.totals),
        )

    def saturation(self, tiers: Iterable[TierAsked], now: float) -> Saturation:
        """Returns how near to its limits the engine is now, with what there is of these tiers, and
        of all others that it has had. Its cost does not depend on how many wait.
        """
        tiers = list(tiers)
        names = [tier.name for tier in tiers]
        amounts = self.roster.work.amounts(self.roster.running, self.policy.demand, names)
        longest, look = self.config.context_len, self._expectations.outlook
        outlooks = {t.name: look(t, self.typical.of(t.name), longest, now) for t in tiers}
        known = {name: outlook for name, outlook in outlooks.items() if outlook is not None}
        memory = memory_of(self.pages, self.roster)
        return Saturation(amounts, self.flow.ratio(now), known, self._expectations.speeds(), memory)

    def check(self) -> None:
        """Asserts the invariants that hold between any two calls."""
        sequences = list(self.roster.sequences.values())
        self.pages.check(sequences)
        self.roster.check(self._in_flight)
        assert self.roster.num_started <= self.config.max_batch_size
        for sequence in sequences:
            sequence.check(self.pages.page_size)
