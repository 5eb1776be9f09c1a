"""Attention of one flat batch over paged keys and values.

Legend: T tokens of the iteration, H query heads, KH key-value heads, G = H / KH, D head size, B
sequences of a decode group, n tokens of a chunk, L context length, P pages (L = P * page_size for
gathered contexts).

The batch's rows are decodes first, in groups of similar context length, then chunks one after
another. A decode group gathers its pages once per layer, padded to its longest context; the G
query heads that share a key-value head become G query rows, so that K and V are never expanded.
A chunk that begins at position 0 needs no gather: its keys are in the batch. `attend_slowly` is
the meaning of it all, one token and one head at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows [start, stop) of the batch, one token for each of B sequences."""

    start: int
    stop: int
    pages: Tensor  # [B * P] int64, padded with any page
    mask: Tensor  # [B, 1, 1, L] float: 0 where there is context, -inf in the padding


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """Rows [start, stop) of the batch: n tokens of one sequence, neighbours in position."""

    start: int
    stop: int
    pages: Tensor | None  # [P] int64; None when the chunk begins at position 0
    mask: Tensor | None  # [n, L] float, causal; None with `pages`


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What attention needs to know of an iteration; the same for every layer."""

    slots: Tensor  # [T] int64: where each token's keys and values are written
    groups: tuple[DecodeGroup, ...]
    chunks: tuple[ChunkSpan, ...]


def attend(qkv: Tensor, layer: tuple[Tensor, Tensor], plan: AttentionPlan, num_kv: int) -> Tensor:
    """Writes the new keys and values, then attends: [T, H + 2 * KH, D] to [T, H * D].

    `layer` is one layer of KvMemory: slots [slots, 2, KH, D] and the same by pages.
    """
    slots, pages = layer
    rows, heads, dim = qkv.shape[0], qkv.shape[1] - 2 * num_kv, qkv.shape[2]
    slots.index_copy_(0, plan.slots, qkv[:, heads:].unflatten(1, (2, num_kv)).to(slots.dtype))
    parts = [_attend_group(qkv[g.start : g.stop, :heads], pages, g, slots) for g in plan.groups]
    parts += [_attend_chunk(qkv[c.start : c.stop], pages, c, slots) for c in plan.chunks]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.view(rows, heads * dim)


def _attend_group(q: Tensor, pages: Tensor, group: DecodeGroup, slots: Tensor) -> Tensor:
    """[B, H, D] to [B, H * D]."""
    _, _, num_kv, dim = slots.shape
    batch = q.shape[0]
    context = pages.index_select(0, group.pages).view(batch, -1, 2, num_kv, dim)
    k, v = context.transpose(1, 3).unbind(2)  # [B, KH, L, D]
    q = q.unflatten(1, (num_kv, -1))  # [B, KH, G, D]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask).reshape(batch, -1)


def _attend_chunk(qkv: Tensor, pages: Tensor, chunk: ChunkSpan, slots: Tensor) -> Tensor:
    """[n, H + 2 * KH, D] to [n, H * D].

    To the kernel a key-value head is a batch of G query heads, which read it with stride 0.
    """
    _, _, num_kv, dim = slots.shape
    q, k, v = qkv.split((qkv.shape[1] - 2 * num_kv, num_kv, num_kv), 1)
    if chunk.pages is not None and chunk.mask is not None:
        context = pages.index_select(0, chunk.pages).view(-1, 2, num_kv, dim)
        k, v = context[: chunk.mask.shape[1]].unbind(1)  # [L, KH, D]
    q = q.unflatten(1, (num_kv, -1)).permute(1, 2, 0, 3)  # [KH, G, n, D]
    k, v = (x.transpose(0, 1)[:, None].expand(-1, q.shape[1], -1, -1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, chunk.mask, is_causal=chunk.mask is None)
    return out.permute(2, 0, 1, 3).reshape(qkv.shape[0], -1)


def attend_slowly(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One token's attention, written out: q [H, D], keys and values [L, KH, D], to [H, D]."""
    group = q.shape[0] // keys.shape[1]
    heads = []
    for head in range(q.shape[0]):
        scores = keys[:, head // group] @ q[head] / q.shape[1] ** 0.5
        heads.append(torch.softmax(scores.float(), 0).to(values.dtype) @ values[:, head // group])
    return torch.stack(heads)
