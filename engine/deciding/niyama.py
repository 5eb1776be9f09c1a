"""The Niyama policy (arXiv 2503.22562; QoServe, ASPLOS 2026), and where it goes beyond.

Order: P = deadline + alpha * work left, in seconds of predicted engine time. The deadline is that
of the prefill, and with a TTLT earlier, as an output may be long (demand.py). alpha is read off the
queue: the work that waits for a deadline, over the smallest slack that serving it in order of
deadline would leave. An idle engine has alpha 0 (earliest deadline first); as the queue stops being
feasible alpha grows, up to MAX_ALPHA (shorter work first), and a step of importance weighs as much
as the costliest recent request. While nobody had to be relegated lately, nobody is overtaken who
would be late for it; and a prefill that has begun is never overtaken at the price of its target.

Tenants: a request that comes while its tenant's share has asked for more than its part (fluid.py)
counts as less important than all that are within theirs, whatever importance it states. So while
the queue is feasible that costs it nothing, and else the order and the choice of who gives way both
turn on whoever asks for too much. Where it is decodes that load the engine, hardly anything waits,
and streams are late for the prefills beside them. So while the queue is feasible and yet a stream
wishes for shorter iterations (chunking.py), the costliest requests of a share that has more than
one such request waiting in the fluid copy give way, and are begun when no stream has a wish.

Relegation: whenever the queue, served in order of deadline, cannot be on time, promises.py names
who gives way. Nobody does before it must be, but for those less important than somebody else who
waits: they do an iteration earlier; and, as far as the operator allows, the costliest do early
under load. While many are relegated, nobody is begun in the hope for an output that is shorter than
expected. What was relegated waits in the background with best effort, and is taken back when there
turns out to be time for it. It ends when it has not been begun a stated time after it was due, best
effort when it has not after it came; and best effort that would wait longer is turned away when it
comes.

Memory, and places in the batch: some of both stay open for interactive requests that may come, and
from the background more where much work is given up, as long as others come. A place is not kept
open from a promised request if an interactive one behind it is due before it would end. And a
promised request that would be late for want of them is given those of requests that have only
begun.

The rest stands in three other files: chunking.py has the size of the chunk and the decodes that
sit out, background.py the shares of best effort and of relegated requests, and demand.py what a
request needs and what the recent ones were like.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile

from sortedcontainers import SortedKeyList

from engine.deciding.background import Background
from engine.deciding.chunking import Chunking
from engine.deciding.demand import Demand, RecentRequests
from engine.deciding.fluid import FluidShares
from engine.deciding.latency import LatencyModel
from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pace import head_start_s
from engine.deciding.plan import Work
from engine.deciding.policy import ALL, KEPT_RANK, NOTHING, Cause, Move, MoveKind, Policy
from engine.deciding.promises import Promises
from engine.deciding.queue import Key, Place, SequenceQueue
from engine.deciding.request import BEYOND, Importance
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams

ALONE = "it would end late by itself"
BEHIND = "it could not be on time behind those who are due before it"
MAX_ALPHA = 32.0  # else 10 ms of work weigh 10 s of deadline all through an overload
BURST = 4  # requests as costly as any of late that a share may ask for at once
COSTLY = 0.2  # share of the requests, the costliest, that may give way to streams
MAX_GIVEN = 2  # preemptions after which a prefill that has begun keeps its memory
MAX_RETURNS = 3  # times that a relegated request is taken back
GIVEN_UP_SHARE = 3 / 4  # of batch and memory, in which the background begins where much is given up
PATIENT_SHARE = 7 / 8  # of batch and memory: the rest stays open for interactive requests, if any


class Niyama(Policy):
    """Decides on order, relegation and memory; the module says where the rest stands.

    A waiting sequence is either promised to be on time (in `_promises`) or in the background.
    """

    def __init__(
        self,
        config: NiyamaConfig,
        latency: LatencyModel,
        demand: Demand,
        fixed_chunk: int,
        num_pages: int,
    ) -> None:
        """`fixed_chunk` is the number of tokens of an iteration where dynamic chunks are switched
        off; `num_pages` is the size of the KV memory.
        """
        super().__init__(demand)
        self.config = config
        self.alpha = 0.0  # seconds of deadline that one second of work weighs
        self.keeps_pace = config.dynamic_chunks
        self._fixed_chunk = fixed_chunk
        held = int(config.max_held_share * num_pages)
        self._chunking = Chunking(config.pace, latency, demand, held)
        self._promises = Promises()
        self._shares = FluidShares()
        self._recent = RecentRequests()
        self._step_s = latency.prefill_seconds(0, demand.chunk, demand.chunk)
        self._background = Background(
            config.background_share, demand.chunk, config.longest_wait_s, self._step_s
        )
        self._decodes_s: dict[Sequence, float] = {}  # of the waiting: work after the prefill
        self._yielding: dict[Sequence, None] = {}  # promised, but not while a stream has a wish
        self._restorable: SortedKeyList[Sequence, float] = SortedKeyList(
            key=lambda s: s.prefill_due_at
        )  # relegated, and restored should there be time before their deadline
        self._plans_since_reorder = 0
        self._planned_at = -math.inf  # the present iteration
        self._offered: set[Sequence] = set()  # who has had its turn in it
        self._prefills_go = False  # in the last one
        self._num_spent = 0  # relegations charged to the allowance

    # Places in the queue

    def enter(self, sequence: Sequence, now: float) -> Key:
        self._decodes_s[sequence] = self.demand.decodes_until_due_s(sequence, now)
        work_s = self._work_left_s(sequence)
        if sequence.due_at == math.inf:
            self._recent.note_arrival(is_stream=False)
            return self._background.add_best_effort(sequence, work_s)
        share = sequence.request.share
        yields = not self._shares.is_within(share.name, self._recent.costliest_s)
        if not self._shares.ask(share, work_s, self._burst_s):
            sequence.count_as(BEYOND)
        if tells := self._tells_of_the_load(sequence):
            self._recent.note_arrival(is_stream=sequence.request.targets.tbt_s is not None)
        if sequence.relegated:
            return self._background.add_relegated(sequence, work_s)
        self._recent.note_work(work_s, now)
        self._state_when_due(sequence, self._decodes_s[sequence], now)
        self._promises.add(sequence, work_s)
        if yields and work_s >= self._recent.costly_s(COSTLY):
            self._yielding[sequence] = None
        if tells:
            self._recent.note(work_s, sequence.request.targets.ttft_s)
        return self._key(sequence, work_s)

    def _tells_of_the_load(self, sequence: Sequence) -> bool:
        """Whether what is kept of recent requests, by which everybody is served, may go by this
        one. It does not by whose tenant has asked for more than its part, nor by who would be late
        on an idle engine.
        """
        if sequence.importance == BEYOND:
            return False
        request = sequence.request
        work_s = self.demand.prefill_s(sequence, sequence.expected_prefix)
        return request.arrived_at + work_s < request.token_due_at(1)

    def refusal(self, sequence: Sequence, now: float) -> str:
        has_target = sequence.due_at < math.inf
        return "" if has_target else self._background.refusal(sequence.request.share)

    def retry_s(self, sequence: Sequence, now: float) -> float:
        if sequence.due_at < math.inf:
            return 0.0  # it waited in the background, and one that comes now is promised first
        wait_s = self._background.wait_s(sequence.request.share)
        return max(0.0, wait_s - self.config.longest_wait_s)

    def overdue(self, now: float) -> list[tuple[Sequence, str]]:
        return self._background.overdue(now)

    def _state_when_due(self, sequence: Sequence, decodes_s: float, now: float) -> None:
        """States by when the prefill of a promised sequence must be done. With a TTLT half of its
        time is for its decodes at most, or what a short output takes, in the hope for one and for
        short iterations; but while many have to be relegated, whoever is begun for a hope takes
        the place of one who can be on time as expected, as does whose tenant asks for too much.
        With a TBT it is then earlier by the head start of a stream.
        """
        demand, is_beyond = self.demand, sequence.importance == BEYOND
        is_cautious = is_beyond or self._recent.is_overloaded
        short_s = demand.short_decoding_s(sequence)
        long_s = demand.long_decoding_s(sequence) if is_cautious and not is_beyond else 0.0
        by = demand.prefill_due_at(sequence, decodes_s, now, short_s, long_s, is_cautious)
        if not is_beyond and (self.alpha >= 1 or not self._recent.is_calm):
            spare_s = sequence.due_at - now - demand.prefill_s(sequence)
            by -= head_start_s(self.config.pace, sequence.tbt_s, spare_s)
        sequence.prefill_by(by)

    @property
    def _burst_s(self) -> float:
        """The work that a share may have waiting and still ask within its part."""
        return BURST * self._recent.costliest_s

    def _work_left_s(self, sequence: Sequence) -> float:
        """Returns the predicted seconds that a waiting sequence needs: prefill, and decodes."""
        is_patient = sequence.due_at == math.inf or sequence.relegated
        prefill_s = self.demand.prefill_s if is_patient else self.demand.prefill_share_s
        return prefill_s(sequence) + self._decodes_s[sequence]

    def _key(self, sequence: Sequence, work_s: float) -> Key:
        """Returns the place of a promised sequence. While the queue is feasible, that goes by when
        its prefill is best done; else, as victims are chosen, by when it must be.
        """
        work_s += (1 - sequence.importance) * self._recent.costliest_s
        feasible = self.alpha < 1
        due = self.demand.served_by(sequence) if feasible else sequence.prefill_due_at
        return (KEPT_RANK, due + self.alpha * work_s)

    def progress(self, sequence: Sequence) -> Key:
        work_s = self._work_left_s(sequence)
        if sequence.due_at < math.inf:
            self._shares.change(sequence.request.share, self.known_work_s(sequence), work_s)
        if sequence in self._background:
            return self._background.set_work(sequence, work_s)
        self._promises.set_work(sequence, work_s)
        if sequence.num_computed:
            self._yielding.pop(sequence, None)
        return self._key(sequence, work_s)

    def leave(self, sequence: Sequence) -> None:
        self._offered.discard(sequence)
        del self._decodes_s[sequence]
        if sequence.due_at < math.inf:
            self._shares.change(sequence.request.share, self.known_work_s(sequence), 0.0)
        if sequence in self._promises:
            self._break_promise(sequence)
        else:
            self._leave_background(sequence)

    def _break_promise(self, sequence: Sequence) -> None:
        self._promises.remove(sequence)
        self._yielding.pop(sequence, None)

    def _leave_background(self, sequence: Sequence) -> None:
        self._background.remove(sequence)
        self._restorable.discard(sequence)

    def known_work_s(self, sequence: Sequence) -> float:
        """Returns the work that a waiting sequence was last said to have left."""
        work_s = self._promises.all.find_work(sequence)
        return self._background.work_s(sequence) if work_s is None else work_s

    # Relegation

    def review(self, now: float) -> list[Move]:
        moves: list[Move] = []
        highest = 0
        if self.config.relegation:
            late_s = now + self._promises.all.lateness  # how much too long the queue is
            while (pair := self._promises.victim(now, self._lead_s)) is not None:
                highest = highest if moves else self._promises.highest
                early_s = self._lead_s if pair[0].importance < highest else 0.0
                moves.append(self._relegate(*pair, now, late_s + early_s))
            moves += self._yield()
            if not moves:
                moves += self._restore(now)
            moves += self._spend_allowance(now)
        if self.config.hybrid:
            moves += self._reorder(now)
        return moves

    def _relegate(self, victim: Sequence, late: Sequence, now: float, short_s: float) -> Move:
        """Relegates the victim, for the late one's sake; with `short_s` less to do in the queue
        that would not be.
        """
        work_s = self._promises.all.work(victim)
        self._break_promise(victim)
        self._recent.note_given_up(work_s)
        if self._tells_of_the_load(victim):
            self._recent.note_relegation()
        if victim.num_relegations < MAX_RETURNS:
            self._restorable.add(victim)
        key = self._background.add_relegated(victim, work_s)
        values = {"own_s": work_s, "left_s": victim.prefill_due_at - now}
        if work_s > values["left_s"]:
            return Move(
                victim, key, MoveKind.RELEGATE, ALONE, cause=Cause.LATE_ALONE, values=values
            )
        values["short_s"] = short_s
        values["as_high"] = float(self._promises.is_spared_as_high(victim, late))
        why, cause = "others could not be on time", Cause.FOR_OTHERS
        if victim is late:
            why, cause = BEHIND, Cause.LATE_BEHIND
        if victim.importance == BEYOND:
            why += ", and its tenant has asked for more than its part"
            cause = Cause.SHARE_EXCEEDED
        saved = None if victim is late else late
        return Move(victim, key, MoveKind.RELEGATE, why, saved, cause, values)

    def _yield(self) -> list[Move]:
        """Gives up the costly requests of those who ask for too much, where the queue is feasible
        and yet a stream has a wish: so it is decodes that load the engine.
        """
        moves: list[Move] = []
        if not self._chunking.has_wish or self.alpha >= 1:
            return moves
        while self._yielding:
            victim = next(iter(self._yielding))
            work_s = self._promises.all.work(victim)
            self._break_promise(victim)
            victim.count_as(BEYOND)
            why = "streams could not be on time, and its tenant has asked for more than its part"
            key = self._background.add_relegated(victim, work_s)
            moves.append(Move(victim, key, MoveKind.RELEGATE, why, cause=Cause.STREAMS))
        return moves

    def _spend_allowance(self, now: float) -> list[Move]:
        """Under load, gives up the costliest request before it costs others their deadline, as far
        as the operator allows.
        """
        allowance = self.config.allowance
        if self.alpha < 1 or self._num_spent >= int(allowance * self._recent.num_noted):
            return []
        victim = self._promises.all.largest
        costly_s = self._recent.costly_s(allowance)
        if victim is None or self._promises.all.work(victim) < costly_s:
            return []
        self._num_spent += 1
        move = self._relegate(victim, victim, now, 0.0)
        self._restorable.discard(victim)
        why = "within the allowance: among the costliest, under load"
        return [move._replace(reason=why, cause=Cause.ALLOWANCE, values=NOTHING)]

    def _restore(self, now: float) -> list[Move]:
        """Takes back the relegated request that is due next, if there is twice the time for it."""
        start = now + self._lead_s
        while self._restorable:
            sequence = self._restorable[0]
            if sequence.prefill_due_at > start:
                break
            self._restorable.pop(0)
        else:
            return []
        work_s = self._background.work_s(sequence)
        if not self._promises.has_time(sequence.prefill_due_at, 2 * work_s, start):
            return []
        self._leave_background(sequence)
        self._promises.add(sequence, work_s)
        key = self._key(sequence, work_s)
        return [Move(sequence, key, MoveKind.RESTORE, "there is time again")]

    def _reorder(self, now: float) -> list[Move]:
        """Follows the load with alpha, in powers of two. As everybody's key changes with it, that
        is done once in as many iterations as make the cost of each small.
        """
        self._plans_since_reorder += 1
        if 16 * self._plans_since_reorder <= len(self._promises):
            return []
        load = self._promises.load(now)
        alpha = 0.0 if load < 0.5 else 2.0 ** round(math.log2(min(load, MAX_ALPHA)))
        if alpha == self.alpha:
            return []
        self.alpha, self._plans_since_reorder = alpha, 0
        everybody = self._promises.all
        return [Move(s, self._key(s, everybody.work(s)), MoveKind.REORDER) for s in everybody]

    # The iteration

    def order(self, waiting: SequenceQueue, now: float) -> Iterator[Sequence]:
        """Yields in order of keys, but the background first when its share is due, and whoever
        would be late for being overtaken before those who would overtake (see the module).
        """
        taken, lead_s = self._offered, self._lead_s
        taken.clear()
        if self._background.is_due:
            first = self._background.first(waiting)
            if first is not None:
                taken.add(first)
                yield first
        for sequence in chain(waiting.of_rank(KEPT_RANK), self._background.order(waiting)):
            while sequence not in taken:
                urgent = self._overtaken(sequence, taken, lead_s, now) or sequence
                taken.add(urgent)
                yield urgent

    def _overtaken(
        self, sequence: Sequence, taken: set[Sequence], lead_s: float, now: float
    ) -> Sequence | None:
        """Returns who must go before the sequence, because a step of it would make them late, or
        leave them less time than they need not to be relegated. Of what has not begun that is
        who is due first, unless its tenant has asked for more than its part.
        """
        everybody = self._promises.all
        step_s = min(self.known_work_s(sequence), lead_s) + lead_s
        for begun in self._promises.begun:
            if begun not in taken and begun is not sequence:
                spare_s = begun.prefill_due_at - now - everybody.work(begun)
                if 0 <= spare_s < step_s:
                    return begun
        due = sequence.prefill_due_at
        if not self._recent.is_calm or now + step_s + everybody.lateness_before(due) <= 0:
            return None
        earliest = next((s for s in everybody if s not in taken), None)
        if earliest is None or earliest.importance == BEYOND:
            return None
        return earliest if earliest.prefill_due_at < due else None

    @property
    def _response_s(self) -> float:
        """The longest iteration, in seconds, after which new arrivals can be answered in time."""
        return self.config.pace.response * self._recent.shortest_ttft_s

    @property
    def _lead_s(self) -> float:
        """The seconds that pass before a decision can take effect: one large iteration."""
        return min(self._step_s, self._response_s)

    def hold(self, running: Streams, work: Work, now: float) -> list[Sequence]:
        # Nobody sits out for the prefills of who has asked for more than its part.
        load = 0.0 if self._promises.has(BEYOND) else self._promises.load(now)
        return self._chunking.hold(running, work, now, load, self._prefills_go)

    def begin(self, decodes: Streams, work: Work, now: float) -> None:
        self._planned_at = now
        self._chunking.begin(decodes, work, self._promises.load(now), self._response_s, now)

    def room(self, work: Work, sequence: Sequence) -> int:
        if not self.config.dynamic_chunks:
            return self._fixed_chunk - work.num_tokens
        left_over = False
        if sequence in self._background and not self._background.is_due:
            if sequence.importance == BEYOND and self._chunking.has_wish:
                return 0
            left_over = self._recent.much_is_given_up
        start, num_left = sequence.num_computed, sequence.num_uncomputed
        return self._chunking.room(work, start, num_left, left_over)

    def share_to_start(self, sequence: Sequence) -> float:
        recent, background = self._recent, self._background
        if sequence in background and recent.much_is_given_up and not background.is_due:
            quiet_s = self._planned_at - recent.last_at  # long where nobody comes any more
            if quiet_s < self.demand.decoding_s(sequence):
                return GIVEN_UP_SHARE
        if sequence.request.targets.tbt_s is not None or not recent.has_streams:
            return 1.0
        return PATIENT_SHARE

    def takes_kept_place(self, sequence: Sequence) -> bool:
        if sequence not in self._promises:
            return False
        by = self._planned_at + self.demand.decoding_s(sequence)
        hurried = takewhile(lambda s: s.prefill_due_at < by, self._promises.new_streams)
        return any(stream not in self._offered for stream in hurried)

    def crowded_out(self, sequence: Sequence, now: float) -> None:
        if self.share_to_start(sequence) == 1:  # else a part is kept open for others
            self._chunking.crowded_out(sequence, now)

    def gives_way(self, giver: Sequence, sequence: Sequence, now: float) -> bool:
        """A promised sequence is given memory by what has only begun and is not more important, if
        it would be late by waiting for the giver's end: by the background, and by a promised one
        that has time to wait for the end of the other and to be computed again.
        """
        if sequence not in self._promises or giver.num_preemptions >= MAX_GIVEN:
            return False
        if sequence.importance < giver.importance:
            return False
        decoding_s, own_s = self.demand.decoding_s, self._work_left_s(sequence)
        ends_s = self._work_left_s(giver) + decoding_s(giver)
        if now + ends_s + own_s <= sequence.prefill_due_at:
            return False
        if giver in self._background:
            return True
        again_s = self.demand.prefill_s(giver, 0) + self._decodes_s[giver]
        return now + own_s + decoding_s(sequence) + again_s <= giver.prefill_due_at

    def launched(self, chunks: Iterable[tuple[Sequence, int]]) -> None:
        chunks = list(chunks)
        self._prefills_go = bool(chunks)
        self._chunking.launched(self._prefills_go)
        self._background.launched(chunks)

    def ahead_s(self, sequence: Sequence, waiting: SequenceQueue, now: float) -> float:
        if sequence in self._background or sequence.due_at == math.inf:
            return self._promises.all.total + self._background.others_s(sequence)
        is_asked = sequence not in self._promises
        place = self.place_of_new(sequence, now) if is_asked else waiting.place(sequence)
        return waiting.sum_before(place, self._promises.all.work)

    def place_of_new(self, sequence: Sequence, now: float) -> Place:
        if not self._shares.is_within(sequence.request.share.name, self._burst_s):
            sequence.count_as(BEYOND)
        decodes_s = self.demand.decodes_until_due_s(sequence, now)
        self._state_when_due(sequence, decodes_s, now)
        return self._key(sequence, self.demand.prefill_share_s(sequence) + decodes_s), math.inf

    def served_before(self, sequence: Sequence, waiting: SequenceQueue) -> tuple[Key, float]:
        return waiting.place(sequence) if sequence in self._promises else ALL

    def num_overtaken_as_high(self, sequence: Sequence, waiting: SequenceQueue) -> int:
        missing = Importance.HIGH - sequence.importance
        if sequence not in self._promises or sequence.importance == BEYOND or not missing:
            return 0
        (rank, value), number = waiting.place(sequence)
        value -= self.alpha * missing * self._recent.costliest_s
        before = waiting.num_before(waiting.place(sequence))
        return before - waiting.num_before(((rank, value), number))

    def check(self, waiting: SequenceQueue) -> None:
        promised = set(waiting.of_rank(KEPT_RANK))
        assert promised == set(self._promises), "who is promised has that rank"
        assert set(self._yielding) <= promised - set(self._promises.begun)
        assert set(self._restorable) <= set(waiting) - promised
        assert set(self._decodes_s) == set(waiting)
        self._promises.check()
        self._background.check(waiting)
