"""Picks tokens from logits, each row by its own request alone.

The order of operations is that of Hugging Face's generate: stop tokens masked (min_tokens),
penalties, temperature, top-k, top-p over what top-k left, min-p. The three truncations each keep
a token when its probability reaches some floor, so together they are one floor for a row.

Randomness is counter-based: the only random number of a token is splitmix64 (Steele, Lea, Flood,
OOPSLA 2014) of the seed and the token's index in the output, put through the inverse of the
cumulative distribution in order of token id. So neither the batch, nor its order, nor a
preemption changes what a request draws. Legend: S rows, V vocabulary; logits float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as List
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.deciding.plan import Token
from engine.deciding.request import Sampling
from engine.deciding.sequence import Sequence

# Tokens of a row that are ranked at first; eight times more when they do not decide.
LIKELIEST = 32
# A lower temperature is as good as this one, and would make the logits infinite.
MIN_TEMPERATURE = 1e-6
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(x: int) -> int:
    """A bijection of 64-bit integers that looks random."""
    z = (x + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def uniform(seed: int, index: int) -> float:
    """The random number in [0, 1) of output token `index`; a multiple of 2**-32."""
    return (splitmix64(splitmix64(seed & _MASK) ^ (index & _MASK)) >> 32) / 2**32


def _seed(sequence: Sequence) -> int:
    """The request's seed; without one, a number that its id fixes."""
    seed = sequence.request.sampling.seed
    if seed is not None:
        return seed
    return int.from_bytes(hashlib.blake2b(sequence.id.encode(), digest_size=8).digest(), "big")


def _has_penalty(s: Sampling) -> bool:
    return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0


def _is_plain(s: Sampling) -> bool:
    """Whether the likeliest token is all that it asks for."""
    return s.temperature == 0 and s.logprobs is None and not s.min_tokens and not _has_penalty(s)


def _truncates(s: Sampling) -> bool:
    return s.temperature > 0 and (s.top_k > 0 or s.top_p < 1 or s.min_p > 0)


@dataclass(slots=True)
class _Seen:
    """How often a sequence's tokens occur; brought up to date as the output grows."""

    in_prompt: Tensor  # [V] bool
    in_output: Tensor  # [V] float32 counts
    num_counted: int = 0


