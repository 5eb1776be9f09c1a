"""FairBatching (arXiv 2510.14392): decodes that are ahead make way for prompts.

Every token has a deadline by the envelope, arrival + TTFT + n * TBT, so that a stream's slack is
what it is ahead of its pace. An iteration has a budget of time instead of tokens: the smallest
slack of a stream that runs and can still be kept. It is filled in this order:

    1. urgent decodes: whoever would be late for a pause of this iteration and of another as long,
       or of one TBT where that is shorter
    2. prefills, the earliest deadline first
    3. the other decodes, those with the least slack first

Here decodes are picked before prefills are. So the time that waiting prompts will take is worked
out beforehand, and of the third group only those sit out for whom it leaves nothing. As it may be
memory that keeps prompts waiting, nobody sits out for them right after an iteration in which
somebody did and none was computed; and somebody decodes always.

Guessed, as the paper knows no TTLT: that such a stream's slack is the time that is left, shared out
among all of its tokens, but that it sits out for MOST_PAUSE_S at most, as it keeps its memory (0.1
s lost fewest of those tried, from nothing to no limit). Guessed as well: that a stream whose slack
is shorter than what it takes by itself, with those that have less, limits nothing; and FLOOR, how
many times that an iteration may take where all are such. Left out: the load that is reported to a
router.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from engine.deciding.demand import Demand
from engine.deciding.in_order import InOrder
from engine.deciding.latency import LatencyModel, add_chunk
from engine.deciding.pace import deadline_budget
from engine.deciding.plan import Work
from engine.deciding.queue import Key
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams

FLOOR = 2.0
MOST_PAUSE_S = 0.1


class FairBatching(InOrder):
    """The three groups, as the module describes them. Nobody is relegated."""

    keeps_pace = True

    def __init__(self, latency: LatencyModel, demand: Demand) -> None:
        """No iteration has more than `demand.chunk` tokens of prompts."""
        super().__init__(demand)
        self._latency = latency
        self._num_waiting_tokens = 0  # of prompts
        self._tokens: dict[Sequence, int] = {}  # the same, of each that waits
        self._budget_s = math.inf  # of the present iteration
        self._holds = False  # in the present iteration
        self._may_hold = True

    def place(self, sequence: Sequence) -> float:
        return sequence.due_at

    def enter(self, sequence: Sequence, now: float) -> Key:
        self._count(sequence, sequence.num_uncomputed)
        return super().enter(sequence, now)

    def progress(self, sequence: Sequence) -> Key:
        self._count(sequence, sequence.num_uncomputed)
        return super().progress(sequence)

    def leave(self, sequence: Sequence) -> None:
        self._count(sequence, 0)
        super().leave(sequence)

    def _count(self, sequence: Sequence, num_tokens: int) -> None:
        self._num_waiting_tokens += num_tokens - self._tokens.pop(sequence, 0)
        if num_tokens:
            self._tokens[sequence] = num_tokens

    def hold(self, running: Streams, work: Work, now: float) -> list[Sequence]:
        self._budget_s, self._holds = math.inf, False
        if not running:
            return []
        slacks = sorted((self._slack_s(s, now), s.id, s) for s in running)
        self._budget_s = self._time_budget(slacks)
        held = self._ahead(sorted((_pause_s(s, x, now), s.id, s) for x, _, s in slacks))
        self._holds = bool(held)
        return held

    def _time_budget(self, slacks: list[tuple[float, str, Sequence]]) -> float:
        """Returns the smallest slack of a stream that can be kept, as one can that has at least
        the time that it and those with less slack take by themselves.
        """
        work, alone_s = Work(), 0.0
        for slack_s, _, decode in slacks:
            work = _with(work, decode)
            alone_s = self._latency.predict(work)
            if slack_s >= alone_s:
                return slack_s
        return FLOOR * alone_s

    def _slack_s(self, decode: Sequence, now: float) -> float:
        """Returns the time that is left for the next token of a stream."""
        if decode.request.targets.ttlt_s is None:
            return decode.due_at - now
        return deadline_budget(decode.due_at, self.demand.output_left(decode), now)

    def _ahead(self, slacks: list[tuple[float, str, Sequence]]) -> list[Sequence]:
        """Returns who sits out, of streams in order of the time that they could."""
        paces = [s.request.targets.tbt_s or math.inf for _, _, s in slacks]
        pace_s = min(*paces, self._budget_s)
        budget_s = self._budget_s / self._latency.margin
        num_urgent = sum(slack_s < self._budget_s + pace_s for slack_s, _, _ in slacks)
        prompts = min(self._num_waiting_tokens, self.demand.chunk)
        work = add_chunk(Work(), 0, prompts) if prompts and self._may_hold else Work()
        num_in = 0
        for _, _, decode in slacks:
            work = _with(work, decode)
            if num_in >= max(1, num_urgent) and self._latency.predict(work) > budget_s:
                break
            num_in += 1
        return [decode for _, _, decode in slacks[num_in:]]

    def launched(self, chunks: Iterable[tuple[Sequence, int]]) -> None:
        self._may_hold = not self._holds or any(True for _ in chunks)

    def room(self, work: Work, sequence: Sequence) -> int:
        limit = min(self.demand.chunk - work.num_prefill, sequence.num_uncomputed)
        if limit <= 0 or self._budget_s == math.inf:
            return limit
        return self._latency.largest_chunk(work, sequence.num_computed, limit, self._budget_s)


def _pause_s(decode: Sequence, slack_s: float, now: float) -> float:
    """Returns how long a stream with that slack could sit out."""
    if decode.request.targets.ttlt_s is None:
        return slack_s
    last_at = decode.last_token_at
    waited_s = 0.0 if decode.num_in_flight or last_at is None else now - last_at
    return min(slack_s, MOST_PAUSE_S - waited_s)


def _with(work: Work, decode: Sequence) -> Work:
    """Returns the work with one decode more."""
    context = work.decode_context + decode.num_known
    return work._replace(num_decodes=work.num_decodes + 1, decode_context=context)
