"""Attention of prompts, chunk by chunk: the same for both layouts of KV memory.

A chunk of a prompt is n new positions of one sequence, which attend to all L positions up to their
own. Unlike a decode it computes much with each number that it reads, so that what counts are large
products in few calls, not where keys and values lie. If it begins at position 0 its keys and values
are in the batch itself; else they are read from the memory, in whatever way the layout has
(`ReadContext`). On a CPU short prompts of similar length are computed together, padded to the
longest of them.

In bfloat16 on a CPU without matrix units (AMX) the products are written out where they are large:
torch's fused kernel is the faster one only with them (`python -m tests.bench attention`). Scores
are then rounded to bfloat16 between the products, sums are not. `attend_slowly` is the meaning of
it all, one token and one head at a time.

Legend: T tokens of the iteration, H query heads, KH key-value heads, G = H / KH, D head size, B
sequences, C prompts of a group, n tokens of a chunk, L positions that they attend to.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.computing.cpu import (
    FLOAT32_PRODUCTS_UP_TO,
    FUSED_MULTIPLE,
    LONGEST_TOGETHER,
    MATRIX_UNITS_FROM,
    PRODUCTS_FROM_PAIRS,
    PROMPT_GROUP_COST,
    PROMPT_GROUP_PAIRS,
    QUERIES_AT_ONCE,
    WORTH_MATRIX_UNITS,
    fused_kernel_uses_matrix_units,
    is_cpu_bfloat16,
    rounded_up,
)
from engine.deciding.plan import Chunk

# Given a layer, the keys and the values [KH, B, L, D] of some sequences' contexts; what it returns
# is valid until something else is read.
ReadContext = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A group is C chunks at position 0, neighbours in the batch and padded to n tokens.

    What a product wants side by side is brought there by one gather, and back by another.
    """

    inputs: Tensor  # [C * (H + 2 * KH) * n] int64: heads of the batch, by key-value head and chunk
    outputs: Tensor  # [tokens * H] int64: where each head of each token is among what comes out
    size: int  # C
    length: int  # n
    mask: Tensor  # [G * n, n] float: 0 up to each query's own position, else -inf; for products


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """A span is rows [start, stop) of the batch: n tokens of one sequence, side by side in it."""

    start: int
    stop: int
    read: ReadContext | None  # None when the chunk begins at position 0


@dataclass(frozen=True, slots=True)
class Prefill:
    """The prefill is all chunks of an iteration, in the order of their rows."""

    prompts: tuple[PromptGroup, ...]
    chunks: tuple[ChunkSpan, ...]

    @property
    def is_empty(self) -> bool:
        return not self.prompts and not self.chunks


NO_PREFILL = Prefill((), ())


