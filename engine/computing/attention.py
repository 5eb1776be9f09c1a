"""Attention of one flat batch over paged keys and values.

Legend: T tokens of the iteration, H query heads, KH key-value heads, G = H / KH, D head size, B
sequences of a decode group, n tokens of a chunk, L context length, P pages (L = P * page_size for
gathered contexts).

The batch's rows are decodes first, in groups of similar context length, then chunks. A decode group
gathers its pages once per layer, padded to its longest context, except that one sequence whose
pages are neighbours is read in place; the G query heads that share a key-value head become G rows
of one product, so that K and V are never expanded. A chunk that begins at position 0 needs no
gather: its keys are in the batch; on a CPU those of similar length are computed together.
`attend_slowly` is the meaning of it all, one token and one head at a time.

In bfloat16 on a CPU without matrix units (AMX) the products are written out where they are large:
torch's fused kernel is the faster one only with them (`python -m tests.bench attention`). Scores
are then rounded to bfloat16 between the products, sums are not.

None of this is compiled: it is called between what is (compiled.py), its shapes follow the batch.
Compiled code on a CPU decodes in its own way, from memory of its own layout: lanes.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.computing.cpu import (
    FLOAT32_PRODUCTS_UP_TO,
    FUSED_MULTIPLE,
    PRODUCTS_FROM_PAIRS,
    PRODUCTS_FROM_POSITIONS,
    QUERIES_AT_ONCE,
    is_cpu_bfloat16,
    is_fused_kernel_slow,
)
from engine.computing.kv import KvSlots, LayerMemory


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows [start, stop) of the batch, one token for each of B sequences."""

    start: int
    stop: int
    # [2 * KH * B * P] int64, rows of LayerMemory.pages, padded with the spare page; or, of one
    # sequence whose pages are neighbours, its first slot
    pages: Tensor | int
    length: int  # L
    # [1, B, 1, L] float: 0 where there is context, else -inf; None if B is 1. B counts padding too,
    # which computes something of whatever rows follow.
    mask: Tensor | None

    @property
    def size(self) -> int:
        return 1 if self.mask is None else self.mask.shape[1]


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Chunks at position 0, C of them, neighbours in the batch and padded to n tokens.

    What a product wants side by side is brought there by one gather, and back by another.
    """

    inputs: Tensor  # [C * (H + 2 * KH) * n] int64: heads of the batch, by key-value head and chunk
    outputs: Tensor  # [tokens * H] int64: where each head of each token is among what comes out
    size: int  # C
    length: int  # n
    mask: Tensor  # [G * n, n] float: 0 up to each query's own position, else -inf; for products


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """Rows [start, stop) of the batch: n tokens of one sequence, neighbours in position."""

    start: int
    stop: int
    first: int  # position of the first of them
    pages: Tensor | int | None  # as above; None when the chunk begins at position 0


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What attention needs to know of an iteration; the same for every layer.

    Rows behind the last chunk are padding: they are neither written nor attended to.
    """

    slots: Tensor  # [T * 2 * KH] int64, rows of LayerMemory.slots: where keys and values go
    groups: tuple[DecodeGroup, ...]
    prompts: tuple[PromptGroup, ...]
    chunks: tuple[ChunkSpan, ...]

    @property
    def has_rest(self) -> bool:
        """Whether there is anything to do that is not compiled: everything."""
        return True


