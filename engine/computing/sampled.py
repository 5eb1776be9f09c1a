"""The tokens that an iteration sampled: on the device for the next one, and on their way to the
host. Legend: S sampled rows, T tokens of the next iteration.
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
    """Of the A rows that asked for them."""

    rows: list[int]
    counts: list[int]  # of likeliest tokens that each wants to see
    own: Tensor  # [A] log probability of the token that was picked
    values: Tensor  # [A, K] log probabilities of the likeliest
    ids: Tensor  # [A, K] int64, and which those are


class Picked:
    """Implements engine.deciding.plan.Pending."""

    def __init__(
        self,
        ids: Tensor,
        is_finite: Tensor,
        sequences: List[Sequence],
        logprobs: Logprobs | None = None,
        is_left: Tensor | None = None,
    ) -> None:
        """Token ids [S] int64, all of the vocabulary, row i picked for sequences[i]. Where its
        logits were not finite, or no token was left to pick, as some have none ([S] bool each), the
        host is told so, and the next launch, which is made before, goes on with the id: what it
        computes is nobody's.
        """
        self._ids = ids
        self._sequences = sequences
        self._logprobs = logprobs
        told = ids if is_left is None else torch.where(is_left, ids, NOTHING_LEFT)
        told = torch.where(is_finite, told, NOT_FINITE)
        self._to_host = ToHost(told, *(() if logprobs is None else logprobs[2:]))

    def tokens(self) -> list[Token]:
        """Waits for them."""
        ids, *of_logprobs = (tensor.tolist() for tensor in self._to_host.wait())
        tokens = [Token(token) for token in ids]
        if self._logprobs is not None:
            asked = zip(self._logprobs.rows, self._logprobs.counts, *of_logprobs, strict=True)
            for row, count, own, values, likeliest in asked:
                top = tuple(zip(likeliest[:count], values[:count], strict=True))
                tokens[row] = Token(ids[row], own, top)
        return tokens

    def fill_in(self, tokens: Tensor, decodes: List[Sequence]) -> None:
        """Writes into tokens [T] what was picked for those decodes whose newest token is in
        flight; decodes[i] has row i of it."""
        rows = [row for row, sequence in enumerate(decodes) if sequence.num_in_flight]
        if rows:
            row_of = {sequence: row for row, sequence in enumerate(self._sequences)}
            pairs = [rows, [row_of[decodes[row]] for row in rows]]
            into, of = to_device(pairs, tokens.device)
            tokens.index_copy_(0, into, self._ids.index_select(0, of))


def decoded(sequence: Sequence) -> int:
    """The token that a decode computes; 0, to be filled in, where it is in flight."""
    return 0 if sequence.num_in_flight else sequence.token_at(sequence.num_computed)
