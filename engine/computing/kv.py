"""Paged memory for keys and values, in one of two layouts. Which page belongs to whom is decided
elsewhere. Legend: KH key-value heads, D head size.

KvSlots is one tensor [layers, 2 * KH, slots, D]: the keys of each head, then the values of each, by
slot. A head's context, gathered page by page, is a matrix without gaps, which is what products ask
for; one copy writes keys and values, one gather reads both. Page p holds slots p * page_size to
(p + 1) * page_size - 1.

KvLanes is for compiled code on a CPU, which reads a context page by page where it lies (lanes.py):
keys [layers, pages, KH, D, page_size], in which what one score after another is summed from lies
side by side, and values [layers, pages, KH, page_size, D]. Sizes are bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as List
from typing import NamedTuple

import torch
from torch import Tensor

from engine.checkpoint.json_file import CheckpointError
from engine.checkpoint.model_config import ModelConfig
from engine.computing.transfer import to_device


def bytes_per_page(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    slot = 2 * config.num_kv_heads * config.head_dim * dtype.itemsize
    return config.num_layers * page_size * slot


def pages_in(num_bytes: int, config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Pages that fit in `num_bytes`. Raises CheckpointError when not even one does."""
    pages = num_bytes // bytes_per_page(config, page_size, dtype)
    if pages < 1:
        raise CheckpointError(
            f"{num_bytes} bytes of KV memory hold no page of {page_size} tokens"
            f" ({bytes_per_page(config, page_size, dtype)} bytes)"
        )
    return pages


class LayerMemory(NamedTuple):
    """One layer's keys and values: by head, by head and slot, by head and page. Row h * slots + s
    is slot s of head h of 2 * KH; pages likewise.
    """

    heads: Tensor  # [2 * KH, slots, D]
    slots: Tensor  # [2 * KH * slots, D]
    pages: Tensor  # [2 * KH * pages, page_size * D]


class KvMemory(ABC):
    """Two pages are there that no sequence is given: the spare one, which padding of a batch reads
    and nobody writes, and the sink, which is where padding is written and nobody reads.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_layers = config.num_layers
        self.num_pages = num_pages
        self.page_size = page_size
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        self.dtype = dtype
        self.device = torch.device(device)

    @property
    def num_bytes(self) -> int:
        slot = 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        return self.num_layers * self.num_slots * slot

    @property
    def num_rows(self) -> int:
        """Pages, spare one and sink too."""
        return self.num_pages + 2

    @property
    def spare_page(self) -> int:
        return self.num_pages

    @property
    def sink(self) -> int:
        return self.num_pages + 1

    @property
    def num_slots(self) -> int:
        return self.num_rows * self.page_size

    @abstractmethod
    def clear(self, pages: List[int]) -> None:
        """Zeros in these pages, behind what has been launched."""

    def _zeros(self, *shape: int) -> Tensor:
        """Not empty: padded positions are read with weight 0, and 0 * nan is nan."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class KvSlots(KvMemory):
    """`slots` is the memory [layers, 2 * KH, slots, D]."""

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, num_pages, page_size, dtype, device)
        self.slots = self._zeros(
            self.num_layers, 2 * self.num_kv_heads, self.num_slots, self.head_dim
        )
        rows = self.num_layers * 2 * self.num_kv_heads  # [rows, pages, page_size * D]
        self._by_page = self.slots.view(rows, self.num_rows, page_size * self.head_dim)

    def clear(self, pages: List[int]) -> None:
        if self.slots.is_cuda:
            self._by_page.index_fill_(1, to_device(pages, self.slots.device), 0.0)
            return
        for page in pages:  # on a CPU index_fill_ takes ten times as long
            self._by_page[:, page].zero_()

    def layers(self) -> list[LayerMemory]:
        dim = self.slots.shape[-1]
        slots = self.slots.view(len(self.slots), -1, dim)
        pages = self.slots.view(len(self.slots), -1, self.page_size * dim)
        return [LayerMemory(*views) for views in zip(self.slots, slots, pages, strict=True)]


class KvLanes(KvMemory):
    """`keys` [layers, pages, KH, D, page_size], `values` [layers, pages, KH, page_size, D]."""

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, num_pages, page_size, dtype, device)
        page = (self.num_layers, self.num_rows, self.num_kv_heads)
        self.keys = self._zeros(*page, self.head_dim, page_size)
        self.values = self._zeros(*page, page_size, self.head_dim)

    def clear(self, pages: List[int]) -> None:
        for page in pages:
            self.keys[:, page].zero_()
            self.values[:, page].zero_()
