"""The Niyama policy (arXiv 2503.22562; QoServe, ASPLOS 2026), and where it goes beyond.

Order: P = deadline + alpha * work left, in seconds of predicted engine time. alpha is read off the
queue: the work that waits for a deadline, over the smallest slack that serving it in order of
deadline would leave. An idle engine has alpha 0 (earliest deadline first); as the queue stops being
feasible alpha grows without bound (shortest work first), and a step of importance weighs as much as
the costliest recent request. While nobody had to be relegated lately, nobody is overtaken who would
be late for it; and a prefill that has begun is never overtaken at the price of its target.

Relegation: whenever the queue, served in order of deadline, cannot be on time, promises.py names
who gives way: among equals not before it must be, the less important an iteration earlier. What
was relegated is served with best effort, the older first, from what the others leave over and from
a small share of the engine that keeps it moving; it is taken back when there turns out to be time
for it.

Chunk: as large as pace.py allows, up to the size at which throughput saturates; while the
queue is light, no larger than keeps every raw gap within the TBT target. Decodes that have
time sit an iteration out when others would be late with them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from sortedcontainers import SortedKeyList, SortedList

from engine.deciding.demand import Demand
from engine.deciding.latency import LatencyModel, add_chunk
from engine.deciding.pace import LOST_GAP, Budget, PaceConfig, deadline_budget, iteration_budget
from engine.deciding.plan import Work
from engine.deciding.policies import BEST_EFFORT, KEPT, RELEGATED, Move, MoveKind
from engine.deciding.promises import Promises
from engine.deciding.queue import Key, SequenceQueue
from engine.deciding.sequence import Sequence

MAX_ALPHA = 1024.0
THRIFT = 1.05  # another size of chunk must be at least this much more efficient
PACE_WEIGHT = 0.05  # of one iteration in the pace that is expected
MAX_RETURNS = 3  # times that a relegated request is taken back
PATIENT_SHARE = 7 / 8  # of batch and memory: the rest stays open for interactive requests
RECENT = 1000  # requests whose work tells what "costly" is
LIGHT = 0.05  # load below which there is no hurry
ARRIVAL_WEIGHT = 1 / 64  # of one request in what is known of the recent ones
CALM = 0.5 * ARRIVAL_WEIGHT  # below this share the queue counts as feasible: none in 45 requests


@dataclass(frozen=True, slots=True)
class NiyamaConfig:
    """What an operator may set. The switches exist to measure what each part is worth."""

    pace: PaceConfig = field(default_factory=PaceConfig)
    allowance: float = 0.0  # share of requests that may be relegated early, costliest first
    background_share: float = 0.02  # of prefill tokens, for best effort and relegated requests
    max_held_share: float = 0.25  # of the memory, for decodes that sit out
    dynamic_chunks: bool = True
    hybrid: bool = True
    relegation: bool = True

    def __post_init__(self) -> None:
        for name in ("allowance", "background_share", "max_held_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


class Niyama:
    """See the module. `fixed_chunk` is used only where dynamic chunks are switched off."""

    def __init__(
        self,
        config: NiyamaConfig,
        latency: LatencyModel,
        demand: Demand,
        fixed_chunk: int,
        max_held_pages: int,
    ) -> None:
        self.config = config
        self._latency = latency
        self._demand = demand
        self._fixed_chunk = fixed_chunk
        self._max_held_pages = max_held_pages
        # While the queue is light there is no reason to let tokens come unevenly.
        self._light_pace = replace(config.pace, max_gap=1.0)
        self._pace = config.pace  # of the two, the one that holds now
        self._promises = Promises()
        self._hopeful: SortedKeyList[Sequence, float] = SortedKeyList(
            key=lambda s: s.prefill_due_at
        )
        self._background_s = 0.0  # work of best effort and relegated requests
        self._background: dict[Sequence, float] = {}
        self._credit = 0.0  # prefill tokens that the background may take before the others
        self._step_s = latency.prefill_seconds(0, demand.chunk, demand.chunk)
        self._pace_s = latency.predict(Work(1, 1))  # recent duration of an iteration
        self._decodes_s: dict[Sequence, float] = {}  # of the waiting: work after the prefill
        self._begun: dict[Sequence, None] = {}  # promised, and partly prefilled
        self._shortest_ttft_s = math.inf  # asked for lately
        self._pressure = 0.0  # share of the recent requests that had to be relegated
        self._alpha = 0.0
        self._plans_since_reorder = 0
        self._budget = Budget(math.inf, None)
        self._virtual_s = 0.0  # best effort: virtual time, and each share's last finish in it
        self._share_finish: dict[str, float] = {}  # by its name
        self._num_entered = 0
        self._num_spent = 0  # relegations charged to the allowance
        self._tags: dict[Sequence, float] = {}
        self._recent: SortedList[float] = SortedList()
        self._recent_order: list[float] = []

    @property
    def alpha(self) -> float:
        """Seconds of deadline that one second of work weighs."""
        return self._alpha

    @property
    def keeps_pace(self) -> bool:
        return self.config.dynamic_chunks

    @property
    def num_promised(self) -> int:
        return len(self._promises)

    # Places in the queue

    def enter(self, sequence: Sequence, now: float) -> Key:
        # No more decodes than fit before the deadline stand in anybody's way until then.
        most = max(0.0, sequence.due_at - now) / max(self._pace_s, 1e-9)
        self._decodes_s[sequence] = self._demand.decodes_s(sequence, most)
        work_s = self._work_s(sequence)
        if sequence.due_at == math.inf:
            return self._enter_background(
                sequence, BEST_EFFORT, self._fair_tag(sequence, work_s), work_s
            )
        if sequence.relegated:
            return self._enter_background(sequence, RELEGATED, sequence.request.arrived_at, work_s)
        sequence.prefill_by(self._prefill_due_at(sequence, now))
        self._promises.add(sequence, work_s)
        self._note_arrival(sequence, work_s)
        return self._key(sequence, work_s)

    def _prefill_due_at(self, sequence: Sequence, now: float) -> float:
        """When the work of the sequence is due. Its decodes are work for those behind it, but it
        need not wait for them itself: so later by them than its first token. For a TTLT, earlier
        by the time in which the expected output can follow, a token an iteration; but at most by
        half of the time left, as decodes that are in a hurry shorten iterations."""
        due = sequence.due_at + self._decodes_s.get(sequence, 0.0)
        if sequence.request.targets.ttlt_s is None:
            return due
        decode_s = self._demand.output_left(sequence) * self._pace_s
        return due - min(decode_s, max(0.0, sequence.due_at - now) / 2)

    def _enter_background(self, sequence: Sequence, rank: int, value: float, work_s: float) -> Key:
        self._background[sequence] = work_s
        self._background_s += work_s
        return (rank, value)

    def _key(self, sequence: Sequence, work_s: float) -> Key:
        step = self._recent[-1] if self._recent else 0.0
        work_s += (1 - sequence.request.importance) * step
        return (KEPT, sequence.prefill_due_at + self._alpha * work_s)

    def _fair_tag(self, sequence: Sequence, work_s: float) -> float:
        """Start-time fair queueing (Goyal et al., 1996) among the shares of best effort."""
        share = sequence.request.share
        start = max(self._virtual_s, self._share_finish.get(share.name, 0.0))
        self._tags[sequence] = start
        self._share_finish[share.name] = start + work_s / share.weight
        return start

    def _work_s(self, sequence: Sequence) -> float:
        """Predicted seconds of engine time that the sequence needs: prefill, and decodes."""
        return self._demand.prefill_s(sequence) + self._decodes_s[sequence]

    def progress(self, sequence: Sequence) -> Key:
        work_s = self._work_s(sequence)
        if sequence in self._promises:
            self._promises.set_work(sequence, work_s)
            if sequence.num_computed:
                self._begun[sequence] = None
            else:
                self._begun.pop(sequence, None)
            return self._key(sequence, work_s)
        self._background_s += work_s - self._background[sequence]
        self._background[sequence] = work_s
        rank = RELEGATED if sequence.relegated else BEST_EFFORT
        return (rank, -math.inf)  # what has begun holds memory: it goes on

    def leave(self, sequence: Sequence) -> None:
        del self._decodes_s[sequence]
        self._forget_place(sequence)

    def _forget_place(self, sequence: Sequence) -> None:
        if sequence in self._promises:
            self._promises.remove(sequence)
            self._begun.pop(sequence, None)
            return
        if self._tags.pop(sequence, None) is not None and not self._tags:
            self._share_finish.clear()  # nobody waits: nobody owes anybody a turn
        self._background_s = max(0.0, self._background_s - self._background.pop(sequence))
        if sequence in self._hopeful:
            self._hopeful.remove(sequence)

    def _note_arrival(self, sequence: Sequence, work_s: float) -> None:
        """Keep what is known of the recent requests: how costly, how hurried, how many too many."""
        self._num_entered += 1
        self._pressure *= 1 - ARRIVAL_WEIGHT
        self._shortest_ttft_s *= 1 + ARRIVAL_WEIGHT
        ttft_s = sequence.request.targets.ttft_s
        if ttft_s is not None and ttft_s > self._demand.prefill_s(sequence):  # else it is lost
            self._shortest_ttft_s = min(self._shortest_ttft_s, ttft_s)
        if len(self._recent_order) == RECENT:
            self._recent.remove(self._recent_order[self._num_entered % RECENT])
            self._recent_order[self._num_entered % RECENT] = work_s
        else:
            self._recent_order.append(work_s)
        self._recent.add(work_s)

    # Relegation

    def review(self, now: float) -> list[Move]:
        moves: list[Move] = []
        if self.config.relegation:
            while (pair := self._promises.victim(now, self._lead_s)) is not None:
                moves.append(self._relegate(*pair))
            if not moves:
                moves += self._restore(now)
            moves += self._spend_allowance()
        if self.config.hybrid:
            moves += self._reorder(now)
        return moves

    def _relegate(self, victim: Sequence, late: Sequence) -> Move:
        work_s = self._promises.all.work(victim)
        self._forget_place(victim)
        self._pressure += ARRIVAL_WEIGHT
        if victim.num_relegations < MAX_RETURNS:
            self._hopeful.add(victim)  # until its deadline has passed
        key = self._enter_background(victim, RELEGATED, victim.request.arrived_at, work_s)
        if victim is late:
            return Move(victim, key, MoveKind.RELEGATE, "it would end late by itself")
        return Move(victim, key, MoveKind.RELEGATE, "others could not be on time", late)

    def _spend_allowance(self) -> list[Move]:
        """Under load, give up the costliest request before it costs others their deadline, as far
        as the operator allows."""
        allowed = int(self.config.allowance * self._num_entered)
        if self._alpha < 1 or self._num_spent >= allowed or len(self._recent) < RECENT // 10:
            return []
        costly = self._recent[int((1 - self.config.allowance) * len(self._recent))]
        victim = self._promises.all.largest_until(math.inf)
        if victim is None or self._promises.all.work(victim) < costly:
            return []
        self._num_spent += 1
        move = self._relegate(victim, victim)
        self._hopeful.discard(victim)
        return [move._replace(reason="within the allowance: among the costliest, under load")]

    def _restore(self, now: float) -> list[Move]:
        """Take back the relegated request that is due next, if there is twice the time for it."""
        start = now + self._lead_s
        while self._hopeful and self._hopeful[0].prefill_due_at <= start:
            self._hopeful.pop(0)
        if not self._hopeful:
            return []
        sequence = self._hopeful[0]
        work_s, everybody = self._background[sequence], self._promises.all
        due = sequence.prefill_due_at
        own = start + everybody.work_until(due) + 2 * work_s - due
        others = start + everybody.lateness_after(due) + 2 * work_s
        if max(own, others) > 0:
            return []
        self._forget_place(sequence)
        self._promises.add(sequence, work_s)
        return [
            Move(sequence, self._key(sequence, work_s), MoveKind.RESTORE, "there is time again")
        ]

    def _load(self, now: float) -> float:
        """Waiting work over the smallest slack; 0 for an empty queue, inf for a hopeless one."""
        everybody = self._promises.all
        slack_s = -(now + everybody.lateness)
        return everybody.total / slack_s if slack_s > 0 else math.inf

    def _reorder(self, now: float) -> list[Move]:
        """Follow the load with alpha, in powers of two; amortised, as everybody's key changes."""
        everybody = self._promises.all
        self._plans_since_reorder += 1
        if 16 * self._plans_since_reorder <= len(everybody):
            return []
        load = self._load(now)
        alpha = 0.0 if load < 0.5 else 2.0 ** round(math.log2(min(load, MAX_ALPHA)))
        if alpha == self._alpha:
            return []
        self._alpha, self._plans_since_reorder = alpha, 0
        return [Move(s, self._key(s, everybody.work(s)), MoveKind.REORDER) for s in everybody]

    # The iteration

    def hold(self, running: list[Sequence], now: float) -> list[Sequence]:
        """Deadline streams with time to spare, most first, as long as the interactive ones would
        be late with them; bounded by the memory that they keep."""
        elastic = [s for s in running if s.request.targets.ttlt_s is not None and s.due_at > now]
        if not elastic or len(elastic) == len(running):
            return []
        strict = ((s, 1) for s in running if s.request.targets.tbt_s is not None)
        budget_s = iteration_budget(self.config.pace, strict, 0.0, now).seconds
        work = Work(len(running), sum(s.num_known for s in running))
        expected_s = self._latency.predict(work)
        if expected_s * self._latency.margin <= budget_s:
            return []
        left = self._demand.output_left
        spare = [(deadline_budget(s.due_at, left(s), now), s.id, s) for s in elastic]
        held: list[Sequence] = []
        pages = 0
        for per_token_s, _, sequence in sorted(spare, reverse=True):
            pages += len(sequence.pages)
            if per_token_s < 2 * expected_s or pages > self._max_held_pages:
                break
            held.append(sequence)
            work = work._replace(
                num_decodes=work.num_decodes - 1,
                decode_context=work.decode_context - sequence.num_known,
            )
            if self._latency.predict(work) * self._latency.margin <= budget_s:
                break
        return held

    def begin(self, decodes: list[Sequence], work: Work, now: float) -> None:
        floor_s = self._latency.predict(work)
        left = self._demand.output_left
        streams = ((s, 1 if s.request.targets.ttlt_s is None else left(s)) for s in decodes)
        self._pace = self._light_pace if self._load(now) < LIGHT else self.config.pace
        budget = iteration_budget(self._pace, streams, floor_s, now)
        longest_s = max(self._response_s, LOST_GAP * floor_s)
        self._budget = budget._replace(seconds=min(budget.seconds, longest_s))

    def order(self, waiting: SequenceQueue, now: float) -> Iterator[Sequence]:
        """By key, except for whoever would be late for being overtaken (see the module); and the
        background first when its share is due."""
        taken: set[Sequence] = set()
        if self._credit >= self._demand.chunk:
            first = next(_background(waiting), None)
            if first is not None:
                taken.add(first)
                yield first
        for sequence in chain(waiting.of_rank(KEPT), _background(waiting)):
            while sequence not in taken:
                urgent = self._overtaken(sequence, taken, now) or sequence
                taken.add(urgent)
                yield urgent

    def _overtaken(self, sequence: Sequence, taken: set[Sequence], now: float) -> Sequence | None:
        """Who must go before the sequence, because a step of it would make them late, or leave them
        less time than they need not to be relegated."""
        step_s = min(self._demand_of(sequence), self._lead_s) + self._lead_s
        for begun in self._begun:
            if begun not in taken and begun is not sequence:
                spare_s = begun.prefill_due_at - now - self._promises.all.work(begun)
                if 0 <= spare_s < step_s:
                    return begun
        everybody = self._promises.all
        due = sequence.prefill_due_at
        if self._pressure > CALM or now + step_s + everybody.lateness_before(due) <= 0:
            return None
        earliest = next((s for s in everybody if s not in taken), None)
        return None if earliest is None or earliest.prefill_due_at >= due else earliest

    @property
    def _response_s(self) -> float:
        """Longest iteration with which new arrivals can still be answered in time."""
        return self.config.pace.response * self._shortest_ttft_s

    @property
    def _lead_s(self) -> float:
        """Time that passes before a decision can take effect: one large iteration."""
        return min(self._step_s, self._response_s)

    def _demand_of(self, sequence: Sequence) -> float:
        if sequence in self._promises:
            return self._promises.all.work(sequence)
        return self._background[sequence]

    def share_to_start(self, sequence: Sequence) -> float:
        return 1.0 if sequence.request.targets.tbt_s is not None else PATIENT_SHARE

    def room(self, work: Work, sequence: Sequence) -> int:
        if not self.config.dynamic_chunks:
            return self._fixed_chunk - work.num_tokens
        limit = min(self._demand.chunk - work.num_prefill, sequence.num_uncomputed)
        if limit <= 0 or self._budget.seconds == math.inf:
            return max(0, limit)
        start = sequence.num_computed
        length = self._latency.largest_chunk(work, start, limit, self._budget.seconds)
        if length == 0 and not work.num_tokens:
            return 1  # an iteration computes something, however little time there is
        if 0 < length < limit and not work.num_prefill and self._budget.tbt_s is not None:
            return self._thrifty(work, start, length, self._budget.tbt_s)
        return length

    def _thrifty(self, work: Work, start: int, length: int, tbt_s: float) -> int:
        """How many of the `length` tokens that fit to take, where a stream's slack is what limits.

        Each iteration gives that stream a token, chunk or no chunk, so what a chunk of n tokens
        costs is the time it adds, t(n) - t(0). Where a smaller one is clearly cheaper per token,
        take it and keep the slack. Where a larger one would be, decode alone now and let the slack
        that this saves pay for it. The cost per token is what is compared: how much fits right now
        also depends on the margin for errors and on how full the stream's reserve is.
        """
        predict, margin = self._latency.predict, self._latency.margin
        idle_s = predict(work)

        def rate(size: int) -> float:
            return size / max(predict(add_chunk(work, start, size)) - idle_s, 1e-9)

        clearly_better = THRIFT * rate(length)
        best, best_rate = length, clearly_better
        longest_s = min(self._pace.max_gap * tbt_s, self._response_s)
        for size in self._latency.chunk_steps(work, self._demand.chunk):
            if size <= length:
                if (of_size := rate(size)) > best_rate:
                    best, best_rate = size, of_size
            elif idle_s < tbt_s and rate(size) > clearly_better:
                full_s = predict(add_chunk(work, start, size))
                if tbt_s < full_s and margin * full_s <= longest_s:
                    return 0
        return best

    def computed(self, seconds: float) -> None:
        self._pace_s += PACE_WEIGHT * (seconds - self._pace_s)

    def launched(self, chunks: Iterable[tuple[Sequence, int]]) -> None:
        """Keep the account of the background's share: it earns while others are served."""
        for sequence, length in chunks:
            if sequence in self._background:
                self._credit = max(0.0, self._credit - length)
                if not sequence.relegated:
                    self._virtual_s = max(self._virtual_s, self._tags.get(sequence, 0.0))
            elif self._background:
                self._credit += self.config.background_share * length

    def ahead_s(self, sequence: Sequence, now: float) -> float:
        if sequence.due_at == math.inf or sequence.relegated:
            others_s = self._background_s - self._background.get(sequence, 0.0)
            return self._promises.all.total + max(0.0, others_s)
        if sequence not in self._promises:  # a question, not a request
            return self._promises.all.work_until(self._prefill_due_at(sequence, now))
        own_s = self._promises.all.work(sequence)
        return max(0.0, self._promises.all.work_until(sequence.prefill_due_at) - own_s)


def _background(waiting: SequenceQueue) -> Iterator[Sequence]:
    """Best effort and relegated, each in its order, and of the two in front the older: neither
    can keep the other from being served. What has begun holds memory and goes on."""

    def age(sequence: Sequence) -> float:
        return -math.inf if sequence.num_computed else sequence.request.arrived_at

    return heapq.merge(waiting.of_rank(BEST_EFFORT), waiting.of_rank(RELEGATED), key=age)
