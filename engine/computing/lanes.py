"""Attention over KvLanes: decodes in compiled code, which reads each page where it lies.

A decode is bound by how fast its context is read, so it is written as plain sums, of which
torch.compile makes loops over what lies side by side: the tokens of a page for its scores, the
dimensions of a head for its values. A page is read once for the query heads that share it. As in
Flash-Decoding (https://pytorch.org/blog/flash-decoding/) each page by itself has its largest score,
the sum of its weights and its weighted values, from which a sequence's are put together: no context
is read as far as the longest goes (only the putting together goes over so many pages for all), and
one long context is shared among threads as well as many short ones.
Chunks of prompts are computed between what is compiled, as in attention.py.

Legend: T tokens of the iteration, H query heads, KH key-value heads, G = H / KH, D head size, B
rows that decode, W pages that they read, S pages of the longest of them; all indices are int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.computing.attention import (
    ChunkSpan,
    PromptGroup,
    attend_chunk,
    attend_prompts,
    joined,
)
from engine.computing.cpu import is_fused_kernel_slow
from engine.computing.kv import KvLanes

LEAST = 2  # of every size that compiled code has as a symbol
OUTSIDE = -1e30  # score of what is no context: finite, as a page may be nothing but that
SMALLEST = 1e-30


class DecodeInputs(NamedTuple):
    """What compiled code knows of an iteration; the same for every layer."""

    page: Tensor  # [T] where each token's keys and values are written; padding: in the sink
    offset: Tensor  # [T] within that page
    owner: Tensor  # [W] the row that reads
    pages: Tensor  # [W] this page
    lengths: Tensor  # [W] and so many tokens of it
    parts: Tensor  # [B, S] which of the W are each row's; padding: one of length 0


@dataclass(frozen=True, slots=True)
class LanePlan:
    """What attention needs to know of an iteration. Rows that decode stand first."""

    inputs: DecodeInputs
    prompts: tuple[PromptGroup, ...]
    chunks: tuple[ChunkSpan, ...]

    @property
    def has_rest(self) -> bool:
        """Whether there is anything to do that is not compiled."""
        return bool(self.prompts or self.chunks)


def write_and_decode(qkv: Tensor, memory: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Tensor:
    """Writes the new keys and values of all rows into one layer's (keys, values); attends for the
    first B: [T, H + 2 * KH, D] to [B, H * D]. For compiled code: sums are in float32.
    """
    (keys, values), (page, offset, owner, pages, lengths, parts) = memory, inputs
    num_kv, dim, page_size = keys.shape[1:]
    heads, batch = qkv.shape[1] - 2 * num_kv, parts.shape[0]
    group = heads // num_kv
    new = qkv[:, heads:]
    keys[page, :, :, offset] = new[:, :num_kv]
    values[page, :, offset] = new[:, num_kv:]

    q = qkv[:batch, :heads].float() * dim**-0.5
    q = q.as_strided(q.shape, q.stride())  # in memory, not computed again for every page
    q = q.view(batch, num_kv, group, dim)[owner]
    k, v = keys[pages].float(), values[pages].float()  # [W, KH, D, page_size], and the last two
    scores = torch.stack([_scores(q[:, :, g], k) for g in range(group)], 2)
    is_context = torch.arange(page_size) < lengths[:, None]
    is_context = is_context[:, None, None]
    scores = torch.where(is_context, scores, OUTSIDE)  # [W, KH, G, page_size]
    largest = scores.amax(3)
    weights = torch.where(is_context, (scores - largest[..., None]).exp(), 0.0)
    sums = weights.sum(3)
    weighted = torch.stack([(weights[:, :, g, :, None] * v).sum(2) for g in range(group)], 2)

    largest = largest.flatten(1)[parts]  # [B, S, H]
    share = (largest - largest.amax(1, keepdim=True)).exp()
    total = (share * sums.flatten(1)[parts]).sum(1, keepdim=True)
    share = share / total.clamp_min(SMALLEST)  # of a row that is padding it is 0
    out = (share[..., None] * weighted.flatten(1, 2)[parts]).sum(1)
    return out.to(qkv.dtype).view(batch, -1)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q [W, KH, D] and k [W, KH, D, page_size], to [W, KH, page_size]."""
    if q.shape[2] % 2:
        return (q[..., None] * k).sum(2)
    first, second = (q[..., None] * k).unflatten(2, (2, -1)).unbind(2)
    return first.sum(2) + second.sum(2)  # two sums at a time: each waits for its last addition


class LaneAttention:
    """Attention over one KvLanes. `plan` is that of the iteration under way."""

    traced = staticmethod(write_and_decode)
    plan: LanePlan

    def __init__(self, kv: KvLanes) -> None:
        self._memory = [(kv.keys[layer], kv.values[layer]) for layer in range(kv.num_layers)]
        self._num_kv = kv.num_kv_heads
        self._by_products = is_fused_kernel_slow(kv.dtype, kv.device)

    def memory(self, layer: int) -> tuple[Tensor, ...]:
        return self._memory[layer]

    def inputs(self) -> tuple[Tensor, ...]:
        return self.plan.inputs

    def attend(self, qkv: Tensor, layer: int, decoded: Tensor) -> Tensor:
        """What compiled code has `decoded`, [B, H * D], and the chunks: to [T, H * D]."""
        plan, num_kv = self.plan, self._num_kv
        if not plan.has_rest:
            return decoded
        heads = qkv.shape[1] - 2 * num_kv
        parts = [
            decoded.view(-1, num_kv, heads // num_kv, qkv.shape[2]),
            *(attend_prompts(qkv, p, heads, num_kv, self._by_products) for p in plan.prompts),
        ]
        for chunk in plan.chunks:
            new = qkv[chunk.start : chunk.stop]
            if isinstance(chunk.pages, Tensor):
                k, v = self._context(layer, chunk.pages, chunk.first + len(new))
            else:
                k, v = new[:, heads:].transpose(0, 1).split(num_kv)
            parts.append(attend_chunk(new[:, :heads], k, v, self._by_products))
        return joined(parts, len(qkv))

    def _context(self, layer: int, pages: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [KH, L, D] of these pages [P]."""
        keys, values = (memory.index_select(0, pages) for memory in self._memory[layer])
        k = keys.permute(1, 0, 3, 2).flatten(1, 2)  # [P, KH, D, page_size] before
        v = values.transpose(0, 1).flatten(1, 2)
        return k[:, :length], v[:, :length]
