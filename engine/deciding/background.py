"""What the requests with deadlines leave over, and how it is shared.

In the background wait requests that have no target (best effort), and relegated ones, whose
deadline was given up. Two rules keep them moving, and neither can be outrun by a flood:

* They are served from what the others leave over, and besides from a small share of the prefill
  tokens. It is kept as a credit: while others are served, the background earns `share` of a token
  for each of theirs, and pays its own tokens from that. Once the credit is worth a whole chunk, it
  goes first.
* Of the best effort request and the relegated one that are first in their order, the one that
  arrived earlier goes first. Relegated requests go by arrival. Best effort requests go by
  start-time fair queueing, see FairShares. What has begun holds memory: it goes before all.

Nobody can be kept moving where more arrives than can be served: at a times the capacity the work
that waits grows by a - 1 seconds a second, whatever the order, and somebody's wait with it. So
there is a longest wait. It begins when a request was due, with best effort when it arrived, and
whoever has not been begun by its end is `overdue`. Before a best-effort request comes in, `wait_s`
says how long it would wait at the rate at which the background is being served, behind the
relegated and those of best effort whose turn is before its own: another share's flood is not.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sortedcontainers import SortedKeyList

from engine.deciding.backlog import Backlog
from engine.deciding.policy import BEST_EFFORT_RANK, RELEGATED_RANK
from engine.deciding.queue import Key, SequenceQueue
from engine.deciding.request import Share
from engine.deciding.sequence import Sequence

COUNTED_ON = 0.8  # of the rate at which the background was served lately
RATE_WINDOW = 100  # chunks, at least, over which it is measured how fast the background is served
RATE_SPAN = 0.05  # of the longest wait, over which that is measured where chunks take less time


class FairShares:
    """Gives turns in proportion to weights: start-time fair queueing (Goyal, Vin and Cheng, 1996).

    Time is virtual, in seconds of work per unit of weight. A request starts when the one before it
    of the same share finishes, or at the present virtual time if that is later, and finishes after
    its work divided by the weight. Whoever starts earliest is served next, and the start of who is
    served is the present virtual time. So a share of twice the weight gets twice the work done
    while both have requests waiting, and a share that had none for a while has saved up nothing.
    """

    def __init__(self) -> None:
        self._now = 0.0  # virtual
        self._finish: dict[str, float] = {}  # of each share's last request, by the share's name
        self._starts: dict[Sequence, float] = {}  # of those that wait

    def __len__(self) -> int:
        """Returns the number of shares that are remembered."""
        return len(self._finish)

    def add(self, sequence: Sequence, share: Share, work_s: float) -> float:
        """Returns the virtual instant at which the request starts; smaller is served first."""
        start = self._starts[sequence] = self.next_start(share)
        self._finish[share.name] = start + work_s / share.weight
        return start

    def next_start(self, share: Share) -> float:
        """Returns the virtual instant at which a request of the share that came now would start."""
        return max(self._now, self._finish.get(share.name, 0.0))

    def serve(self, sequence: Sequence) -> None:
        """Takes note that the request, or part of it, is being served."""
        self._now = max(self._now, self._starts.get(sequence, 0.0))

    def remove(self, sequence: Sequence) -> None:
        """Forgets a request that waits no longer. When none does, nobody owes anybody a turn."""
        if self._starts.pop(sequence, None) is not None and not self._starts:
            self._finish.clear()


class _Entry(NamedTuple):
    rank: int
    work_s: float


class Background:
    """Holds the waiting requests of best effort and the relegated ones, with the work of each in
    seconds.
    """

    def __init__(
        self, share: float, chunk: int, longest_wait_s: float = math.inf, chunk_s: float = 1.0
    ) -> None:
        """The background earns `share` of a token, in [0, 1), for each prefill token of the others.
        An iteration has at most `chunk` prefill tokens, and takes about `chunk_s` seconds then.
        """
        self._window = chunk * max(RATE_WINDOW, RATE_SPAN * longest_wait_s / chunk_s)
        self._share = share
        self._chunk = chunk
        self._longest_wait_s = longest_wait_s
        self._rate = 1.0  # seconds of its work that are done in a second, lately
        self._unbegun: SortedKeyList[Sequence, float] = SortedKeyList(key=_waits_from)
        self._credit = 0.0  # prefill tokens that the background may take before the others
        self._entries: dict[Sequence, _Entry] = {}
        self._total_s = 0.0
        self._best_effort = Backlog()  # these of the entries, by their virtual start
        self.fair_shares = FairShares()

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._entries

    def add_best_effort(self, sequence: Sequence, work_s: float) -> Key:
        """Returns the key with which the request waits."""
        start = self.fair_shares.add(sequence, sequence.request.share, work_s)
        self._best_effort.add(sequence, start, work_s)
        return self._add(sequence, BEST_EFFORT_RANK, start, work_s)

    def add_relegated(self, sequence: Sequence, work_s: float) -> Key:
        """Returns the key with which the request waits."""
        return self._add(sequence, RELEGATED_RANK, sequence.request.arrived_at, work_s)

    def _add(self, sequence: Sequence, rank: int, value: float, work_s: float) -> Key:
        self._entries[sequence] = _Entry(rank, work_s)
        self._total_s += work_s
        if not sequence.num_computed and not sequence.num_output:
            self._unbegun.add(sequence)
        return (rank, -math.inf if sequence.num_computed else value)

    def set_work(self, sequence: Sequence, work_s: float) -> Key:
        """Returns the new key of a request of which part is computed, or was until it lost its
        pages: it goes before the others of its rank.
        """
        rank, before_s = self._entries[sequence]
        self._total_s += work_s - before_s
        self._entries[sequence] = _Entry(rank, work_s)
        if rank == BEST_EFFORT_RANK:
            self._best_effort.set_work(sequence, work_s)
        return (rank, -math.inf)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a request that waits no longer, or no longer in the background."""
        self.fair_shares.remove(sequence)
        self._unbegun.discard(sequence)
        if sequence in self._best_effort:
            self._best_effort.remove(sequence)
        self._total_s = max(0.0, self._total_s - self._entries.pop(sequence).work_s)

    def work_s(self, sequence: Sequence) -> float:
        """Returns the seconds of work that the waiting request has left."""
        return self._entries[sequence].work_s

    def others_s(self, sequence: Sequence) -> float:
        """Returns the work of everybody else in the background, in seconds."""
        entry = self._entries.get(sequence)
        return max(0.0, self._total_s - (entry.work_s if entry else 0.0))

    def wait_s(self, share: Share) -> float:
        """Returns the seconds after which a best-effort request of the share that came now would be
        begun.
        """
        best_effort, start = self._best_effort, self.fair_shares.next_start(share)
        ahead_s = self._total_s - best_effort.total + best_effort.work_until(start)
        rate = max(COUNTED_ON * self._rate, self._share)
        return ahead_s / rate if rate > 0 else (math.inf if ahead_s > 0 else 0.0)

    def refusal(self, share: Share) -> str:
        """Returns why a best-effort request of the share that came now would wait too long; "": it
        would not.
        """
        wait_s, longest_s = self.wait_s(share), self._longest_wait_s
        if wait_s <= longest_s:
            return ""
        return f"best effort would wait {wait_s:.1f} s, and may wait {longest_s:g} s"

    def overdue(self, now: float) -> list[tuple[Sequence, str]]:
        """Returns who has waited for the longest wait, and has not been begun, with why; each is to
        be removed.
        """
        since = now - self._longest_wait_s
        if not self._unbegun or _waits_from(self._unbegun[0]) > since:
            return []  # as nearly always
        longest = f"{self._longest_wait_s:g} s"
        relegated = f"there was no time for it until {longest} after its deadline"
        patient = f"there was no time for it within {longest}"
        overdue = self._unbegun.irange_key(None, since)
        return [(s, patient if s.due_at == math.inf else relegated) for s in overdue]

    @property
    def is_due(self) -> bool:
        """Whether the share that the background has earned is worth a chunk."""
        return self._credit >= self._chunk

    def launched(self, chunks: Iterable[tuple[Sequence, int]]) -> None:
        """Keeps the account of the share, and of how fast the background is served: these chunks
        (sequence, tokens) are being computed.
        """
        if not self._entries:
            return
        own = others = 0
        for sequence, length in chunks:
            if sequence in self._entries:
                own += length
                self._credit = max(0.0, self._credit - length)
                self.fair_shares.serve(sequence)
                self._unbegun.discard(sequence)
            else:
                others += length
                self._credit += self._share * length
        if own or others:
            weight = min(1.0, (own + others) / self._window)
            self._rate += weight * (own / (own + others) - self._rate)

    def order(self, waiting: SequenceQueue) -> Iterator[Sequence]:
        """Yields the background of the queue, first to last."""
        if not self._entries:
            return iter(())
        ranks = waiting.of_rank(BEST_EFFORT_RANK), waiting.of_rank(RELEGATED_RANK)
        return heapq.merge(*ranks, key=_age)

    def first(self, waiting: SequenceQueue) -> Sequence | None:
        """Returns who is first in `order`, if there is anybody."""
        if not self._entries:
            return None
        ranks = BEST_EFFORT_RANK, RELEGATED_RANK
        heads = [s for rank in ranks if (s := next(waiting.of_rank(rank), None)) is not None]
        return min(heads, key=_age, default=None)

    def check(self, waiting: SequenceQueue) -> None:
        """Asserts that these are those of the queue whose ranks say so, and who has not begun."""
        both = (BEST_EFFORT_RANK, RELEGATED_RANK)
        ranks = {s: rank for rank in both for s in waiting.of_rank(rank)}
        assert {s: entry.rank for s, entry in self._entries.items()} == ranks
        assert set(self._unbegun) <= set(ranks)
        assert not any(s.num_output for s in self._unbegun), "who has a token has begun"


def _waits_from(sequence: Sequence) -> float:
    """Returns the instant at which its longest wait begins: when its first token was due, or with a
    TTLT all of them, or when it arrived.
    """
    request = sequence.request
    return request.arrived_at if sequence.due_at == math.inf else request.token_due_at(1)


def _age(sequence: Sequence) -> float:
    """Returns the instant of arrival, but -inf for what has begun, which goes on before all."""
    return -math.inf if sequence.num_computed else sequence.request.arrived_at
