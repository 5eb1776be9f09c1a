"""From a plan to the tensors of one iteration.

Everything is written into one list of integers, which crosses to the device as one tensor and is
cut into views there. Decodes are ordered by context length and, where their pages are gathered,
grouped, so that a short context is not padded to the longest of the batch, and so are prompts on a
CPU; `rows` brings the sampled rows back to the plan's order. Lengths are tokens.

On a CPU lengths are rounded up to few (`rounded_up`): for every shape that a product has for the
first time oneDNN compiles code, which takes longer than many a product and stays in memory
(`python -m tests.bench products`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as List
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.computing.attention import AttentionPlan, ChunkSpan, DecodeGroup, PromptGroup
from engine.computing.cpu import (
    COARSEST_ROWS,
    GROUP_COST,
    LONGEST_TOGETHER,
    MATRIX_UNITS_FROM,
    NO_ROWS,
    PROMPT_GROUP_COST,
    PROMPT_GROUP_PAIRS,
    WORTH_MATRIX_UNITS,
    exact_rows,
    fused_kernel_uses_matrix_units,
)
from engine.computing.kv import KvLanes, KvMemory, KvSlots
from engine.computing.lanes import LEAST, DecodeInputs, LanePlan
from engine.computing.sampled import Picked, decoded
from engine.deciding.plan import Chunk, Plan
from engine.deciding.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """The model's arguments for one iteration of T tokens, S of them sampled; all int64. Padding
    stands last, in T and in S.
    """

    tokens: Tensor  # [T]
    positions: Tensor  # [T]
    rows: Tensor  # [S], in the order of plan.sampling
    attention: AttentionPlan | LanePlan


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


def rounded_up(count: int, exact: int, coarsest: int = 1 << 30) -> int:
    """The next of few numbers: each up to `exact`, a power of two, then every second up to twice
    that, every fourth up to four times that and so on, until every `coarsest`-th.
    """
    step = max(1, min(coarsest, (1 << (count - 1).bit_length()) // exact))
    return -(-count // step) * step


class BatchBuilder(ABC):
    """Builds batches for one KV memory's page size, on one device. What attention needs to know is
    made by a subclass for each layout of the memory.
    """

    def __init__(
        self, kv: KvMemory, num_heads: int, least: int = 0, slow_rows: range = NO_ROWS
    ) -> None:
        """Fewer than `least` tokens, or sampled rows, are padded to as many, but a lone token; and
        a number in `slow_rows` to the first beyond (autotune.py).
        """
        self._page_size = kv.page_size
        self._spare_page = kv.spare_page  # what padding reads: nobody's
        self._sink = kv.sink * kv.page_size
        self._num_heads = num_heads
        self._num_kv = kv.num_kv_heads
        self._dtype = kv.dtype
        self._device = kv.device
        self._least = least
        self._slow_rows = slow_rows
        self._is_cpu = self._device.type == "cpu"
        self._exact = exact_rows(kv.dtype, kv.device)
        # Whether prompts not much shorter than MATRIX_UNITS_FROM are padded to it.
        self.pads_prompts = fused_kernel_uses_matrix_units(kv.dtype, kv.device)

    def build(self, plan: Plan, last: Picked | None = None) -> Batch:
        """`last` is what the launch before it picked, for decodes whose token is in flight."""
        decodes = sorted(plan.decodes, key=lambda s: -s.num_computed)
        tokens = [decoded(s) for s in decodes]
        reads = [(s, s.num_computed) for s in decodes]
        chunks = []
        for chunk in plan.chunks:
            if self._is_decode(chunk):
                tokens.append(chunk.sequence.token_at(chunk.start))
                reads.append((chunk.sequence, chunk.start))
            else:
                chunks.append(chunk)
        positions = [position for _, position in reads]
        slots = [slot for s, position in reads for slot in self._slots(s, position, 1)]
        ends = {sequence: row for row, (sequence, _) in enumerate(reads)}
        is_lone = len(reads) == 1 and not chunks
        padding = 0 if is_lone else self._decode_padding(len(reads), bool(chunks))
        tokens += [0] * padding
        positions += [0] * padding
        slots += [self._sink] * padding
        prompts = sorted(filter(self._is_grouped, chunks), key=lambda c: -c.length)
        others = [c for c in chunks if not self._is_grouped(c)]
        for chunk in (*prompts, *others):
            stop = chunk.start + chunk.length
            tokens += chunk.sequence.tokens(chunk.start, stop)
            positions += range(chunk.start, stop)
            slots += self._slots(chunk.sequence, chunk.start, chunk.length)
            ends[chunk.sequence] = len(tokens) - 1
        rows = [ends[sequence] for sequence in plan.sampling]
        if len(tokens) > 1:
            self._pad(tokens, positions, slots, rows)
        elif self._least:
            rows = [0]  # a row too many where nothing is sampled: compiled code has no fewer
        columns = self._to_device(tokens, positions, slots, rows)
        if last is not None:
            last.fill_in(columns[0], decodes)
        first = len(reads) + padding
        of_prompts = self._prompts([chunk.length for chunk in prompts], first)
        of_others = self._chunks(others, first + sum(chunk.length for chunk in prompts))
        attention = self._attention(columns[2], reads, padding, of_prompts, of_others)
        return Batch(columns[0], columns[1], columns[3], attention)

    def _is_decode(self, chunk: Chunk) -> bool:
        """Whether a chunk is computed as decodes are."""
        return False

    def _decode_padding(self, count: int, has_chunks: bool) -> int:
        """Rows beyond `count` decodes, of more than a lone one."""
        return 0

    @abstractmethod
    def _attention(
        self,
        slots: Tensor,
        reads: list[tuple[Sequence, int]],
        padding: int,
        prompts: tuple[PromptGroup, ...],
        chunks: tuple[ChunkSpan, ...],
    ) -> AttentionPlan | LanePlan:
        """`reads` are the decodes with their positions, `padding` the rows behind them."""

    @abstractmethod
    def _context(self, pages: list[int]) -> Tensor | int:
        """What reading the context of a chunk asks for."""

    def _is_grouped(self, chunk: Chunk) -> bool:
        return self._is_cpu and chunk.start == 0 and chunk.length <= LONGEST_TOGETHER

    def _pad(
        self, tokens: list[int], positions: list[int], slots: list[int], rows: list[int]
    ) -> None:
        count = self._padded(len(tokens))
        tokens += [0] * (count - len(tokens))
        positions += [0] * (count - len(positions))
        rows += [0] * (self._without_slow(len(rows)) - len(rows))

    def _padded(self, count: int) -> int:
        count = self._without_slow(count)
        return rounded_up(count, self._exact, COARSEST_ROWS) if self._is_cpu else count

    def _without_slow(self, count: int) -> int:
        count = max(self._least, count)
        return self._slow_rows.stop if count in self._slow_rows else count

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

    def _prompts(self, lengths: list[int], row: int) -> tuple[PromptGroup, ...]:
        """Of prompts from long to short, the first of which begins in that row."""
        groups = []
        widths = [self._prompt_width(length) for length in lengths]
        for start, stop in group_prompts(widths):
            groups.append(self._prompt_group(lengths[start:stop], widths[start], row))
            row += sum(lengths[start:stop])
        return tuple(groups)

    def _prompt_width(self, length: int) -> int:
        """What a prompt is padded to."""
        if self.pads_prompts and WORTH_MATRIX_UNITS <= length < MATRIX_UNITS_FROM:
            return MATRIX_UNITS_FROM
        return rounded_up(length, 16)

    def _prompt_group(self, lengths: list[int], width: int, row: int) -> PromptGroup:
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

    def _chunks(self, chunks: list[Chunk], row: int) -> tuple[ChunkSpan, ...]:
        spans = []
        for chunk in chunks:
            pages: Tensor | int | None = None
            if chunk.start:
                stop = chunk.start + chunk.length
                pages = self._context(chunk.sequence.pages[: -(-stop // self._page_size)])
            spans.append(ChunkSpan(row, row + chunk.length, chunk.start, pages))
            row += chunk.length
        return tuple(spans)


class SlotBatchBuilder(BatchBuilder):
    """For KvSlots: padding of the batch is neither written nor attended to."""

    def __init__(
        self, kv: KvSlots, num_heads: int, least: int = 0, slow_rows: range = NO_ROWS
    ) -> None:
        super().__init__(kv, num_heads, least, slow_rows)
        heads = torch.arange(2 * kv.num_kv_heads, device=self._device)
        self._first_slots = heads * kv.num_slots  # of each head, among the rows of LayerMemory
        self._first_pages = heads[:, None] * kv.num_rows

    def _attention(
        self,
        slots: Tensor,
        reads: list[tuple[Sequence, int]],
        padding: int,
        prompts: tuple[PromptGroup, ...],
        chunks: tuple[ChunkSpan, ...],
    ) -> AttentionPlan:
        rows = (slots[:, None] + self._first_slots).flatten()
        return AttentionPlan(rows, self._groups(reads), prompts, chunks)

    def _rows_of_pages(self, pages: Tensor) -> Tensor:
        """Of every head: [P] to [2 * KH * P]."""
        return (self._first_pages + pages).flatten()

    def _context(self, pages: list[int]) -> Tensor | int:
        """Of one sequence: its first slot where its pages are neighbours, else their rows."""
        first = pages[0]
        if pages == list(range(first, first + len(pages))):
            return first * self._page_size
        return self._rows_of_pages(*self._to_device(pages))

    def _groups(self, reads: list[tuple[Sequence, int]]) -> tuple[DecodeGroup, ...]:
        size = self._page_size
        decodes = [sequence for sequence, _ in reads]
        contexts = [position + 1 for _, position in reads]
        counts = [-(-context // size) for context in contexts]
        groups = []
        for start, stop in group_decodes(counts, GROUP_COST // size):
            width, batch = counts[start], stop - start
            if batch == 1:
                context = self._context(decodes[start].pages[:width])
                groups.append(DecodeGroup(start, stop, context, contexts[start], None))
                continue
            if self._is_cpu:
                width, batch = rounded_up(width, 16), rounded_up(batch, 16)
            table = [
                page
                for s, count in zip(decodes[start:stop], counts[start:stop], strict=True)
                for page in (*s.pages[:count], *[self._spare_page] * (width - count))
            ]
            padding = batch - (stop - start)
            table += [self._spare_page] * (width * padding)
            pages, lens = self._to_device(table, contexts[start:stop] + [1] * padding)
            outside = torch.arange(width * size, device=self._device) >= lens[:, None]
            mask = torch.zeros(outside.shape, dtype=self._dtype, device=self._device)
            mask = mask.masked_fill_(outside, -torch.inf)[None, :, None]
            rows = self._rows_of_pages(pages)
            groups.append(DecodeGroup(start, stop, rows, width * size, mask))
        return tuple(groups)


class LaneBatchBuilder(BatchBuilder):
    """For KvLanes: compiled code writes every row, padding into the sink, and decodes no fewer than
    `least`. A chunk of one token is a decode.
    """

    def _is_decode(self, chunk: Chunk) -> bool:
        return chunk.length == 1

    def _decode_padding(self, count: int, has_chunks: bool) -> int:
        return max(0, (self._least if has_chunks else self._padded(count)) - count)

    def _pad(
        self, tokens: list[int], positions: list[int], slots: list[int], rows: list[int]
    ) -> None:
        super()._pad(tokens, positions, slots, rows)
        slots += [self._sink] * (len(tokens) - len(slots))

    def _context(self, pages: list[int]) -> Tensor:
        return torch.tensor(pages)

    def _attention(
        self,
        slots: Tensor,
        reads: list[tuple[Sequence, int]],
        padding: int,
        prompts: tuple[PromptGroup, ...],
        chunks: tuple[ChunkSpan, ...],
    ) -> LanePlan:
        size = self._page_size
        owner: list[int] = []
        pages: list[int] = []
        lengths: list[int] = []
        firsts = []
        for row, (sequence, position) in enumerate(reads):
            firsts.append(len(owner))
            count = position // size + 1
            owner += [row] * count
            pages += sequence.pages[:count]
            lengths += [size] * (count - 1)
            lengths.append(position % size + 1)
        none = len(owner)  # the first of what pads them
        longest = max([LEAST, *(position // size + 1 for _, position in reads)])
        parts: list[int] = []
        for first, (_, position) in zip(firsts, reads, strict=True):
            count = position // size + 1
            parts += range(first, first + count)
            parts += [none] * (longest - count)
        parts += [none] * (padding * longest)
        extra = max(1, LEAST - none)
        columns = self._to_device(
            owner + [0] * extra, pages + [self._spare_page] * extra, lengths + [0] * extra, parts
        )
        of_parts = columns[3].view(-1, longest)
        inputs = DecodeInputs(
            slots // size, slots % size, columns[0], columns[1], columns[2], of_parts
        )
        return LanePlan(inputs, prompts, chunks)


def make_builder(
    kv: KvMemory, num_heads: int, least: int = 0, slow_rows: range = NO_ROWS
) -> BatchBuilder:
    """For the layout of this memory."""
    if isinstance(kv, KvLanes):
        return LaneBatchBuilder(kv, num_heads, least, slow_rows)
    assert isinstance(kv, KvSlots)
    return SlotBatchBuilder(kv, num_heads, least, slow_rows)
