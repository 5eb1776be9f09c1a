"""Earliest deadline first, made as strong as it can be without an order or relegation of its own.

`edf-dynamic` has the chunks of Niyama (chunking.py: no stream comes late, none has a raw gap beyond
`max_gap`): what remains of Niyama when its order and its relegation are taken away.

`edf-reject` besides turns requests away, in the manner of the TTFT guard of Scorpio (arXiv
2505.23022), which serves the least deadline first and rejects what cannot meet its target. A
request is let in only if the queue, served in order of deadline (backlog.py), then still has
everybody on time who was; else its caller is told at once. What turns out hopeless later waits
behind all others, as who was let in is not dropped. Best effort is always let in.

Guessed: that rejecting happens on arrival alone, and SLOWDOWN. Left out: Scorpio's TPOT guard
(credits by classes of pace, and a limit on how many streams run), whose task the chunks have here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from engine.deciding.chunking import Chunking
from engine.deciding.demand import Demand
from engine.deciding.in_order import InOrder
from engine.deciding.latency import LatencyModel
from engine.deciding.pace import PaceConfig
from engine.deciding.plan import Work
from engine.deciding.queue import Key
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams

# Waiting work takes this many times as long as in chunks that nobody's pace makes small.
SLOWDOWN = 1.25
_LAST = math.nextafter(math.inf, 0.0)  # no deadline is later


class DynamicEdf(InOrder):
    """Earliest deadline first with dynamic chunks. Nobody is relegated."""

    keeps_pace = True

    def __init__(
        self, pace: PaceConfig, latency: LatencyModel, demand: Demand, max_held_pages: int
    ) -> None:
        super().__init__(demand)
        self._chunking = Chunking(pace, latency, demand, max_held_pages)
        self._prefills_go = False  # in the last iteration

    def place(self, sequence: Sequence) -> float:
        return sequence.due_at

    def hold(self, running: Streams, work: Work, now: float) -> list[Sequence]:
        return self._chunking.hold(running, work, now, self._load(now), self._prefills_go)

    def _load(self, now: float) -> float:
        """Returns the waiting work that has a deadline, over the smallest slack that it has."""
        slack_s = -(now + self._waiting.lateness)
        return self._waiting.work_until(_LAST) / slack_s if slack_s > 0 else math.inf

    def launched(self, chunks: Iterable[tuple[Sequence, int]]) -> None:
        self._prefills_go = any(True for _ in chunks)

    def begin(self, decodes: Streams, work: Work, now: float) -> None:
        load = 1.0 if len(self._waiting) else 0.0
        self._chunking.begin(decodes, work, load, math.inf, now)

    def room(self, work: Work, sequence: Sequence) -> int:
        return self._chunking.room(work, sequence.num_computed, sequence.num_uncomputed)


class RejectingEdf(DynamicEdf):
    """The same, that lets in only who is expected to be on time and to make nobody late."""

    relegates = True

    def place(self, sequence: Sequence) -> float:
        return sequence.prefill_due_at

    def enter(self, sequence: Sequence, now: float) -> Key:
        sequence.prefill_by(self._due_at(sequence, now))
        return super().enter(sequence, now)

    def _due_at(self, sequence: Sequence, now: float) -> float:
        decodes_s = self.demand.decodes_s(sequence)
        return self.demand.prefill_due_at(sequence, decodes_s, now)

    def work_s(self, sequence: Sequence) -> float:
        return SLOWDOWN * self.demand.seconds(sequence)

    def refusal(self, sequence: Sequence, now: float) -> str:
        own_s, others_s = self._too_late_s(sequence, now)
        if own_s > 0:
            return "it could not be on time"
        return "others could not be on time any more" if others_s > 0 else ""

    def retry_s(self, sequence: Sequence, now: float) -> float:
        return max(0.0, *self._too_late_s(sequence, now))

    def _too_late_s(self, sequence: Sequence, now: float) -> tuple[float, float]:
        """Returns by how much the request would be late, and those that are due later, for having
        it before them, but who are on time without it; nothing above 0 where they are not late.
        """
        if sequence.due_at == math.inf:
            return 0.0, 0.0
        due, work_s = self._due_at(sequence, now), self.work_s(sequence)
        own_s = now + self._waiting.work_until(due) + work_s - due
        others_s = now + self._waiting.lateness_after(due)
        return own_s, others_s + work_s if others_s <= 0 else 0.0
