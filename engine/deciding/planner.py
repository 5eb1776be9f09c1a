"""Puts one iteration together: who decodes, which prefills join, and who gives up pages for it.

Running sequences come first. Each that the policy does not hold decodes one token, for which it
gets a page when its last one is full. Should there be none, somebody is preempted: a sequence that
has only begun its prefill, the last in order, and if there is none, a running one.

Prefills fill what the policy leaves of the iteration, in its order. A sequence starts only when the
batch has a place for it and the memory holds its whole prompt, beside a page for everybody who
runs; those behind it wait too, so that it is not overtaken for its size, but what has started goes
on. It may happen that all memory is held by such and none of it can go on: then the last in order
gives up its pages, and planning begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.deciding.latency import LatencyModel, add_chunk
from engine.deciding.pages import PagePool
from engine.deciding.plan import Chunk, Plan, Work
from engine.deciding.policy import Policy
from engine.deciding.record import DecisionLog
from engine.deciding.roster import Roster
from engine.deciding.sequence import Sequence
from engine.deciding.stats import Totals


class Planner:
    """Makes the plans of one scheduler, whose parts it is given. Nobody is told of preemptions and
    holds but the record and the totals.
    """

    def __init__(
        self,
        roster: Roster,
        policy: Policy,
        pages: PagePool,
        latency: LatencyModel,
        max_batch_size: int,
        record: DecisionLog,
        totals: Totals,
    ) -> None:
        self._roster = roster
        self._policy = policy
        self._pages = pages
        self._latency = latency
        self._max_batch_size = max_batch_size
        self._record = record
        self._totals = totals

    def plan(self, now: float) -> Plan:
        """Returns the iteration that begins at `now`. Somebody must wait or run."""
        while True:
            decodes = self._grant_decodes(now)
            sitting_out = sum(s.num_known for s in self._roster.held)
            work = Work(len(decodes), self._roster.context - sitting_out)
            chunks: list[Chunk] = []
            if self._roster.waiting:
                self._policy.begin(decodes, work, now)
                chunks, work = self._grant_chunks(work, now)
            if decodes or chunks:
                cost_s, cleared = self._latency.predict(work), self._pages.take_fresh()
                return Plan(tuple(decodes), tuple(chunks), work, now, cost_s, cleared)
            if self._roster.partial:  # they hold all memory
                self._preempt(self._roster.last_partial(), now)
            # Else all running sequences sat out for a stream that has just lost its pages. They
            # need not wait for it any more, and the next round plans them.

    # Decodes

    def _grant_decodes(self, now: float) -> list[Sequence]:
        """Returns the running sequences that decode now, each with a page for its next position."""
        roster, page_size = self._roster, self._pages.page_size
        decodes = list(roster.running)
        held = self._policy.hold(decodes, now)
        if held or roster.held:
            self._hold(held, now)
            decodes = [s for s in decodes if s not in roster.held]
        num_preemptions = self._totals.num_preemptions
        for sequence in [s for s in decodes if s.num_computed >= len(s.pages) * page_size]:
            self._grant_page(sequence, now)
        if self._totals.num_preemptions == num_preemptions:
            return decodes
        return [s for s in roster.running if s not in roster.held]

    def _hold(self, held: list[Sequence], now: float) -> None:
        """Lets these running sequences sit the iteration out, and no others."""
        before, self._roster.held = self._roster.held, set(held)
        self._totals.num_holds += len(held)
        self._record.held((s for s in held if s not in before), now)

    def _grant_page(self, sequence: Sequence, now: float) -> None:
        """Preempts until there is a page, or the sequence itself had to give way."""
        running, pages = self._roster.running, self._pages
        while sequence in running and not pages.grow(sequence, sequence.num_known):
            self._preempt(self._victim(now), now)

    def _victim(self, now: float) -> Sequence:
        """Returns whose pages are taken when a decode needs one: a partly prefilled sequence, the
        last in order, if there is any; else the running one that has most slack for being computed
        again.
        """
        if self._roster.partial:
            return self._roster.last_partial()

        def slack_after(sequence: Sequence) -> tuple[float, float, str]:
            again_s = self._latency.prefill_seconds(
                0, sequence.num_known, self._policy.demand.chunk
            )
            return (sequence.due_at - now - again_s, -again_s, sequence.id)

        return max(self._roster.running, key=slack_after)

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Takes all pages; what was computed is computed again later."""
        self._pages.release(sequence)
        num_lost = self._roster.preempt(sequence, now)
        self._totals.num_preemptions += 1
        self._record.note(sequence.id, now, "preempted", "memory ran out", tokens_lost=num_lost)

    # Prefills

    def _grant_chunks(self, work: Work, now: float) -> tuple[list[Chunk], Work]:
        """Returns prefill chunks in the policy's order, as far as its budget, memory and batch
        reach, each with pages for all of it; and the work of the iteration with them.
        """
        room, partial = self._policy.room, self._roster.partial
        chunks: list[Chunk] = []
        for sequence in self._candidates(now):
            fits = room(work, sequence)
            if fits <= 0:
                break  # what it could share may be more by then
            if sequence not in partial and self._start(sequence):
                fits = room(work, sequence)
            # A token in flight can be decoded, but not put into a chunk.
            known = sequence.num_uncomputed - sequence.num_in_flight
            length = min(fits, known)
            start = sequence.num_computed
            if length <= 0 or not self._pages.grow(sequence, start + length):
                break
            partial[sequence] = None
            chunks.append(Chunk(sequence, start, length, length == sequence.num_uncomputed))
            work = add_chunk(work, start, length)
        return chunks, work

    def _candidates(self, now: float) -> Iterator[Sequence]:
        """Yields the waiting in the policy's order, up to the first that cannot start, and then the
        others that have started.
        """
        waiting, partial = self._roster.waiting, self._roster.partial
        seen: set[Sequence] = set()
        for sequence in self._policy.order(waiting, now):
            if sequence not in partial and not self._can_start(sequence):
                yield from sorted((s for s in partial if s not in seen), key=waiting.place)
                return
            seen.add(sequence)
            yield sequence

    def _can_start(self, sequence: Sequence) -> bool:
        """A sequence starts only when the batch has a place for it, and the memory holds its whole
        prompt beside a page for every running sequence.
        """
        num_started, num_running = self._roster.num_started, len(self._roster.running)
        if num_started == 0:
            return True
        share = self._policy.share_to_start(sequence)
        if num_started >= share * self._max_batch_size:
            return False
        needed = self._pages.num_missing(sequence.request, sequence.num_known + 1)
        kept_open = int((1 - share) * self._pages.num_pages)
        return needed + num_running <= self._pages.num_available - kept_open

    def _start(self, sequence: Sequence) -> int:
        """Takes from the prefix index what it has of the prompt, and returns how many tokens that
        is.
        """
        cached = self._pages.attach(sequence)
        if cached:
            sequence.take_prefix(cached)
            self._totals.cached_tokens += cached
            self._roster.partial[sequence] = None
        return cached
