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
from engine.deciding.plan import Chunk, Plan
from engine.deciding.sequence import Sequence

# A further group costs a few kernel calls in every layer: about as much as reading this many
# padded positions.
GROUP_COST = 2048


@dataclass(frozen=True, slots=True)
class Batch:
    """The model's arguments for one iteration of T tokens, S of them sampled; all int64."""

    tokens: Tensor  # [T]
    positions: Tensor  # [T]
    rows: Tensor  # [S], in the order of plan.sampling
    attention: AttentionPlan


def group_decodes(pages: List[int]) -> list[tuple[int, int]]:
    """Cuts decodes, given their page counts from most to least, into [start, stop) groups.

    A group's padding may cost at most as much as one more group would.
    """
    groups, start, padding = [], 0, 0
    for index, count in enumerate(pages):
        padding += pages[start] - count
        if padding > GROUP_COST // 16 and pages[start] > count:
            groups.append((start, index))
            start, padding = index, 0
    if pages:
        groups.append((start, len(pages)))
    return groups


def slots_of(pages: List[int], start: int, stop: int, page_size: int) -> list[int]:
    """The slots of positions [start, stop) of a sequence with this page table."""
    slots: list[int] = []
    while start < stop:
        index, offset = divmod(start, page_size)
        count = min(page_size - offset, stop - start)
        first = pages[index] * page_size + offset
        slots.extend(range(first, first + count))
        start += count
    return slots


class BatchBuilder:
    """Builds batches for one KV memory's page size, on one device, masks in one dtype."""

    def __init__(self, page_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._page_size = page_size
        self._dtype = dtype
        self._device = device

    def build(self, plan: Plan) -> Batch:
        order = sorted(range(len(plan.decodes)), key=lambda i: -plan.decodes[i].num_computed)
        decodes = [plan.decodes[i] for i in order]
        tokens = [s.token_at(s.num_computed) for s in decodes]
        positions = [s.num_computed for s in decodes]
        slots = [slots_of(s.pages, p, p + 1, self._page_size)[0] for s, p in self._at(decodes)]
        rows = [0] * len(order)
        for row, index in enumerate(order):
            rows[index] = row
        for chunk in plan.chunks:
            start, stop = chunk.start, chunk.start + chunk.length
            tokens += chunk.sequence.tokens(start, stop)
            positions += range(start, stop)
            slots += slots_of(chunk.sequence.pages, start, stop, self._page_size)
            if chunk.samples:
                rows.append(len(tokens) - 1)
        columns = self._to_device(tokens, positions, slots, rows)
        groups = self._groups(decodes)
        chunks = self._chunks(plan.chunks, len(decodes))
        return Batch(columns[0], columns[1], columns[3], AttentionPlan(columns[2], groups, chunks))

    @staticmethod
    def _at(decodes: list[Sequence]) -> list[tuple[Sequence, int]]:
        return [(s, s.num_computed) for s in decodes]

    def _to_device(self, *columns: list[int]) -> tuple[Tensor, ...]:
        flat = torch.tensor([i for column in columns for i in column]).to(self._device)
        return flat.split([len(column) for column in columns])

    def _groups(self, decodes: list[Sequence]) -> tuple[DecodeGroup, ...]:
        size = self._page_size
        contexts = [s.num_computed + 1 for s in decodes]
        counts = [-(-context // size) for context in contexts]
        groups = []
        for start, stop in group_decodes(counts):
            width = counts[start]
            table = [
                page
                for s, count in zip(decodes[start:stop], counts[start:stop], strict=True)
                for page in (*s.pages[:count], *[0] * (width - count))
            ]
            pages, lens = self._to_device(table, contexts[start:stop])
            inside = torch.arange(width * size, device=self._device) < lens[:, None]
            mask = torch.zeros(inside.shape, dtype=self._dtype, device=self._device)
            mask.masked_fill_(~inside, -torch.inf)
            groups.append(DecodeGroup(start, stop, pages, mask[:, None, None]))
        return tuple(groups)

    def _chunks(self, chunks: tuple[Chunk, ...], row: int) -> tuple[ChunkSpan, ...]:
        spans = []
        for chunk in chunks:
            pages, mask = None, None
            if chunk.start:
                stop = chunk.start + chunk.length
                (pages,) = self._to_device(chunk.sequence.pages[: -(-stop // self._page_size)])
                mask = torch.full((chunk.length, stop), -torch.inf, dtype=self._dtype)
                mask = mask.to(self._device).triu_(chunk.start + 1)
            spans.append(ChunkSpan(row, row + chunk.length, pages, mask))
            row += chunk.length
        return tuple(spans)
