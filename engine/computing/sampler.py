"""Samples tokens from logits, each row by its own request alone.

The order of operations is that of Hugging Face's generate: stop tokens masked (min_tokens),
penalties, temperature, top-k, top-p over what top-k left, min-p. The three truncations each keep
a token when its probability reaches some floor, so together they are one floor for a row.

Randomness is counter-based: the only random number of a token is splitmix64 (Steele, Lea, Flood,
OOPSLA 2014) of the seed and the token's index in the output, put through the inverse of the
cumulative distribution in order of token id. So neither the batch, nor its order, nor a
preemption changes what a request draws. Legend: S rows, V vocabulary; logits float32.

On CUDA nothing here waits for the device: what it depends on of a token in flight (how often it
occurs) is counted there, and so is whether the logits it was sampled from were finite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as List
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.computing.cpu import ROWS_WORTH_BLOCKS, VOCABULARY_BLOCK
from engine.computing.sampled import Logprobs, SampledTokens
from engine.computing.transfer import to_device
from engine.deciding.request import Sampling
from engine.deciding.sequence import Sequence

# Tokens of a row that are ranked at first; eight times more when they do not decide.
LIKELIEST = 32
MIN_TEMPERATURE = 1e-6  # a lower one is as good, and float32 may not have it
_RANGE = (torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(x: int) -> int:
    """Maps each 64-bit integer to another, one to one, in a way that looks random."""
    z = (x + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def uniform(seed: int, index: int) -> float:
    """Returns the random number in [0, 1) of output token `index`, a multiple of 2**-32."""
    return (splitmix64(splitmix64(seed & _MASK) ^ (index & _MASK)) >> 32) / 2**32


def _seed(sequence: Sequence) -> int:
    """Returns the request's seed or, if it has none, a number that its id fixes."""
    seed = sequence.request.sampling.seed
    if seed is not None:
        return seed
    return int.from_bytes(hashlib.blake2b(sequence.id.encode(), digest_size=8).digest(), "big")


def _has_penalty(s: Sampling) -> bool:
    """Whether tokens that the sequence has already are made less, or more, likely."""
    return s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0


def _is_plain(s: Sampling) -> bool:
    """Whether the request asks for the likeliest token and for nothing else."""
    return s.temperature == 0 and s.logprobs is None and not s.min_tokens and not _has_penalty(s)


def _truncates(s: Sampling) -> bool:
    """Whether unlikely tokens are not to be drawn at all."""
    return s.temperature > 0 and (s.top_k > 0 or s.top_p < 1 or s.min_p > 0)


