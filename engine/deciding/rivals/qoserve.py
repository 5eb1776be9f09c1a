"""QoServe (ASPLOS 2026), the final version of Niyama, as its artifact decides.

Order: P = deadline + alpha * tokens left, the smallest first; the prompt's for an interactive
request, and with a TTLT those of the output too. alpha is in seconds of wall clock for a token: 1
ms under low load and 8 ms under high load.

Chunk: greedy. Each iteration takes the most prompt tokens with which it is predicted, the
prediction multiplied by 1.2, to end before the tightest deadline among the tokens that are due
next. Token n of a stream is due (n - 1) TBTs after its first token was due or came, whichever is
later. A stream with a TTLT limits nothing before its TTLT is near.

Relegation: by a request's own work alone (in_order.py); the queue ahead of it is not looked at.

Guessed: what high load is (more waiting work than HIGH_LOAD_S), and that a request of low
importance is relegated as soon as the load is high (the papers: "first, before any important one
suffers"). The least chunk, LEAST_CHUNK tokens of an iteration however little the slack, is tuned
for ours: of 256, 128 and 32 the first loses a sixth of the streams of long outputs.
"""

from __future__ import annotations

import math

from engine.deciding.demand import Demand
from engine.deciding.in_order import InOrder
from engine.deciding.latency import LatencyModel
from engine.deciding.plan import Work
from engine.deciding.policy import Cause, Move, MoveKind
from engine.deciding.queue import Key
from engine.deciding.request import Importance
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams

LOW_LOAD_ALPHA, HIGH_LOAD_ALPHA = 1e-3, 8e-3  # seconds for a token
HIGH_LOAD_S = 3.0
LEAST_CHUNK = 128  # tokens of an iteration that has a chunk
CAUTION = 1.2  # factor on what is predicted
_EVER = math.nextafter(math.inf, 0.0)


class QoServe(InOrder):
    """Order, chunk and relegation as the module describes them."""

    relegates = True
    keeps_pace = True

    def __init__(self, latency: LatencyModel, demand: Demand) -> None:
        """No iteration has more than `demand.chunk` tokens of prompts."""
        super().__init__(demand)
        self.alpha = LOW_LOAD_ALPHA
        self._latency = latency
        self._budget_s = 0.0  # of the present iteration
        self._unimportant: dict[Sequence, None] = {}  # that wait and are not relegated

    def place(self, sequence: Sequence) -> float:
        tokens = sequence.num_uncomputed
        if sequence.request.targets.ttlt_s is not None:
            tokens += self.demand.output_left(sequence)
        return sequence.due_at + self.alpha * tokens

    def review(self, now: float) -> list[Move]:
        moves = self._follow_load() + super().review(now)
        if self.alpha == HIGH_LOAD_ALPHA:
            why = "of low importance, under high load"
            moves += [self._relegate(s, why, Cause.HIGH_LOAD) for s in list(self._unimportant)]
        return moves

    def enter(self, sequence: Sequence, now: float) -> Key:
        if sequence.request.importance is Importance.LOW and not sequence.relegated:
            self._unimportant[sequence] = None
        return super().enter(sequence, now)

    def leave(self, sequence: Sequence) -> None:
        self._unimportant.pop(sequence, None)
        super().leave(sequence)

    def _relegate(self, sequence: Sequence, why: str, cause: Cause) -> Move:
        self._unimportant.pop(sequence, None)
        return super()._relegate(sequence, why, cause)

    def _follow_load(self) -> list[Move]:
        """Returns new places for everybody where the load has become high, or low."""
        was_high = self.alpha == HIGH_LOAD_ALPHA
        waiting_s = self._waiting.work_until(_EVER)  # of the relegated nothing
        is_high = waiting_s > (HIGH_LOAD_S / 2 if was_high else HIGH_LOAD_S)
        if is_high == was_high:
            return []
        self.alpha = HIGH_LOAD_ALPHA if is_high else LOW_LOAD_ALPHA
        return [Move(s, self.progress(s), MoveKind.REORDER) for s in list(self._waiting)]

    def begin(self, decodes: Streams, work: Work, now: float) -> None:
        self._budget_s = min((_due_at(s, now) - now for s in decodes), default=math.inf)

    def room(self, work: Work, sequence: Sequence) -> int:
        limit = min(self.demand.chunk - work.num_prefill, sequence.num_uncomputed)
        if limit <= 0 or self._budget_s == math.inf:
            return limit
        # The latency model's own margin gives way to the artifact's.
        budget_s = self._budget_s * self._latency.margin / CAUTION
        length = self._latency.largest_chunk(work, sequence.num_computed, limit, budget_s)
        return max(length, min(limit, LEAST_CHUNK - work.num_tokens))


def _due_at(decode: Sequence, now: float) -> float:
    """Returns when the next token of a stream is due, or with a TTLT the last; inf where that has
    passed.
    """
    due_at, targets = decode.due_at, decode.request.targets
    if targets.ttft_s is None:
        return due_at if due_at > now else math.inf
    first_at = now if decode.first_token_at is None else decode.first_token_at
    return due_at + max(0.0, first_at - decode.request.token_due_at(1))
