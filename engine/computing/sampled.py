"""The tokens that an iteration sampled, in two places at once.

They stay on the device, where the next iteration may need them before the host has seen them
(look-ahead: runner.py), and they are on their way to the host, which waits for them only when it is
asked for them. Legend: S sampled rows, T tokens of the next iteration.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import NamedTuple

import torch
from torch import Tensor

from engine.computing.transfer import ToHost, to_device
from engine.deciding.plan import NOT_FINITE, NOTHING_LEFT, Token
from engine.deciding.sequence import Sequence


class Logprobs(NamedTuple):
    """The log probabilities of the A rows whose requests asked for some."""

    rows: list[int]
    counts: list[int]  # of likeliest tokens that each wants to see
    own: Tensor  # [A] log probability of the token that was sampled
    values: Tensor  # [A, K] log probabilities of the likeliest
    ids: Tensor  # [A, K] int64, and which those are


class SampledTokens:
    """Implements engine.deciding.plan.Pending: a token for each sequence that sampled."""

    def __init__(
        self,
        ids: Tensor,
        is_finite: Tensor,
        sequences: List[Sequence],
        logprobs: Logprobs | None = None,
        is_left: Tensor | None = None,
    ) -> None:
        """`ids` [S] int64 are tokens of the vocabulary; row i was sampled for sequences[i].
        `is_finite` and `is_left` [S] bool say whether its logits were finite, and whether they left
        any token to sample (None: all did). Where not, the host is told so instead of the id. The
        next launch may have been made by then, and goes on with the id: what it computes of that
        sequence is nobody's.
        """
        self._ids = ids
        self._sequences = sequences
        self._logprobs = logprobs
        told = ids if is_left is None else torch.where(is_left, ids, NOTHING_LEFT)
        told = torch.where(is_finite, told, NOT_FINITE)
        self._to_host = ToHost(told, *(() if logprobs is None else logprobs[2:]))

    def tokens(self) -> list[Token]:
        """Waits until the tokens are on the host; returns that of row i at i."""
        ids, *of_logprobs = (tensor.tolist() for tensor in self._to_host.wait())
        tokens = [Token(token) for token in ids]
        if self._logprobs is not None:
            asked = zip(self._logprobs.rows, self._logprobs.counts, *of_logprobs, strict=True)
            for row, count, own, values, likeliest in asked:
                top = tuple(zip(likeliest[:count], values[:count], strict=True))
                tokens[row] = Token(ids[row], own, top)
        return tokens

    def fill_in(self, tokens: Tensor, decodes: List[Sequence]) -> None:
        """Writes into `tokens` [T] what was sampled for those decodes whose newest token is in
        flight; decodes[i] has row i of it. Nothing waits for the device.
        """
        rows = [row for row, sequence in enumerate(decodes) if sequence.num_in_flight]
        if rows:
            row_of = {sequence: row for row, sequence in enumerate(self._sequences)}
            pairs = [rows, [row_of[decodes[row]] for row in rows]]
            into, of = to_device(pairs, tokens.device)
            tokens.index_copy_(0, into, self._ids.index_select(0, of))


def token_to_decode(sequence: Sequence) -> int:
    """Returns the token that a decode of this sequence computes; 0, for `fill_in` to write over,
    where it is in flight.
    """
    return 0 if sequence.num_in_flight else sequence.token_at(sequence.num_computed)
