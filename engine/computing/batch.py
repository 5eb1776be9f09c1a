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

    def __init__(self, page_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._page_size = page_size
        self._dtype = dtype
        self._device = device

    def build(self, plan: Plan) -> Batch:
        order = sorted(range(len(plan.decodes)), key=lambda i: -plan.decodes[i].num_computed)
        decodes = [plan.decodes[i] for i in order]
        positions = [s.num_computed for s in decodes]
        tokens = [s.token_at(s.num_computed) for s in decodes]
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
        columns = self._to_device(tokens, positions, slots, rows)
        groups = self._groups(decodes)
        chunks = self._chunks(plan.chunks, len(decodes))
        return Batch(columns[0], columns[1], columns[3], AttentionPlan(columns[2], groups, chunks))

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
        flat = torch.tensor([i for column in columns for i in column]).to(self._device)
        return flat.split([len(column) for column in columns])

    def _groups(self, decodes: list[Sequence]) -> tuple[DecodeGroup, ...]:
        size = self._page_size
        contexts = [s.num_computed + 1 for s in decodes]
        counts = [-(-context // size) for context in contexts]
        groups = []
        for start, stop in group_decodes(counts, GROUP_COST // size):
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