class PrefillPlanner:
    """Plans the attention of an iteration's chunks, for heads of one shape on one device."""

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        dtype: torch.dtype,
        device: torch.device,
        pads_prompts: bool | None = None,
    ) -> None:
        """`pads_prompts` says whether prompts not much shorter than MATRIX_UNITS_FROM are padded to
        it, which by default they are where the fused kernel then is the faster one.
        """
        self._num_heads = num_heads
        self._num_kv = num_kv_heads
        self._dtype = dtype
        self._is_cpu = device.type == "cpu"
        if pads_prompts is None:
            pads_prompts = fused_kernel_uses_matrix_units(dtype, device)
        self._pads_prompts = pads_prompts

    def ordered(self, chunks: List[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
        """Returns those that are computed in groups, from long to short, and the others."""
        prompts = sorted(filter(self._is_grouped, chunks), key=lambda c: -c.length)
        return prompts, [c for c in chunks if not self._is_grouped(c)]

    def plan(
        self,
        prompts: List[Chunk],
        others: List[Chunk],
        row: int,
        reader: Callable[[List[int], int], ReadContext],
    ) -> Prefill:
        """Plans what `ordered` gave; the first row of it is `row` of the batch. `reader` is that of
        the layout.
        """
        if not prompts and not others:
            return NO_PREFILL
        groups = self._groups([chunk.length for chunk in prompts], row)
        row += sum(chunk.length for chunk in prompts)
        spans = []
        for sequence, start, length, _ in others:
            read = reader(sequence.pages, start + length) if start else None
            spans.append(ChunkSpan(row, row + length, read))
            row += length
        return Prefill(groups, tuple(spans))

    def _is_grouped(self, chunk: Chunk) -> bool:
        return self._is_cpu and chunk.start == 0 and chunk.length <= LONGEST_TOGETHER

    def _groups(self, lengths: list[int], row: int) -> tuple[PromptGroup, ...]:
        """Plans the groups of prompts of these lengths, from long to short, from this row on."""
        groups = []
        widths = [self._width(length) for length in lengths]
        for start, stop in group_prompts(widths):
            groups.append(self._group(lengths[start:stop], widths[start], row))
            row += sum(lengths[start:stop])
        return tuple(groups)

    def _width(self, length: int) -> int:
        """Returns what a prompt of this length is padded to."""
        if self._pads_prompts and WORTH_MATRIX_UNITS <= length < MATRIX_UNITS_FROM:
            return MATRIX_UNITS_FROM
        return rounded_up(length, 16)

    def _group(self, lengths: list[int], width: int, row: int) -> PromptGroup:
        """Plans one group of prompts of these lengths, padded to `width`, from this row on."""
        count = len(lengths)
        heads, per_kv = self._num_heads, self._num_heads // self._num_kv
        sizes = torch.tensor(lengths)[:, None]
        within = torch.arange(width)
        # [C, n]: the row of each token; padding repeats the last token of its prompt
        rows = row + sizes.cumsum(0) - sizes + within.minimum(sizes - 1)
        num_rows = heads + 2 * self._num_kv  # of heads, of one token
        by_head = rows * num_rows + torch.arange(num_rows)[:, None, None]
        queries = by_head[:heads].view(self._num_kv, per_kv, count, width).transpose(1, 2)
        inputs = torch.cat((queries.flatten(), by_head[heads:].flatten()))
        out = torch.arange(queries.numel()).view(queries.shape)  # [KH, C, G, n]
        out = out.permute(1, 3, 0, 2)[within < sizes]  # [tokens, KH, G]
        mask = torch.full((width, width), -torch.inf, dtype=self._dtype).triu_(1)
        return PromptGroup(inputs, out.flatten(), count, width, mask.repeat(per_kv, 1))


def group_prompts(widths: List[int]) -> list[tuple[int, int]]:
    """Cuts prompts, given what each is padded to by itself, from most to least, into [start, stop)
    groups.
    """
    groups, start, padding = [], 0, 0
    for index, width in enumerate(widths):
        pairs = widths[start] ** 2
        padding += pairs - width**2
        num_pairs = pairs * (index + 1 - start)
        if padding > PROMPT_GROUP_COST or (index > start and num_pairs > PROMPT_GROUP_PAIRS):
            groups.append((start, index))
            start, padding = index, 0
    if widths:
        groups.append((start, len(widths)))
    return groups


def joined(parts: list[Tensor], count: int) -> Tensor:
    """Puts the rows [n, KH, G, D] of each part one after the other, and then zeros, to
    [count, H * D].
    """
    computed = sum(map(len, parts))
    if computed < count:
        parts = [*parts, parts[0].new_zeros(count - computed, *parts[0].shape[1:])]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)


def attend_prefill(
    qkv: Tensor, prefill: Prefill, layer: int, num_kv: int, by_products: bool
) -> list[Tensor]:
    """Attends for all chunks of qkv [T, H + 2 * KH, D], whose keys and values have been written;
    returns [rows, KH, G, D] of one group or chunk after the other.
    """
    heads = qkv.shape[1] - 2 * num_kv
    parts = [attend_prompts(qkv, group, heads, num_kv, by_products) for group in prefill.prompts]
    for chunk in prefill.chunks:
        new = qkv[chunk.start : chunk.stop]
        if chunk.read is None:
            k, v = new[:, heads:].transpose(0, 1).split(num_kv)  # [KH, L, D]
        else:
            k, v = (x[:, 0] for x in chunk.read(layer))
        parts.append(attend_chunk(new[:, :heads], k, v, by_products))
    return parts


def attend_prompts(
    qkv: Tensor, group: PromptGroup, heads: int, num_kv: int, by_products: bool
) -> Tensor:
    """Attends for a group of prompts, from qkv [T, H + 2 * KH, D] to [tokens, KH, G, D]."""
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
    """Attends for the last n of L positions, from q [n, H, D], k and v [KH, L, D] to
    [n, KH, G, D].
    """
    if by_products and len(q) * k.shape[1] >= PRODUCTS_FROM_PAIRS:
        return _attend_blocks(q, k, v)
    return _attend_whole(q, k, v)


def _attend_whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attends by one call of the fused kernel. To it a key-value head is a batch of G query heads,
    which read it with stride 0.
    """
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
    """Attends by products of QUERIES_AT_ONCE queries at a time and all the keys before them."""
    (n, num_q, dim), (num_kv, length, _) = q.shape, k.shape
    k, v = k.transpose(1, 2).contiguous(), v.contiguous()
    q = (q * dim**-0.5).unflatten(1, (num_kv, -1)).transpose(0, 1)  # [KH, n, G, D]
    out = torch.empty(n, num_kv, num_q // num_kv, dim, dtype=q.dtype)
    future = torch.full((QUERIES_AT_ONCE, QUERIES_AT_ONCE), -torch.inf, dtype=q.dtype).triu_(1)[
        :, None
    ]
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
    """Attends for one token, written out, from q [H, D], keys and values [L, KH, D] to [H, D]."""
    group = q.shape[0] // keys.shape[1]
    heads = []
    for head in range(q.shape[0]):
        scores = keys[:, head // group] @ q[head] / q.shape[1] ** 0.5
        heads.append(torch.softmax(scores.float(), 0).to(values.dtype) @ values[:, head // group])
    return torch.stack(heads)