class Sampler:
    """Holds nothing but counts of seen tokens, of sequences that sampled in the last iteration."""

    def __init__(self) -> None:
        self._seen: dict[Sequence, _Seen] = {}

    def sample(self, logits: Tensor, sequences: List[Sequence]) -> list[Token]:
        """A token for each row of logits [S, V], row i belonging to sequences[i]."""
        params = [s.request.sampling for s in sequences]
        if all(map(_is_plain, params)):
            return [Token(token) for token in logits.max(1).indices.tolist()]
        raw = logits.float()
        adjusted = self._adjust(raw, sequences, params)
        if all(p.temperature == 0 for p in params):
            picked = adjusted.max(1).indices
        else:
            picked = _draw(adjusted, sequences, params)
        asked = [i for i, p in enumerate(params) if p.logprobs is not None]
        if not asked:
            return [Token(token) for token in picked.tolist()]
        return _with_logprobs(raw, picked, params, asked)

    def _adjust(self, raw: Tensor, sequences: List[Sequence], params: list[Sampling]) -> Tensor:
        """The logits after masked stop tokens and penalties; `raw` itself where there are none."""
        masked = [
            (row, token)
            for row, (s, p) in enumerate(zip(sequences, params, strict=True))
            if len(s.output) < p.min_tokens
            for token in p.stop_token_ids
            if 0 <= token < raw.shape[1]
        ]
        penalised = [row for row, p in enumerate(params) if _has_penalty(p)]
        if not masked and not penalised:
            self._seen.clear()
            return raw
        logits = raw.clone()
        if penalised:
            self._penalise(logits, penalised, sequences, params)
        if masked:
            rows, tokens = torch.tensor(masked, device=raw.device).unbind(1)
            logits[rows, tokens] = -torch.inf
        return logits

    def _penalise(
        self,
        logits: Tensor,
        rows: list[int],
        sequences: List[Sequence],
        params: list[Sampling],
    ) -> None:
        """In place. Repetition as in CTRL (arXiv 1909.05858), the others as in OpenAI's API."""
        kept = {sequences[row]: self._count(sequences[row], logits) for row in rows}
        self._seen = kept
        prompt = torch.stack([seen.in_prompt for seen in kept.values()])
        output = torch.stack([seen.in_output for seen in kept.values()])
        penalties = [
            (p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
            for p in (params[row] for row in rows)
        ]
        table = torch.tensor(penalties, device=logits.device)[:, :, None]
        repetition, presence, frequency = table.unbind(1)
        index = torch.tensor(rows, device=logits.device)
        x = logits[index]
        x = torch.where(
            prompt | (output > 0), torch.where(x > 0, x / repetition, x * repetition), x
        )
        logits[index] = x - presence * (output > 0) - frequency * output

    def _count(self, sequence: Sequence, logits: Tensor) -> _Seen:
        seen = self._seen.get(sequence)
        if seen is None:
            vocab, device = logits.shape[1], logits.device
            in_prompt = torch.zeros(vocab, dtype=torch.bool, device=device)
            in_prompt[torch.tensor(list(sequence.request.prompt), device=device)] = True
            seen = _Seen(in_prompt, torch.zeros(vocab, device=device))
        new = sequence.output[seen.num_counted :]
        if new:
            tokens = torch.tensor(new, device=logits.device)
            seen.in_output.index_add_(0, tokens, torch.ones(len(new), device=logits.device))
            seen.num_counted += len(new)
        return seen


def _draw(logits: Tensor, sequences: List[Sequence], params: list[Sampling]) -> Tensor:
    """Token ids [S]: random ones, and the likeliest where temperature is 0."""
    numbers = [
        (
            max(p.temperature, MIN_TEMPERATURE),
            uniform(_seed(s), len(s.output)) if p.temperature > 0 else 0.0,
        )
        for s, p in zip(sequences, params, strict=True)
    ]
    table = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
    temperature, draws = table[:, :, None].unbind(1)
    probs = torch.softmax(logits / temperature.float(), 1)
    cut = [row for row, p in enumerate(params) if _truncates(p)]
    if cut:
        index = torch.tensor(cut, device=logits.device)
        some = probs[index]
        probs[index] = some.masked_fill_(some < _floors(some, [params[row] for row in cut]), 0.0)
    below = probs.cumsum(1, dtype=torch.float64)
    picked = torch.searchsorted(below, draws * below[:, -1:], right=True)[:, 0]
    picked.clamp_(max=logits.shape[1] - 1)  # only ever reached by logits that are not numbers
    greedy = [row for row, p in enumerate(params) if p.temperature == 0]
    if greedy:
        index = torch.tensor(greedy, device=logits.device)
        picked[index] = logits[index].argmax(1)
    return picked


def _floors(probs: Tensor, params: list[Sampling]) -> Tensor:
    """The least probability [S, 1] that top_k, top_p and min_p leave.

    Ranks the few likeliest tokens, and more of them only for the rows where those do not decide.
    """
    vocab, device = probs.shape[1], probs.device
    floors = probs.new_empty(len(params), 1)
    limits = [(min(p.top_k or vocab, vocab), p.top_p, p.min_p) for p in params]
    open_rows, width = list(range(len(params))), LIKELIEST
    while open_rows:
        width = min(width, vocab)
        index = torch.tensor(open_rows, device=device)
        table = torch.tensor([limits[row] for row in open_rows], dtype=torch.float64, device=device)
        ranked = probs[index].topk(width, 1).values
        floors[index], decided = _floors_of(ranked, table[:, :, None], vocab)
        open_rows = [row for row, done in zip(open_rows, decided.tolist(), strict=True) if not done]
        width *= 8
    return floors


def _floors_of(ranked: Tensor, limits: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Floors [S, 1] from the likeliest probabilities [S, W] in order, and for which rows [S]
    those were enough. Limits [S, 3, 1] are top_k (vocab: none), top_p and min_p.
    """
    top_k, top_p, min_p = limits.unbind(1)
    width = ranked.shape[1]
    kept = torch.arange(width, device=ranked.device) < top_k
    share = torch.where(kept, ranked, 0.0).cumsum(1, dtype=torch.float64)
    no_k, no_p = top_k == vocab, top_p >= 1
    decided = torch.where(no_k, no_p | (share[:, -1:] >= top_p), top_k <= width)
    kept &= share - ranked < top_p * torch.where(no_k, 1.0, share[:, -1:])
    least = torch.where(kept, ranked, torch.inf).amin(1, keepdim=True)
    least = torch.where(no_k & no_p, 0.0, least)
    floors = torch.maximum(least, (min_p * ranked[:, :1]).float())
    return floors, decided[:, 0] | (width == vocab)


def _with_logprobs(
    raw: Tensor, picked: Tensor, params: list[Sampling], asked: list[int]
) -> list[Token]:
    """Tokens with log probabilities of the model's own distribution, on the rows that asked."""
    index = torch.tensor(asked, device=raw.device)
    logprobs = torch.log_softmax(raw[index], 1)
    own = logprobs.gather(1, picked[index][:, None])[:, 0].tolist()
    most = min(raw.shape[1], max(params[i].logprobs or 0 for i in asked))
    best = logprobs.topk(most, 1)
    values, ids = best.values.tolist(), best.indices.tolist()
    tokens = [Token(token) for token in picked.tolist()]
    for i, row in enumerate(asked):
        k = params[row].logprobs or 0
        top = tuple(zip(ids[i][:k], values[i][:k], strict=True))
        tokens[row] = Token(tokens[row].id, own[i], top)
    return tokens
