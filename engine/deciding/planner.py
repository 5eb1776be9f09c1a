"""Puts one iteration together: who decodes, which prefills join, and who gives up pages for it.

Running sequences come first. Each that the policy does not hold decodes one token, for which it
gets a page when its last one is full. Should there be none, somebody is preempted: a sequence that
has only begun its prefill, the last in order, and if there is none, a running one.

Prefills fill what the policy leaves of the iteration, in its order. The first that does not go in
to its end is the last: what would be left beside a chunk that was cut is left on purpose.

A sequence starts only when the batch has a place for it and the memory holds its whole prompt,
beside a page for everybody who runs. Where it cannot, those that have only begun, the last in order
first, give their pages for it if the policy says so (`Policy.gives_way`) and that is enough. Else
nobody starts whose key is behind its own, so that it is not overtaken for its size, but what has
started goes on: so the memory is there once those that run now have ended. Whose key is before its
own does not wait for it: nobody keeps the others out by being given a turn that there is no memory
for.

It may happen that all memory is held by those that have begun and none of them can go on: then the
last in order gives up its pages, and planning begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.deciding.latency import LatencyModel, add_chunk
from engine.deciding.pages import PagePool
from engine.deciding.plan import Chunk, Plan, Work
from engine.deciding.policy import Policy, saves
from engine.deciding.queue import Key
from engine.deciding.record import Record
from engine.deciding.roster import Roster
from engine.deciding.sequence import Sequence
from engine.deciding.stats import Totals
from engine.deciding.streams import Streams


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
        record: Record,
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
            decodes, work = self._grant_decodes(now)
            chunks: list[Chunk] = []
            if self._roster.waiting:
                self._policy.begin(decodes, work, now)
                granted = self._grant_chunks(work, now)
                if granted is None:
                    continue  # others gave way: there is more to grant
                chunks, work = granted
            if decodes or chunks:
                cost_s, cleared = self._latency.predict(work), self._pages.take_fresh()
                is_full = len(self._roster.waiting) > sum([c.samples for c in chunks])
                return Plan(tuple(decodes), tuple(chunks), work, now, cost_s, cleared, is_full)
            if self._roster.partial:  # they hold all memory
                self._preempt(self._roster.last_partial(), now)
                continue
            assert self._roster.running, "the policy gives room to nobody"
            # All running sequences sat out for a stream that has just lost its pages. They
            # need not wait for it any more, and the next round plans them.

    # Decodes

    def _grant_decodes(self, now: float) -> tuple[Streams, Work]:
        """Returns the running sequences that decode now, each with a page for its next position;
        and their work.
        """
        roster, page_size = self._roster, self._pages.page_size
        decodes = roster.streams
        work = Work(len(decodes), roster.context)
        held = self._policy.hold(decodes, work, now)
        if held or roster.held:
            self._hold(held, now)
            decodes, work = self._going_on()
        num_preemptions = self._totals.num_preemptions
        for sequence in [s for s in decodes if s.num_computed >= len(s.pages) * page_size]:
            self._grant_page(sequence, now)
        if self._totals.num_preemptions == num_preemptions:
            return decodes, work
        return self._going_on()

    def _going_on(self) -> tuple[Streams, Work]:
        """Returns the running sequences that do not sit out, and their work."""
        roster = self._roster
        decodes = roster.streams.without(roster.held)
        sitting_out = sum(s.num_known for s in roster.held)
        return decodes, Work(len(decodes), roster.context - sitting_out)

    def _hold(self, held: list[Sequence], now: float) -> None:
        """Lets these running sequences sit the iteration out, and no others."""
        before, self._roster.held = self._roster.held, set(held)
        self._totals.num_holds += len(held)
        self._record.held((s for s in held if s not in before), now)
        self._record.go_on((s for s in before if s not in self._roster.held), now)

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

    def _preempt(self, sequence: Sequence, now: float, why: str = "memory ran out") -> None:
        """Takes all pages; what was computed is computed again later."""
        self._pages.release(sequence)
        num_lost = self._roster.preempt(sequence, now)
        self._totals.num_preemptions += 1
        self._totals.lost_tokens += num_lost
        self._record.preempted(sequence, why, num_lost, now)

    # Prefills

    def _grant_chunks(self, work: Work, now: float) -> tuple[list[Chunk], Work] | None:
        """Returns prefill chunks in the policy's order, as far as its budget, memory and batch
        reach, each with pages for all of it; and the work of the iteration with them. Returns None
        where others gave way, so that there is more to grant.
        """
        room, partial = self._policy.room, self._roster.partial
        chunks: list[Chunk] = []
        for sequence in self._candidates(now):
            if sequence not in partial and not self._fits(sequence):
                if self._make_way(sequence, chunks, now):
                    return None
                self._policy.crowded_out(sequence, now)
                continue
            fits = room(work, sequence)
            if fits <= 0:
                break  # what it could share may be more by then
            if sequence not in partial and self._start(sequence):
                fits = room(work, sequence)
            # A token in flight can be decoded, but not put into a chunk.
            uncomputed = sequence.num_uncomputed
            known = uncomputed - sequence.num_in_flight
            length = min(fits, known)
            start = sequence.num_computed
            if length <= 0:
                break
            if not self._pages.grow(sequence, start + length):
                if self._make_way(sequence, chunks, now):
                    return None
                break
            partial[sequence] = None
            chunks.append(Chunk(sequence, start, length, length == uncomputed))
            work = add_chunk(work, start, length)
            if length < known:
                break  # it had all the room that there is to be
        return chunks, work

    def _candidates(self, now: float) -> Iterator[Sequence]:
        """Yields the waiting in the policy's order. One that has not started when the next is asked
        for could not: from then on nobody is yielded whose key is behind its own, but those that
        have started.
        """
        waiting, partial = self._roster.waiting, self._roster.partial
        seen: set[Sequence] = set()
        blocked: tuple[Key, int] | None = None
        for sequence in self._policy.order(waiting, now):
            if blocked and sequence not in partial and waiting.place(sequence) > blocked:
                break
            seen.add(sequence)
            yield sequence
            if sequence not in partial:
                blocked = waiting.place(sequence)
        yield from sorted((s for s in partial if s not in seen), key=waiting.place)

    def _fits(self, sequence: Sequence, places_given: int = 0, pages_given: int = 0) -> bool:
        """Whether the batch has a place for a waiting sequence, unless it has one, and the memory
        holds its whole prompt, beside a page for every running sequence where it has not started.
        Places and pages that others would give count too. Of the share that the policy keeps open,
        it takes what it could never start without.
        """
        roster, pages = self._roster, self._pages
        num_positions = sequence.num_known + 1
        if sequence in roster.partial:
            missing = pages.pages_for(num_positions) - len(sequence.pages)
            return missing <= pages.num_available + pages_given
        num_started = roster.num_started - places_given
        if num_started == 0:
            return True
        share = self._policy.share_to_start(sequence)
        if num_started >= share * self._max_batch_size and (
            num_started >= self._max_batch_size or not self._policy.takes_kept_place(sequence)
        ):
            return False
        available = pages.num_available + pages_given
        needed = pages.num_missing(sequence.request, num_positions) + len(roster.running)
        most = int(share * pages.num_pages)
        kept_open = pages.num_pages - most if needed <= most else 0
        return needed <= available - kept_open

    def _make_way(self, sequence: Sequence, chunks: list[Chunk], now: float) -> bool:
        """Has others give way for a sequence that memory or batch keep from going on: of those that
        have begun, and have none of these chunks, the last in order first. Returns whether they
        did; nobody does where all of them together are not enough.
        """
        roster, gives_way = self._roster, self._policy.gives_way
        kept = {sequence, *(chunk.sequence for chunk in chunks)}
        givers: list[Sequence] = []
        num_pages = 0
        for giver in sorted(roster.partial, key=roster.waiting.place, reverse=True):
            if giver in kept or not gives_way(giver, sequence, now):
                continue
            givers.append(giver)
            num_pages += self._pages.num_own(giver)
            if self._fits(sequence, len(givers), num_pages):
                for each in givers:
                    whom = saves(each.request, sequence.request)
                    self._preempt(each, now, f"another needed its memory ({whom})")
                return True
        return False

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
