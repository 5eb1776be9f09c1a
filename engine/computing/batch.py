"""From a plan to the tensors of one iteration.

Everything is written into one list of integers, which crosses to the device as one tensor and is
cut into views there. Decodes are ordered by context length and grouped, so that a short context
is not padded to the longest of the batch; `rows` brings the sampled rows back to the plan's order.
Lengths are tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.computing.attention import AttentionPlan, ChunkSpan, DecodeGroup
from engine.computing.kv import KvMemory
from engine.computing.picked import Picked, decoded
from engine.deciding.plan import Chunk, Plan
from engine.deciding.sequence import Sequence

# A further group costs a few kernel calls in every layer: about as much as reading this many
# padded positions.
GROUP_COST = 2048


@dataclass(frozen=True, slots=True)
class Batch:
    """The model's arguments for one iteration of T tokens, S of them sampled; all int64. Padding
    stands last, in T and in S.
    """

    tokens: Tensor  # [T]
    positions: Tensor  # [T]
    rows: Tensor  # [S], in the order of plan.sampling
    attention: AttentionPlan


def group_decodes(counts: List[int], spare_pages: int) -> list[tuple[int, int]]:
    """Cuts decodes, given their page counts from most to least, into [start, stop) groups.

    A group has at most `spare_pages` pages of padding.
    """
    groups, start, padding = [], 0, 0
    for index, count in enumerate(counts):
        padding += counts[start] - count
        if padding > spare_pages:
            groups.append((start, index))
            start, padding = index, 0
    if counts:
        groups.append((start, len(counts)))
    return groups


class BatchBuilder:
    """Builds batches for one KV memory's page size, on one device, masks in one dtype."""

    def __init__(self, kv: KvMemory, dtype: torch.dtype, least: int = 0) -> None:
        """Fewer than `least` tokens, or sampled rows, are padded to as many; a lone decode is
        not.
        """
        self._page_size = kv.page_size
        self._dtype = dtype
        self._device = kv.slots.device
        self._least = least
        heads = torch.arange(2 * kv.num_kv_heads, device=self._device)
        self._first_slots = heads * kv.num_slots  # of each head, among the rows of LayerMemory
        self._first_pages = heads[:, None] * kv.num_rows

    def build(self, plan: Plan, last: Picked | None = None) -> Batch:
        """`last` is what the launch before it picked, for decodes whose token is in flight."""
        order = sorted(range(len(plan.decodes)), key=lambda i: -plan.decodes[i].num_computed)
        decodes = [plan.decodes[i] for i in order]
        positions = [s.num_computed for s in decodes]
        tokens = [decoded(s) for s in decodes]
        slots = [slot for s in decodes for slot in self._slots(s, s.num_computed, 1)]
        rows = [0] * len(order)
        for row, index in enumerate(order):
            rows[index] = row
        for chunk in plan.chunks:
            stop = chunk.start + chunk.length
            tokens += chunk.sequence.tokens(chunk.start, stop)
            positions += range(chunk.start, stop)
            slots += self._slots(chunk.sequence, chunk.start, chunk.length)
            if chunk.samples:
                rows.append(len(tokens) - 1)
        if not len(tokens) == len(rows) == 1:
            for column in (tokens, positions, rows):
                column += [0] * (self._least - len(column))
        columns = self._to_device(tokens, positions, slots, rows)
        if last is not None:
            last.fill_in(columns[0], decodes)
        groups = self._groups(decodes)
        chunks = self._chunks(plan.chunks, len(decodes))
        rows_of_slots = (columns[2][:, None] + self._first_slots).flatten()
        plan_of_attention = AttentionPlan(rows_of_slots, groups, chunks)
        return Batch(columns[0], columns[1], columns[3], plan_of_attention)

    def _slots(self, sequence: Sequence, start: int, length: int) -> list[int]:
        """Where the keys and values of positions [start, start + length) go."""
        size, pages = self._page_size, sequence.pages
        if length == 1:
            return [pages[start // size] * size + start % size]
        stop = start + length
        return [
            slot
            for index in range(start // size, -(-stop // size))
            for slot in range(
                pages[index] * size + max(0, start - index * size),
                pages[index] * size + min(size, stop - index * size),
            )
        ]

    def _to_device(self, *columns: list[int]) -> tuple[Tensor, ...]:
        flat = torch.tensor([i for column in columns for i in column])
        if self._device.type == "cuda":
            flat = flat.pin_memory().to(self._device, non_blocking=True)
        return flat.split([len(column) for column in columns])

    def _rows_of_pages(self, pages: Tensor) -> Tensor:
        """Of every head: [P] to [2 * KH * P]."""
        return (self._first_pages + pages).flatten()

    def _context(self, pages: list[int]) -> Tensor | int:
        """Of one sequence: its first slot where its pages are neighbours, else their rows."""
        first = pages[0]
        if pages == list(range(first, first + len(pages))):
            return first * self._page_size
        return self._rows_of_pages(*self._to_device(pages))

    def _groups(self, decodes: list[Sequence]) -> tuple[DecodeGroup, ...]:
        size = self._page_size
        contexts = [s.num_computed + 1 for s in decodes]
        counts = [-(-context // size) for context in contexts]
        groups = []
        for start, stop in group_decodes(counts, GROUP_COST // size):
            width = counts[start]
            if stop - start == 1:
                context = self._context(decodes[start].pages[:width])
                groups.append(DecodeGroup(start, stop, context, contexts[start], None))
                continue
            table = [
                page
                for s, count in zip(decodes[start:stop], counts[start:stop], strict=True)
                for page in (*s.pages[:count], *[0] * (width - count))
            ]
            pages, lens = self._to_device(table, contexts[start:stop])
            outside = torch.arange(width * size, device=self._device) >= lens[:, None]
            mask = torch.zeros(outside.shape, dtype=self._dtype, device=self._device)
            mask = mask.masked_fill_(outside, -torch.inf)[None, :, None]
            rows = self._rows_of_pages(pages)
            groups.append(DecodeGroup(start, stop, rows, width * size, mask))
        return tuple(groups)

    def _chunks(self, chunks: tuple[Chunk, ...], row: int) -> tuple[ChunkSpan, ...]:
        spans = []
        for chunk in chunks:
            pages: Tensor | int | None = None
            if chunk.start:
                stop = chunk.start + chunk.length
                pages = self._context(chunk.sequence.pages[: -(-stop // self._page_size)])
            spans.append(ChunkSpan(row, row + chunk.length, chunk.start, pages))
            row += chunk.length
        return tuple(spans)
