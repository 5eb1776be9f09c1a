"""SlidingServe (arXiv 2606.05933): chunks for two iterations together, a knapsack under pressure.

Order, by a lexicographic key: those that can still be on time before those that cannot; then by
urgency, the latest start (in_order.py) in steps of URGENCY_S; then by the work that is left.

Chunk. The largest chunk that a stream's slack allows can be a bad use of it: the time left for the
next iteration may be worth more there. So the sizes of this and of the next are chosen together.
With t the predicted duration of an iteration, and slack the smallest time to a deadline of the
tokens that are due now, and of those due next:

    maximize n1 + n2    with  t(n1) <= slack now,  t(n1) + t(n2) <= slack of the next

For a given n1 the largest n2 follows, so that one number is looked for: by a discrete ternary
search, which takes the objective to have one peak. Among equals the largest n1 is taken.

Pressure. Where serving the first LOOK waiting requests in order makes one of them late, a 0/1
knapsack picks who runs: the most requests whose work fits into the time up to that one's deadline.
The others come after them.

Guessed: all of the key but its order; that the objective is the number of tokens, that the next
iteration has the same decodes and the next tokens of the same prompt, and that streams with a TTLT
limit nothing before it is near (as in qoserve.py); that all requests are worth the same in the
knapsack. Where a stream that no chunk size would save allows no chunk, an iteration has LEAST_CHUNK
tokens nevertheless. The paper's predictor, linear in seven features, is ours here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from engine.deciding.demand import Demand
from engine.deciding.in_order import InOrder
from engine.deciding.latency import LatencyModel, add_chunk
from engine.deciding.plan import Work
from engine.deciding.queue import SequenceQueue
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams

URGENCY_S = 30.0
LOOK = 16  # waiting requests that the knapsack chooses among
LEAST_CHUNK = 128  # tokens of an iteration where no size of chunk would save a stream
STEP = 16  # tokens to which the ternary search goes
_MOST_S = 1e3  # of work: all above weighs the same beside urgency


class SlidingServe(InOrder):
    """Order, chunk and knapsack as the module describes them."""

    relegates = True
    keeps_pace = True

    def __init__(self, latency: LatencyModel, demand: Demand) -> None:
        super().__init__(demand)
        self._latency = latency
        self._slack_s = self._next_slack_s = math.inf  # of the present iteration, and of both

    # Order

    def place(self, sequence: Sequence) -> float:
        latest = self.latest_start(sequence)
        if latest == math.inf:
            return math.inf
        step = math.floor(latest / URGENCY_S)
        return (step + min(0.999, self.demand.seconds(sequence) / _MOST_S)) * URGENCY_S

    def order(self, waiting: SequenceQueue, now: float) -> Iterator[Sequence]:
        first = list(islice(waiting, LOOK))
        chosen = self._chosen(first, now)
        if chosen is None:
            yield from waiting
            return
        yield from chosen
        taken = set(chosen)
        yield from (s for s in waiting if s not in taken)

    def _chosen(self, first: list[Sequence], now: float) -> list[Sequence] | None:
        """Returns who goes first of these, in order; None where none of them would be late."""
        at = now
        for number, sequence in enumerate(first):
            at += self._waiting.work(sequence)
            if at > sequence.due_at and not sequence.relegated:
                works = [self._waiting.work(s) for s in first[: number + 1]]
                return [first[i] for i in knapsack(works, sequence.due_at - now)]
        return None

    # Chunk

    def begin(self, decodes: Streams, work: Work, now: float) -> None:
        alone_s = self._latency.predict(work)
        self._slack_s = self._next_slack_s = math.inf
        for decode in decodes:
            targets, slack_s = decode.request.targets, decode.due_at - now
            if targets.tbt_s is not None:
                self._slack_s = min(self._slack_s, slack_s)
                self._next_slack_s = min(self._next_slack_s, slack_s + targets.tbt_s)
            elif slack_s > alone_s:
                self._slack_s = min(self._slack_s, slack_s)
                self._next_slack_s = min(self._next_slack_s, slack_s)

    def room(self, work: Work, sequence: Sequence) -> int:
        limit = min(self.demand.chunk - work.num_prefill, sequence.num_uncomputed)
        if limit <= 0 or self._slack_s == math.inf:
            return limit
        start = sequence.num_computed
        most = self._latency.largest_chunk(work, start, limit, self._slack_s)
        if most == 0 and self._slack_s < self._latency.predict(work):
            return min(limit, LEAST_CHUNK - work.num_tokens)
        return self._shared(work, start, most) if STEP < most < limit else most

    def _shared(self, work: Work, start: int, most: int) -> int:
        """Returns how many of the `most` tokens that fit now are best taken now."""

        def both(size: int) -> int:
            """Returns the tokens of two iterations, if the first takes so many."""
            left_s = self._next_slack_s - self._latency.predict(add_chunk(work, start, size))
            alone = Work(work.num_decodes, work.decode_context + work.num_decodes)
            chunk = self.demand.chunk
            return size + self._latency.largest_chunk(alone, start + size, chunk, left_s)

        low, high = 0, most
        while high - low > STEP:
            third = (high - low) // 3
            if both(low + third) > both(high - third):
                high -= third
            else:
                low += third
        return max((low, high, most), key=lambda size: (both(size), size))


def knapsack(works: list[float], limit: float, units: int = 64) -> list[int]:
    """Returns the indices, in order, of the most works whose sum is at most `limit`, each work
    rounded up to a multiple of limit / `units`. Of equal numbers, those with the least work.
    """
    if limit <= 0:
        return []
    weights = [math.ceil(work * units / limit) for work in works]
    # For each number of units that is filled: the most works that fill it, as indices.
    best: dict[int, tuple[int, ...]] = {0: ()}
    for index, weight in enumerate(weights):
        for filled, chosen in sorted(best.items(), reverse=True):
            total = filled + weight
            if total <= units and len(chosen) >= len(best.get(total, ())):
                best[total] = (*chosen, index)
    return list(max(best.items(), key=lambda item: (len(item[1]), -item[0]))[1])
