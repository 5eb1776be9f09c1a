"""Decode iterations captured as CUDA graphs: one launch instead of some thousand.

A graph computes one shape, so there is one for each bucket of sequences and pages per sequence, and
a batch is padded to the next. Padding decodes token 0 into the spare page of the memory. What a
replay reads lies in one tensor of integers per bucket, filled by one asynchronous copy and, where
the tokens to decode are in flight, from what the launch before picked.

Legend: B sequences of the bucket, P pages of each, L = P * page_size positions, KH key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from engine.computing.attention import AttentionPlan, DecodeGroup
from engine.computing.batch import Batch
from engine.computing.kv import KvMemory
from engine.computing.picked import Picked, decoded
from engine.deciding.sequence import Sequence

# A batch is worth a graph as long as at most so much of what it reads is padding.
MAX_PADDING = 2.0
FEWEST_PAGES = 8

Step = Callable[[Batch], Tensor]
Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]


class Bucket(NamedTuple):
    """A shape that is captured."""

    sequences: int
    pages: int  # of each


class Captured(NamedTuple):
    inputs: Tensor  # [4 * B + B * P] int64: tokens, positions, slots, lengths, pages
    replay: Replay  # to logits [B, V], valid until the next one


def sizes_to(largest: int) -> list[int]:
    """Powers of two, from 8 on with one between each two: what a number is padded to."""
    sizes, power = [], 1
    while power < largest:
        sizes += [power] if power < 8 else [power, 3 * power // 2]
        power *= 2
    return [*(size for size in sizes if size < largest), largest]


def capture_on_cuda(compute: Callable[[], Tensor]) -> Replay:
    """Warms up on a stream of its own, as the documentation of torch.cuda.graph asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compute()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


class DecodeGraphs:
    """The graphs of one executor. `capture` makes a replay of a computation that reads its inputs
    from the same memory each time.
    """

    def __init__(self, step: Step, kv: KvMemory, dtype: torch.dtype, capture: Capture) -> None:
        self._step = step
        self._kv = kv
        self._dtype = dtype
        self._capture = capture
        self._captured: dict[Bucket, Captured] = {}
        self._sizes: list[int] = []
        heads = torch.arange(2 * kv.num_kv_heads, device=kv.slots.device)
        self._first_slots = heads * kv.num_slots
        self._first_pages = heads[:, None] * kv.num_rows

    def capture(self, max_batch_size: int, context_len: int) -> None:
        """All buckets, the largest first, so that the smaller ones reuse its memory."""
        self._sizes = sizes_to(max_batch_size)
        for bucket in sorted(self._buckets(context_len), reverse=True):
            self._captured[bucket] = self._make(bucket)

    def _buckets(self, context_len: int) -> Iterator[Bucket]:
        most = min(-(-context_len // self._kv.page_size), self._kv.num_pages)
        pages = FEWEST_PAGES
        while pages < 2 * most:
            for size in self._sizes:
                if size * pages <= MAX_PADDING * self._kv.num_pages:
                    yield Bucket(size, pages)
            pages *= 2

    def _make(self, bucket: Bucket) -> Captured:
        size = 4 * bucket.sequences + bucket.sequences * bucket.pages
        inputs = torch.zeros(size, dtype=torch.int64, device=self._kv.slots.device)
        inputs.copy_(torch.tensor(self._inputs([], bucket)))
        return Captured(inputs, self._capture(lambda: self._compute(inputs, bucket)))

    def _compute(self, inputs: Tensor, bucket: Bucket) -> Tensor:
        count = bucket.sequences
        tokens, positions, slots, lengths, pages = inputs.split(
            [count] * 4 + [count * bucket.pages]
        )
        reach = torch.arange(bucket.pages * self._kv.page_size, device=inputs.device)
        mask = torch.zeros(count, len(reach), dtype=self._dtype, device=inputs.device)
        mask = mask.masked_fill_(reach >= lengths[:, None], -torch.inf)[None, :, None]
        rows = (self._first_pages + pages).flatten()
        group = DecodeGroup(0, count, rows, len(reach), mask)
        plan = AttentionPlan((slots[:, None] + self._first_slots).flatten(), (group,), (), ())
        sampled = torch.arange(count, device=inputs.device)
        return self._step(Batch(tokens, positions, sampled, plan))

    def run(self, decodes: tuple[Sequence, ...], last: Picked | None = None) -> Tensor | None:
        """Logits [len(decodes), V] in this order, valid until the next run; None where no graph
        fits the batch. `last` is what the launch before it picked."""
        bucket = self._bucket(decodes)
        if bucket not in self._captured:
            return None
        captured = self._captured[bucket]
        inputs = torch.tensor(self._inputs(decodes, bucket))
        if captured.inputs.is_cuda:
            inputs = inputs.pin_memory()
        captured.inputs.copy_(inputs, non_blocking=True)
        if last is not None:
            last.fill_in(captured.inputs, decodes)
        return captured.replay()[: len(decodes)]

    def _bucket(self, decodes: tuple[Sequence, ...]) -> Bucket | None:
        counts = [s.num_computed // self._kv.page_size + 1 for s in decodes]
        size = next((size for size in self._sizes if size >= len(decodes)), None)
        if size is None:
            return None
        pages = max(FEWEST_PAGES, 1 << (max(counts) - 1).bit_length())
        worth = MAX_PADDING * max(sum(counts), size * FEWEST_PAGES)
        return Bucket(size, pages) if size * pages <= worth else None

    def _inputs(self, decodes: tuple[Sequence, ...] | list[Sequence], bucket: Bucket) -> list[int]:
        page_size, spare = self._kv.page_size, self._kv.spare_page
        padding = bucket.sequences - len(decodes)
        positions = [s.num_computed for s in decodes]
        tables = [s.pages[: n // page_size + 1] for s, n in zip(decodes, positions, strict=True)]
        return [
            *map(decoded, decodes),
            *[0] * padding,
            *positions,
            *[0] * padding,
            *(t[-1] * page_size + n % page_size for t, n in zip(tables, positions, strict=True)),
            *[spare * page_size] * padding,
            *(n + 1 for n in positions),
            *[1] * padding,
            *(page for t in tables for page in (*t, *[spare] * (bucket.pages - len(t)))),
            *[spare] * (padding * bucket.pages),
        ]