class PagedAttention:
    """Attention over one KvSlots. `plan` is that of the iteration under way."""

    def __init__(self, kv: KvSlots, by_products: bool | None = None) -> None:
        """`by_products`: whether large products are written out, by default where the fused kernel
        is the slower way.
        """
        self._by_products = (
            is_fused_kernel_slow(kv.dtype, kv.device) if by_products is None else by_products
        )
        self._layers = kv.layers()
        self._num_kv = kv.num_kv_heads
        self._gathered = kv.slots.new_empty(0)
        self.plan = AttentionPlan(torch.empty(0, dtype=torch.int64), (), (), ())

    @staticmethod
    def traced(qkv: Tensor, memory: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
        """Nothing of it belongs into compiled code."""

    def memory(self, layer: int) -> tuple[Tensor, ...]:
        return ()

    def inputs(self) -> tuple[Tensor, ...]:
        return ()

    def attend(self, qkv: Tensor, layer: int, decoded: None = None) -> Tensor:
        """Writes the new keys and values, then attends: [T, H + 2 * KH, D] to [T, H * D]."""
        memory, plan, num_kv = self._layers[layer], self.plan, self._num_kv
        rows, heads = len(plan.slots) // (2 * num_kv), qkv.shape[1] - 2 * num_kv
        memory.slots.index_copy_(0, plan.slots, qkv[:rows, heads:].reshape(-1, qkv.shape[2]))
        parts = []
        for group in plan.groups:
            k, v = self._context(memory, group.pages, group.size, group.length)
            q = qkv[group.start : group.start + group.size, :heads]
            if len(q) < group.size:
                q = F.pad(q, (0, 0, 0, 0, 0, group.size - len(q)))
            by_products = self._by_products and group.size * group.length >= PRODUCTS_FROM_POSITIONS
            out = _attend_group(q, group.mask, k, v, by_products)
            parts.append(out[: group.stop - group.start])
        parts += [
            attend_prompts(qkv, prompts, heads, num_kv, self._by_products)
            for prompts in plan.prompts
        ]
        for chunk in plan.chunks:
            new = qkv[chunk.start : chunk.stop]
            if chunk.pages is None:
                k, v = new[:, heads:].transpose(0, 1).split(num_kv)  # [KH, L, D]
            else:
                length = chunk.first + len(new)
                k, v = (x[:, 0] for x in self._context(memory, chunk.pages, 1, length))
            parts.append(attend_chunk(new[:, :heads], k, v, self._by_products))
        return joined(parts, len(qkv))

    def _context(
        self, memory: LayerMemory, pages: Tensor | int, batch: int, length: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [KH, B, L, D], valid until the next call; copied only where they lie
        scattered.
        """
        if isinstance(pages, int):
            k, v = memory.heads[:, None, pages : pages + length].split(self._num_kv)
        else:
            k, v = self._gather(memory, pages, batch)[:, :, :, :length]
        return k, v

    def _gather(self, memory: LayerMemory, pages: Tensor, batch: int) -> Tensor:
        """Keys and values [2, KH, B, P * page_size, D] of these rows of pages."""
        width = memory.pages.shape[1]
        if memory.pages.device.type != "cpu":  # its allocator is cheap, and a graph keeps addresses
            rows = memory.pages.index_select(0, pages)
            return rows.view(2, self._num_kv, batch, -1, memory.slots.shape[1])
        if self._gathered.numel() < len(pages) * width:  # reused, it stays in the cache
            self._gathered = memory.pages.new_empty(len(pages) * width)
        out = self._gathered[: len(pages) * width].view(-1, width)
        torch.index_select(memory.pages, 0, pages, out=out)
        return out.view(2, self._num_kv, batch, -1, memory.slots.shape[1])


def joined(parts: list[Tensor], count: int) -> Tensor:
    """Rows [n, KH, G, D] of each part after the other, then zeros: to [count, H * D]."""
    computed = sum(map(len, parts))
    if computed < count:
        parts = [*parts, parts[0].new_zeros(count - computed, *parts[0].shape[1:])]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)


def _attend_group(
    q: Tensor, mask: Tensor | None, k: Tensor, v: Tensor, by_products: bool
) -> Tensor:
    """q [B, H, D] and k, v [KH, B, L, D], to [B, KH, G, D]."""
    dim = q.shape[2]
    q = q.unflatten(1, (len(k), -1)).transpose(0, 1)  # [KH, B, G, D]
    if by_products:
        scores = (q * dim**-0.5) @ k.transpose(2, 3)  # [KH, B, G, L]
        if mask is not None:
            scores += mask
        out = torch.softmax(scores, -1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask)
    return out.transpose(0, 1)


def attend_prompts(
    qkv: Tensor, group: PromptGroup, heads: int, num_kv: int, by_products: bool
) -> Tensor:
    """qkv [T, H + 2 * KH, D], to [tokens, KH, G, D]."""
    dim, length, per_kv = qkv.shape[2], group.length, heads // num_kv
    batch, rows = num_kv * group.size, per_kv * length
    gathered = qkv.flatten(0, 1).index_select(0, group.inputs)
    q, k, v = gathered.split((batch * rows, batch * length, batch * length))
    k, v = k.view(batch, length, dim), v.view(batch, length, dim)
    if by_products or (qkv.dtype == torch.float32 and length <= FLOAT32_PRODUCTS_UP_TO):
        q = q.view(batch, rows, dim)
        scores = torch.baddbmm(group.mask, q, k.transpose(1, 2), alpha=dim**-0.5)
        out = torch.bmm(torch.softmax(scores, -1), v)
    else:
        q = q.view(batch, per_kv, length, dim)
        k, v = (x[:, None].expand(-1, per_kv, -1, -1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).contiguous()
    return out.view(-1, dim).index_select(0, group.outputs).view(-1, num_kv, per_kv, dim)


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, by_products: bool) -> Tensor:
    """The last n of L positions: q [n, H, D], k and v [KH, L, D], to [n, KH, G, D]."""
    if by_products and len(q) * k.shape[1] >= PRODUCTS_FROM_PAIRS:
        return _attend_blocks(q, k, v)
    return _attend_whole(q, k, v)


def _attend_whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """To the kernel a key-value head is a batch of G query heads, which read it with stride 0."""
    (count, num_q, _), (num_kv, seen, _) = q.shape, k.shape
    first = seen - count  # position of the first query
    if is_cpu_bfloat16(q.dtype, q.device):
        # With matrix units the kernel compiles code for each new size, and keeps it for ever.
        if padding := -count % FUSED_MULTIPLE:
            q = F.pad(q, (0, 0, 0, 0, 0, padding))
        if padding := -seen % FUSED_MULTIPLE:
            k, v = (F.pad(x, (0, 0, 0, padding)) for x in (k, v))
    mask = None
    if first:
        mask = torch.full((len(q), k.shape[1]), -torch.inf, dtype=q.dtype, device=q.device)
        mask.triu_(first + 1)
    q = q.unflatten(1, (num_kv, -1)).permute(1, 2, 0, 3)  # [KH, G, n, D]
    k, v = (x[:, None].expand(-1, num_q // num_kv, -1, -1) for x in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
    return out.permute(2, 0, 1, 3)[:count]


def _attend_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By products of QUERIES_AT_ONCE queries at a time and all the keys before them."""
    (n, num_q, dim), (num_kv, length, _) = q.shape, k.shape
    k, v = k.transpose(1, 2).contiguous(), v.contiguous()
    q = (q * dim**-0.5).unflatten(1, (num_kv, -1)).transpose(0, 1)  # [KH, n, G, D]
    out = torch.empty(n, num_kv, num_q // num_kv, dim, dtype=q.dtype)
    future = q.new_full((QUERIES_AT_ONCE, QUERIES_AT_ONCE), -torch.inf).triu_(1)[:, None]
    for start in range(0, n, QUERIES_AT_ONCE):
        size = min(QUERIES_AT_ONCE, n - start)
        seen = length - n + start + size
        rows = q[:, start : start + size].reshape(num_kv, -1, dim)  # [KH, size * G, D]
        scores = torch.bmm(rows, k[:, :, :seen])
        latest = scores.view(num_kv, size, -1, seen)[..., seen - size :]
        latest += future[:size, :, :size]
        part = torch.bmm(torch.softmax(scores, -1), v[:, :seen])
        out[start : start + size] = part.view(num_kv, size, -1, dim).transpose(0, 1)
    return out


def attend_slowly(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One token's attention, written out: q [H, D], keys and values [L, KH, D], to [H, D]."""
    group = q.shape[0] // keys.shape[1]
    heads = []
    for head in range(q.shape[0]):
        scores = keys[:, head // group] @ q[head] / q.shape[1] ** 0.5
        heads.append(torch.softmax(scores.float(), 0).to(values.dtype) @ values[:, head // group])
    return torch.stack(heads)