@dataclass(slots=True)
class _Seen:
    """How often each token occurs in a sequence, counted on the device as the output grows."""

    in_prompt: Tensor  # [V] bool
    in_output: Tensor  # [V] float32 counts
    num_counted: int = 0

    def add(self, tokens: Tensor) -> None:
        """Counts the next tokens of the output, [N] int64 on the device."""
        self.in_output.index_add_(0, tokens, torch.ones_like(tokens, dtype=torch.float32))
        self.num_counted += len(tokens)


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the largest logit of each row [S, V], and the first index where it is: two [S]. NaN
    counts as largest.

    A CPU finds the largest of a block several numbers at a time, but an index one by one: so the
    index is sought in one block only.
    """
    width = logits.shape[1] // VOCABULARY_BLOCK * VOCABULARY_BLOCK
    if logits.device.type != "cpu" or not width or len(logits) < ROWS_WORTH_BLOCKS:
        return logits.max(1)
    blocks = logits[:, :width].unflatten(1, (-1, VOCABULARY_BLOCK))
    values, block = blocks.amax(2).max(1)
    rows = torch.arange(len(logits))
    ids = block * VOCABULARY_BLOCK + blocks[rows, block].max(1).indices
    if width < logits.shape[1]:
        last = logits[:, width:].max(1)
        is_larger = ~(last.values <= values) & ~values.isnan()
        ids = torch.where(is_larger, last.indices + width, ids)
        values = torch.where(is_larger, last.values, values)
    return values, ids


class Sampler:
    """Samples. It holds nothing but the counts of seen tokens, of those sequences that sampled in
    the last iteration and have a penalty.
    """

    def __init__(self) -> None:
        self._seen: dict[Sequence, _Seen] = {}

    def sample(self, logits: Tensor, sequences: List[Sequence]) -> SampledTokens:
        """Samples a token from each row of logits [S, V]; row i belongs to sequences[i]."""
        params = [s.request.sampling for s in sequences]
        if all(map(_is_plain, params)):
            values, ids = likeliest(logits)
            return SampledTokens(ids, _is_finite(values), sequences)
        raw = logits.float()
        adjusted = self._adjust(raw, sequences, params)
        if all(p.temperature == 0 for p in params):
            largest, ids = likeliest(adjusted)
        else:
            largest = adjusted.amax(1)
            ids = _draw(adjusted, largest, sequences, params)
        is_finite, is_left = _is_finite(largest), None
        if adjusted is not raw:
            is_finite, is_left = _is_finite(raw.amax(1)), largest > -torch.inf
        for row, sequence in enumerate(sequences):
            if sequence in self._seen:
                self._seen[sequence].add(ids[row : row + 1])
        asked = [row for row, p in enumerate(params) if p.logprobs is not None]
        logprobs = _logprobs(raw, ids, params, asked) if asked else None
        return SampledTokens(ids, is_finite, sequences, logprobs, is_left)

    def _adjust(self, raw: Tensor, sequences: List[Sequence], params: list[Sampling]) -> Tensor:
        """Returns the logits with stop tokens masked and penalties applied; `raw` itself where no
        row asks for either.
        """
        masked = [
            (row, token)
            for row, (s, p) in enumerate(zip(sequences, params, strict=True))
            if s.num_output < p.min_tokens
            for token in p.stop_token_ids
            if 0 <= token < raw.shape[1]
        ]
        penalised = [row for row, p in enumerate(params) if _has_penalty(p)]
        self._seen = {sequences[row]: self._count(sequences[row], raw) for row in penalised}
        if not masked and not penalised:
            return raw
        logits = raw.clone()
        if penalised:
            self._penalise(logits, penalised, params)
        if masked:
            rows, tokens = to_device(masked, raw.device).unbind(1)
            logits[rows, tokens] = -torch.inf
        return logits

    def _penalise(self, logits: Tensor, rows: list[int], params: list[Sampling]) -> None:
        """Applies the penalties to these rows of the logits [S, V], in place; `_seen` has what
        their sequences have seen, in order. That of repetition is a factor, as in CTRL (arXiv
        1909.05858), the others are as in OpenAI's API.
        """
        prompt = torch.stack([seen.in_prompt for seen in self._seen.values()])
        output = torch.stack([seen.in_output for seen in self._seen.values()])
        penalties = [
            (p.repetition_penalty, p.presence_penalty, p.frequency_penalty)
            for p in (params[row] for row in rows)
        ]
        table = to_device(penalties, logits.device)[:, :, None]
        repetition, presence, frequency = table.unbind(1)
        index = to_device(rows, logits.device)
        x = logits[index]
        has_none, in_output = x == -torch.inf, output > 0
        x = torch.where(prompt | in_output, torch.where(x > 0, x / repetition, x * repetition), x)
        x.sub_(presence * in_output).sub_(frequency * output)
        # A factor may make a number infinite; only what had no chance before has none now.
        logits[index] = x.clamp_(*_RANGE).masked_fill_(has_none, -torch.inf)

    def _count(self, sequence: Sequence, logits: Tensor) -> _Seen:
        """Returns the counts of a sequence, with its newest token. If they are kept from the last
        iteration, that token was counted when it was sampled, which the host may not know of yet;
        if not, the host knows all of the output, and counts it from there.
        """
        seen, device = self._seen.get(sequence), logits.device
        if seen is None or seen.num_counted > sequence.num_output:
            in_prompt = torch.zeros(logits.shape[1], dtype=torch.bool, device=device)
            in_prompt.index_fill_(0, to_device(list(sequence.request.prompt), device), True)
            seen = _Seen(in_prompt, torch.zeros(logits.shape[1], device=device))
        new = sequence.output[seen.num_counted :]
        if new:
            seen.add(to_device(new, device))
        assert seen.num_counted == sequence.num_output
        return seen


def _is_finite(largest: Tensor) -> Tensor:
    """Whether each row's logits are finite, [S] bool, given its largest one [S], which is NaN where
    any is; a token that has no chance may have -inf. (`isfinite` takes twice as many kernels.)
    """
    return largest.abs() < torch.inf


def _draw(
    logits: Tensor, largest: Tensor, sequences: List[Sequence], params: list[Sampling]
) -> Tensor:
    """Draws token ids [S], and takes the likeliest where temperature is 0. `largest` [S] is the
    largest logit of each row: divided by the temperature it has to stay finite, so a temperature
    by which it would not is raised.
    """
    numbers = [
        (
            max(p.temperature, MIN_TEMPERATURE),
            uniform(_seed(s), s.num_output) if p.temperature > 0 else 0.0,
        )
        for s, p in zip(sequences, params, strict=True)
    ]
    table = to_device(numbers, logits.device, torch.float64)
    temperature, draws = table[:, :, None].unbind(1)
    least = largest[:, None].abs() / (_RANGE[1] / 2)  # such logits differ by more than it, or not
    probs = torch.softmax(logits / torch.maximum(temperature.float(), least), 1)
    cut = [row for row, p in enumerate(params) if _truncates(p)]
    if cut:
        index = to_device(cut, logits.device)
        some = probs[index]
        probs[index] = some.masked_fill_(some < _floors(some, [params[row] for row in cut]), 0.0)
    below = probs.cumsum(1, dtype=torch.float64)
    drawn = torch.searchsorted(below, draws * below[:, -1:], right=True)[:, 0]
    drawn.clamp_(max=logits.shape[1] - 1)  # only ever reached by logits that are not numbers
    greedy = [row for row, p in enumerate(params) if p.temperature == 0]
    if greedy:
        index = to_device(greedy, logits.device)
        drawn[index] = logits[index].argmax(1)
    return drawn


def _floors(probs: Tensor, params: list[Sampling]) -> Tensor:
    """Returns the least probability [S, 1] that top_k, top_p and min_p leave in each row.

    Ranks the few likeliest tokens, and more of them only for the rows where those do not decide.
    To know which rows those are the host has to wait for the device; on CUDA, where it must not,
    `_floors_unseen` ranks more than may be needed.
    """
    if probs.is_cuda:
        return _floors_unseen(probs, params)
    floors = probs.new_empty(len(params), 1)
    open_rows, width = list(range(len(params))), LIKELIEST
    while open_rows:
        decided = _set_floors(floors, probs, params, open_rows, width)
        open_rows = [row for row, done in zip(open_rows, decided.tolist(), strict=True) if not done]
        width *= 8
    return floors


def _floors_unseen(probs: Tensor, params: list[Sampling]) -> Tensor:
    """Returns what `_floors` does, by ranking as many tokens as decide in any case; for top_p
    without top_k those are all tokens.
    """
    floors, vocab = probs.new_empty(len(params), 1), probs.shape[1]
    enough = [p.top_k or (vocab if p.top_p < 1 else 1) for p in params]
    some = [row for row, width in enumerate(enough) if width < vocab]
    others = [row for row, width in enumerate(enough) if width >= vocab]
    if some:
        _set_floors(floors, probs, params, some, max(enough[row] for row in some))
    if others:
        _set_floors(floors, probs, params, others, vocab)
    return floors


def _set_floors(
    floors: Tensor, probs: Tensor, params: list[Sampling], rows: list[int], width: int
) -> Tensor:
    """Writes the floors of some rows, from the `width` likeliest tokens of each; returns for which
    of the rows those were enough, one bool each.
    """
    vocab, device = probs.shape[1], probs.device
    limits = [
        (min(params[row].top_k or vocab, vocab), params[row].top_p, params[row].min_p)
        for row in rows
    ]
    index, table = to_device(rows, device), to_device(limits, device, torch.float64)
    ranked = probs[index].topk(min(width, vocab), 1).values
    floors[index], decided = _floors_of(ranked, table[:, :, None], vocab)
    return decided


def _floors_of(ranked: Tensor, limits: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Returns the floors [S, 1] that follow from the likeliest probabilities [S, W] in order, and
    for which rows [S] those were enough. Limits [S, 3, 1] are top_k (vocab: none), top_p and min_p.
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


def _logprobs(raw: Tensor, ids: Tensor, params: list[Sampling], asked: list[int]) -> Logprobs:
    """Returns the log probabilities of the rows in `asked`, in the model's own distribution: that
    before penalties, temperature and truncation.
    """
    index = to_device(asked, raw.device)
    logprobs = torch.log_softmax(raw[index], 1)
    own = logprobs.gather(1, ids[index][:, None])[:, 0]
    counts = [params[row].logprobs or 0 for row in asked]
    best = logprobs.topk(min(raw.shape[1], max(counts)), 1)
    return Logprobs(asked, counts, own, best.values, best.indices)
