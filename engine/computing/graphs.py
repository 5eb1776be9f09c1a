"""Decode iterations captured as CUDA graphs: one launch instead of some thousand.

A graph computes one shape, so there is one for each bucket of sequences and pages per sequence, and
a batch is padded to the next. Padding decodes token 0 into the sink of the memory. What a replay
reads lies in one tensor of integers per bucket, filled by one asynchronous copy and, where the
tokens to decode are in flight, from what the launch before sampled.

All graphs take their memory from one pool: none runs while another does, and nothing of one is
needed in the next but the logits, which are copied to memory outside the pool. So the pool is about
as large as the largest graph needs, which is captured first; and that is bounded, as a batch that
gathers more keeps the device busy for longer than its launches take. (https://docs.pytorch.org/
docs/stable/notes/cuda.html, "Sharing memory across captures"; not yet run on a GPU.)

Legend: B sequences of the bucket, P pages of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from engine.computing.attention.layout import KvLayout
from engine.computing.batch import Batch
from engine.computing.sampled import SampledTokens, token_to_decode
from engine.deciding.sequence import Sequence

# A batch is worth a graph as long as it then reads at most so many times as many pages.
MAX_PADDING = 2.0
# Of the memory that is free when graphs are captured, what one layer may gather in the largest: its
# pool is then at most a quarter, for what else is computed beside the gathered needs less.
GATHER_SHARE = 1 / 8
FEWEST_PAGES = 8

Step = Callable[[Batch], Tensor]
Replay = Callable[[], object]
Capture = Callable[[Callable[[], object]], Replay]


class Bucket(NamedTuple):
    """A shape that is captured."""

    sequences: int
    pages: int  # of each


class Captured(NamedTuple):
    """A graph, and where it finds its inputs."""

    inputs: Tensor  # [4 * B + B * P] int64: tokens, positions, slots, lengths, pages
    replay: Replay  # to the first B rows of the logits


def sizes_to(largest: int) -> list[int]:
    """Returns what a number of sequences is padded to: the powers of two, from 8 on with one size
    between each two of them, up to `largest`, which is one of them in any case.
    """
    sizes, power = [], 1
    while power < largest:
        sizes += [power] if power < 8 else [power, 3 * power // 2]
        power *= 2
    return [*(size for size in sizes if size < largest), largest]


def gather_limit(device: torch.device) -> int:
    """Returns the bytes that one layer may gather in a graph on this GPU."""
    return int(torch.cuda.mem_get_info(device)[0] * GATHER_SHARE)


class CudaCapture:
    """Captures all graphs with one pool and on one stream, which no other work uses: blocks of
    memory are reused on the stream that they were allocated on.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, compute: Callable[[], object]) -> Replay:
        """Captures what `compute` launches. It is run on the stream twice before, to warm up, as
        the documentation of torch.cuda.graph asks.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            compute()
        return graph.replay


class DecodeGraphs:
    """The graphs of one executor.

    `step` computes the logits of a batch. `capture` runs a computation, and makes a replay of it
    that reads its inputs from the same memory each time.
    """

    def __init__(self, step: Step, kv: KvLayout, capture: Capture) -> None:
        self._step = step
        self._kv = kv
        self._capture = capture
        self._captured: dict[Bucket, Captured] = {}
        self._sizes: list[int] = []
        self._logits: Tensor | None = None  # [most sequences, V], of the newest replay

    def capture(self, max_batch_size: int, context_len: int, gather_bytes: int) -> list[Bucket]:
        """Captures all buckets of which a layer gathers at most so many bytes, and returns them in
        that order. The largest is the first, so that the pool grows once.
        """
        self._sizes = sizes_to(max_batch_size)
        buckets = self._buckets(context_len)
        for bucket in sorted(buckets, key=lambda b: (b.sequences * b.pages, b), reverse=True):
            if self._gathered(bucket) <= gather_bytes:
                self._captured[bucket] = self._make(bucket)
        return list(self._captured)

    def _gathered(self, bucket: Bucket) -> int:
        """Returns the bytes of keys and values that one layer gathers."""
        kv = self._kv
        per_page = 2 * kv.num_kv_heads * kv.page_size * kv.head_dim * kv.dtype.itemsize
        return bucket.sequences * bucket.pages * per_page

    def _buckets(self, context_len: int) -> Iterator[Bucket]:
        """Lists all shapes that a batch of this memory may be padded to, given MAX_PADDING."""
        most = min(-(-context_len // self._kv.page_size), self._kv.num_pages)
        pages = FEWEST_PAGES
        while pages < 2 * most:
            for size in self._sizes:
                if size * pages <= MAX_PADDING * self._kv.num_pages:
                    yield Bucket(size, pages)
            pages *= 2

    def _make(self, bucket: Bucket) -> Captured:
        """Captures the graph of a bucket."""
        size = 4 * bucket.sequences + bucket.sequences * bucket.pages
        inputs = torch.zeros(size, dtype=torch.int64, device=self._kv.device)
        inputs.copy_(torch.tensor(self._inputs([], bucket)))

        def compute() -> None:
            logits = self._compute(inputs, bucket)
            if self._logits is None:  # while warming up: not from the graphs' pool
                self._logits = logits.new_empty(self._sizes[-1], logits.shape[1])
            self._logits[: bucket.sequences].copy_(logits)

        return Captured(inputs, self._capture(compute))

    def _compute(self, inputs: Tensor, bucket: Bucket) -> Tensor:
        """Computes what the graph does: inputs as in `Captured.inputs`, to logits [B, V]."""
        count = bucket.sequences
        tokens, positions, slots, lengths, pages = inputs.split(
            [count] * 4 + [count * bucket.pages]
        )
        plan = self._kv.padded_plan(slots, lengths, pages)
        sampled = torch.arange(count, device=inputs.device)
        return self._step(Batch(tokens, positions, sampled, plan))

    def run(
        self, decodes: tuple[Sequence, ...], last: SampledTokens | None = None
    ) -> Tensor | None:
        """Computes logits [len(decodes), V] in this order, valid until the next run; None where no
        graph fits the batch. `last` is what the launch before it sampled.
        """
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
        captured.replay()
        assert self._logits is not None
        return self._logits[: len(decodes)]

    def _bucket(self, decodes: tuple[Sequence, ...]) -> Bucket | None:
        """Returns the bucket that this batch is padded to, if that is worth it."""
        counts = [s.num_computed // self._kv.page_size + 1 for s in decodes]
        size = next((size for size in self._sizes if size >= len(decodes)), None)
        if size is None:
            return None
        pages = max(FEWEST_PAGES, 1 << (max(counts) - 1).bit_length())
        worth = MAX_PADDING * max(sum(counts), size * FEWEST_PAGES)
        return Bucket(size, pages) if size * pages <= worth else None

    def _inputs(self, decodes: tuple[Sequence, ...] | list[Sequence], bucket: Bucket) -> list[int]:
        """Lists the inputs of the bucket's graph for these decodes, in order."""
        page_size, spare = self._kv.page_size, self._kv.spare_page
        padding = bucket.sequences - len(decodes)
        positions = [s.num_computed for s in decodes]
        tables = [s.pages[: n // page_size + 1] for s, n in zip(decodes, positions, strict=True)]
        return [
            *map(token_to_decode, decodes),
            *[0] * padding,
            *positions,
            *[0] * padding,
            *(t[-1] * page_size + n % page_size for t, n in zip(tables, positions, strict=True)),
            *[self._kv.sink * page_size] * padding,
            *(n + 1 for n in positions),
            *[1] * padding,
            *(page for t in tables for page in (*t, *[spare] * (bucket.pages - len(t)))),
            *[spare] * (padding * bucket.pages),
        ]
