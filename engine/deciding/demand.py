"""How much engine time a request still needs: the unit in which deadlines are weighed."""

from __future__ import annotations

import math

from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel
from engine.deciding.sequence import Sequence


class Demand:
    """Predicted seconds, for prefills in chunks of `chunk` tokens (the size a loaded engine runs).

    A decode is charged what one more sequence adds to an iteration: iterations run anyway.
    """

    def __init__(self, latency: LatencyModel, history: OutputLengths, chunk: int) -> None:
        self._latency = latency
        self._history = history
        self.chunk = chunk

    def output_left(self, sequence: Sequence) -> int:
        """Tokens that are guessed to be computed, at least 1 while the sequence is not finished."""
        request = sequence.request
        expected = self._history.estimate(request.output_group, request.sampling.max_tokens)
        return max(1, expected - len(sequence.output) - sequence.num_in_flight)

    def prefill_s(self, sequence: Sequence) -> float:
        return self._latency.prefill_seconds(sequence.num_computed, sequence.num_known, self.chunk)

    def decodes_s(self, sequence: Sequence, most: float = math.inf) -> float:
        """Of the decodes to come, on average and at most so many, each at what it adds to an
        iteration."""
        request = sequence.request
        mean = self._history.mean(request.output_group, request.sampling.max_tokens)
        decodes = max(1.0, min(mean - sequence.num_output, most))
        context = sequence.num_known + int(decodes / 2)
        return decodes * self._latency.decode_seconds(context, self.chunk)

    def seconds(self, sequence: Sequence) -> float:
        """All that is left on average: prefill and decodes. Sums over a queue stay unbiased."""
        return self.prefill_s(sequence) + self.decodes_s(sequence)
