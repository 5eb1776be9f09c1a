"""KV memory in pages: what its two layouts share, and what the rest of the engine asks of one.

Keys and values lie in pages of `page_size` tokens. Which page belongs to which sequence is decided
elsewhere (engine/deciding/pages.py): a sequence's page table is the list of its pages in order, and
the place of one token in the memory is its slot. Position p of a sequence is in slot

    pages[p // page_size] * page_size + p % page_size

To decode one token a sequence reads its whole context, and computes next to nothing with each
number that it reads: a decode lasts as long as memory takes to deliver keys and values. The pages
lie scattered, and there are two ways to read them:

* Gathered (gathered.py). One copy brings the pages of several sequences side by side, padded to the
  longest of them, and one kernel of torch's attends to all of the copy. What is read crosses memory
  three times (read, written, read again), padding too. On a GPU that is cheap beside launching
  many kernels, and as the kernels and their sizes are the same from one iteration to the next, an
  iteration can be captured as a CUDA graph, and launched at once (graphs.py). It asks for no
  compiler, so it also is how everything runs that is not compiled.
* In place (in_place.py). Compiled code loops over all pages that any sequence reads, and reads each
  where it lies, once, for all the query heads that share it: no copy, no padding. On a CPU, whose
  cores share one slow memory, this is the fastest way (`python -m tests.bench attention`). The
  number of pages grows from one iteration to the next, so no CUDA graph could be used twice.

Legend: T tokens of an iteration, H query heads, KH key-value heads, D head size, B sequences that
decode together, L positions of their contexts. Sizes are bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as List
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.model_config import ModelConfig
from engine.computing.attention.prompts import Prefill, ReadContext
from engine.computing.cpu import is_fused_kernel_slow
from engine.deciding.plan import Chunk
from engine.deciding.sequence import Sequence

# torch compiles other code for a size of 0 or 1 than for all others: what compiled code is to take
# in any size has at least this one.
LEAST = 2


def bytes_per_page(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Returns the bytes of one page over all layers."""
    slot = 2 * config.num_kv_heads * config.head_dim * dtype.itemsize
    return config.num_layers * page_size * slot


def pages_in(num_bytes: int, config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Returns how many pages fit in `num_bytes`. Raises CheckpointError if not even one does."""
    pages = num_bytes // bytes_per_page(config, page_size, dtype)
    if pages < 1:
        raise CheckpointError(
            f"{num_bytes} bytes of KV memory hold no page of {page_size} tokens"
            f" ({bytes_per_page(config, page_size, dtype)} bytes)"
        )
    return pages


class Decode(NamedTuple):
    """A decode is one row of the batch, which reads the whole context of its sequence."""

    sequence: Sequence
    position: int  # of the token that is computed; the context ends with it


class AttentionPlan(Protocol):
    """A plan is what attention needs to know of one iteration; it is the same for every layer."""

    @property
    def prefill(self) -> Prefill:
        """The chunks of prompts."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What `KvLayout.traced` is told of the iteration."""

    @property
    def has_rest(self) -> bool:
        """Whether anything is left to `attend` when `KvLayout.traced` has run."""

    def attend(self, qkv: Tensor, layer: int, decoded: Tensor | None = None) -> Tensor:
        """Writes the new keys and values of one layer and attends, from [T, H + 2 * KH, D] to
        [T, H * D]. `decoded` is what `KvLayout.traced` has computed of it already, if it ran.
        """


class KvLayout(ABC):
    """A layout holds the KV memory of one executor, and the attention that reads it.

    Beside the pages that sequences are given there are two more: the spare page, which padding
    reads and nobody writes, and the sink, which padding writes and nobody reads.
    """

    # Whether padding of the batch is computed as if it were decodes, and written: compiled code
    # treats all its rows alike.
    computes_padding: ClassVar[bool]

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        by_products: bool | None = None,
    ) -> None:
        """`by_products` says whether large products are written out, which by default they are
        where the fused kernel is the slower way.
        """
        self.num_layers = config.num_layers
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.dtype = dtype
        self.device = torch.device(device)
        if by_products is None:
            by_products = is_fused_kernel_slow(self.dtype, self.device)
        self.by_products = by_products

    @property
    def num_bytes(self) -> int:
        slot = 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        return self.num_layers * self.num_slots * slot

    @property
    def total_pages(self) -> int:
        """The number of pages, with the spare one and the sink."""
        return self.num_pages + 2

    @property
    def spare_page(self) -> int:
        return self.num_pages

    @property
    def sink(self) -> int:
        return self.num_pages + 1

    @property
    def num_slots(self) -> int:
        return self.total_pages * self.page_size

    def slots(self, pages: List[int], start: int, length: int) -> list[int]:
        """Returns the slots of positions [start, start + length) by this page table."""
        size = self.page_size
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

    @abstractmethod
    def clear(self, pages: List[int]) -> None:
        """Writes zeros into these pages, after all that has been launched before."""

    @abstractmethod
    def is_decode(self, chunk: Chunk) -> bool:
        """Whether this chunk of a prompt is computed as decodes are."""

    @abstractmethod
    def reader(self, pages: List[int], length: int) -> ReadContext:
        """Returns what reads the first `length` positions of a sequence with this page table."""

    @abstractmethod
    def plan(
        self, slots: Tensor, decodes: List[Decode], padding: int, prefill: Prefill
    ) -> AttentionPlan:
        """Plans an iteration whose new keys and values go to these slots, int64. Its first rows are
        the decodes, from the longest context to the shortest, with chunks that are decodes behind
        them; so many rows of padding follow, none unless `computes_padding`; and then `prefill`.
        """

    def padded_plan(self, slots: Tensor, lengths: Tensor, pages: Tensor) -> AttentionPlan:
        """Plans B decodes and nothing else, from tensors on the device: slots and context lengths
        [B], page tables of P pages each [B * P], all int64. A layout of which CUDA graphs are
        captured can do so; others raise NotImplementedError.
        """
        raise NotImplementedError(f"{type(self).__name__} is not for CUDA graphs")

    @staticmethod
    @abstractmethod
    def traced(
        qkv: Tensor, memory: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
    ) -> Tensor | None:
        """Computes the part of attention that belongs into compiled code, if any, given the batch's
        rows [T, H + 2 * KH, D], the `memory` of a layer, and the `inputs` of the plan.
        """

    @abstractmethod
    def memory(self, layer: int) -> tuple[Tensor, ...]:
        """Returns what `traced` reads and writes of a layer."""

    def _zeros(self, *shape: int) -> Tensor:
        """Allocates zeros, as padding is read with weight 0, and 0 times what is not a number is
        none either.
        """
        return torch.zeros(shape, dtype=self.dtype, device=self.device)
