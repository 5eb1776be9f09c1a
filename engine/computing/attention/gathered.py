"""The layout of KV memory whose contexts are gathered: eager code, and CUDA.

The memory is one tensor [layers, 2 * KH, slots, D]: the keys of each head, then the values of each,
by slot. Page p holds slots p * page_size to (p + 1) * page_size - 1. So a head's context, gathered
page by page, is a matrix without gaps, which is what products ask for; one copy writes keys and
values, and one gather reads both.

Decodes are cut into groups of similar context length. A group gathers its pages once per layer,
padded to its longest context; only a sequence by itself whose pages are neighbours is read where it
lies. The G query heads that share a key-value head become G rows of one product, so that keys and
values are never expanded.

Padding rows of the batch are neither written nor attended to. None of this is compiled: it is
called between what is (compiled.py), as its shapes follow the batch.

Legend: T tokens of an iteration, H query heads, KH key-value heads, G = H / KH, D head size, B
sequences of a group, P pages of each, L context length (P * page_size if gathered).
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.computing.attention.layout import Decode, KvLayout
from engine.computing.attention.prompts import (
    NO_PREFILL,
    Prefill,
    ReadContext,
    attend_prefill,
    joined,
)
from engine.computing.cpu import GROUP_COST, PRODUCTS_FROM_POSITIONS, rounded_up
from engine.computing.transfer import columns_to_device, to_device
from engine.deciding.plan import Chunk


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """A group is rows [start, stop) of the batch, one token for each of B sequences."""

    start: int
    stop: int
    read: ReadContext
    # [1, B, 1, L] float: 0 where there is context, else -inf; None if B is 1. B counts padding too,
    # which computes something of whatever rows follow.
    mask: Tensor | None

    @property
    def size(self) -> int:
        return 1 if self.mask is None else self.mask.shape[1]


class LayerMemory(NamedTuple):
    """One layer's keys and values are seen in three views. Row h * slots + s of `slots` is slot s
    of head h of 2 * KH; rows of `pages` likewise.
    """

    heads: Tensor  # [2 * KH, slots, D]
    slots: Tensor  # [2 * KH * slots, D]
    pages: Tensor  # [2 * KH * pages, page_size * D]


class GatheredKv(KvLayout):
    """KV memory, `keys_and_values` [layers, 2 * KH, slots, D], whose contexts are gathered."""

    computes_padding = False

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        by_products: bool | None = None,
    ) -> None:
        super().__init__(config, num_pages, page_size, dtype, device, by_products)
        num_heads, dim = 2 * self.num_kv_heads, self.head_dim
        content = self._zeros(self.num_layers, num_heads, self.num_slots, dim)
        self.keys_and_values = content
        self._by_page = content.view(self.num_layers * num_heads, self.total_pages, page_size * dim)
        slots = content.view(self.num_layers, -1, dim)
        pages = content.view(self.num_layers, -1, page_size * dim)
        self.layers = [LayerMemory(*views) for views in zip(content, slots, pages, strict=True)]
        heads = torch.arange(num_heads, device=self.device)
        self._first_slots = heads * self.num_slots  # of each head, among the rows of LayerMemory
        self._first_pages = heads[:, None] * self.total_pages
        self._gathered = content.new_empty(0)  # where a CPU gathers

    def clear(self, pages: List[int]) -> None:
        if self.device.type == "cuda":
            self._by_page.index_fill_(1, to_device(pages, self.device), 0.0)
            return
        for page in pages:  # on a CPU index_fill_ takes ten times as long
            self._by_page[:, page].zero_()

    @staticmethod
    def traced(qkv: Tensor, memory: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
        """Computes nothing: all of attention is called between what is compiled."""

    def memory(self, layer: int) -> tuple[Tensor, ...]:
        return ()

    def is_decode(self, chunk: Chunk) -> bool:
        return False

    def plan(
        self, slots: Tensor, decodes: List[Decode], padding: int, prefill: Prefill
    ) -> GatheredPlan:
        assert not padding
        return GatheredPlan(self, self._rows_of_slots(slots), self._groups(decodes), prefill)

    def padded_plan(self, slots: Tensor, lengths: Tensor, pages: Tensor) -> GatheredPlan:
        group = self._padded_group(0, len(lengths), lengths, pages)
        return GatheredPlan(self, self._rows_of_slots(slots), (group,), NO_PREFILL)

    def reader(self, pages: List[int], length: int) -> ReadContext:
        first, table = pages[0], list(pages[: -(-length // self.page_size)])
        if table == list(range(first, first + len(table))):
            return partial(self._read_neighbours, first * self.page_size, length)
        rows = self._rows_of_pages(to_device(table, self.device))
        return partial(self._gather, rows, 1, length)

    def _groups(self, decodes: List[Decode]) -> tuple[DecodeGroup, ...]:
        size, is_cpu = self.page_size, self.device.type == "cpu"
        contexts = [position + 1 for _, position in decodes]
        counts = [-(-context // size) for context in contexts]
        groups = []
        for start, stop in group_decodes(counts, GROUP_COST // size):
            width, batch = counts[start], stop - start
            if batch == 1:
                read = self.reader(decodes[start].sequence.pages, contexts[start])
                groups.append(DecodeGroup(start, stop, read, None))
                continue
            if is_cpu:
                width, batch = rounded_up(width, 16), rounded_up(batch, 16)
            table = [
                page
                for (sequence, _), count in zip(
                    decodes[start:stop], counts[start:stop], strict=True
                )
                for page in (*sequence.pages[:count], *[self.spare_page] * (width - count))
            ]
            padding = batch - (stop - start)
            table += [self.spare_page] * (width * padding)
            columns = (contexts[start:stop] + [1] * padding, table)
            groups.append(self._padded_group(start, stop, *columns_to_device(columns, self.device)))
        return tuple(groups)

    def _padded_group(self, start: int, stop: int, lengths: Tensor, pages: Tensor) -> DecodeGroup:
        """Plans a group of B sequences, padding too, by context lengths [B] and page tables
        [B * P].
        """
        width = len(pages) // len(lengths) * self.page_size
        outside = torch.arange(width, device=self.device) >= lengths[:, None]
        mask = torch.zeros(outside.shape, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(outside, -torch.inf)[None, :, None]
        read = partial(self._gather, self._rows_of_pages(pages), len(lengths), width)
        return DecodeGroup(start, stop, read, mask)

    def _rows_of_slots(self, slots: Tensor) -> Tensor:
        """Returns the rows of LayerMemory.slots of every head, from [T] to [T * 2 * KH]."""
        return (slots[:, None] + self._first_slots).flatten()

    def _rows_of_pages(self, pages: Tensor) -> Tensor:
        """Returns the rows of LayerMemory.pages of every head, from [P] to [2 * KH * P]."""
        return (self._first_pages + pages).flatten()

    def _read_neighbours(self, first: int, length: int, layer: int) -> tuple[Tensor, ...]:
        """Returns keys and values [KH, 1, L, D] from this slot on, which are not copied."""
        heads = self.layers[layer].heads[:, None, first : first + length]
        return heads.split(self.num_kv_heads)

    def _gather(self, rows: Tensor, batch: int, length: int, layer: int) -> tuple[Tensor, ...]:
        """Copies keys and values [KH, B, L, D] of these rows of pages; the copy is valid until the
        next call.
        """
        pages = self.layers[layer].pages
        if pages.device.type == "cpu":
            out = self._scratch(len(rows), pages.shape[1])
            torch.index_select(pages, 0, rows, out=out)
        else:  # its allocator is cheap, and a graph keeps addresses
            out = pages.index_select(0, rows)
        out = out.view(2, self.num_kv_heads, batch, -1, self.head_dim)
        return out[:, :, :, :length].unbind()

    def _scratch(self, count: int, width: int) -> Tensor:
        """Returns memory [count, width] that is used again, so that it stays in the cache."""
        if self._gathered.numel() < count * width:
            self._gathered = self._gathered.new_empty(count * width)
        return self._gathered[: count * width].view(-1, width)


@dataclass(frozen=True, slots=True)
class GatheredPlan:
    """Implements AttentionPlan. Rows behind the last chunk are padding."""

    kv: GatheredKv
    slots: Tensor  # [T * 2 * KH] int64, rows of LayerMemory.slots: where keys and values go
    groups: tuple[DecodeGroup, ...]
    prefill: Prefill

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return ()

    @property
    def has_rest(self) -> bool:
        return True

    def attend(self, qkv: Tensor, layer: int, decoded: Tensor | None = None) -> Tensor:
        kv, num_kv = self.kv, self.kv.num_kv_heads
        rows, heads = len(self.slots) // (2 * num_kv), qkv.shape[1] - 2 * num_kv
        new = qkv[:rows, heads:].reshape(-1, qkv.shape[2])
        kv.layers[layer].slots.index_copy_(0, self.slots, new)
        parts = [_attend_group(qkv, group, layer, heads, kv.by_products) for group in self.groups]
        parts += attend_prefill(qkv, self.prefill, layer, num_kv, kv.by_products)
        return joined(parts, len(qkv))


def group_decodes(counts: List[int], spare_pages: int) -> list[tuple[int, int]]:
    """Cuts decodes, given their page counts from most to least, into [start, stop) groups, each
    with at most `spare_pages` pages of padding.
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


def _attend_group(
    qkv: Tensor, group: DecodeGroup, layer: int, heads: int, by_products: bool
) -> Tensor:
    """Attends for the group's rows of qkv [T, H + 2 * KH, D], to [stop - start, KH, G, D]."""
    k, v = group.read(layer)  # [KH, B, L, D]
    q = qkv[group.start : group.start + group.size, :heads]
    if len(q) < group.size:
        q = F.pad(q, (0, 0, 0, 0, 0, group.size - len(q)))
    q = q.unflatten(1, (len(k), -1)).transpose(0, 1)  # [KH, B, G, D]
    if by_products and k.shape[1] * k.shape[2] >= PRODUCTS_FROM_POSITIONS:
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)  # [KH, B, G, L]
        if group.mask is not None:
            scores += group.mask
        out = torch.softmax(scores, -1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, group.mask)
    return out.transpose(0, 1)[: group.stop - group.start]
