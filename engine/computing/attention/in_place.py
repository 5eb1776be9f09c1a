"""The layout of KV memory whose contexts are read in place: compiled code on a CPU.

Keys are [layers, pages, KH, D, page_size], in which what one score after another is summed from
lies side by side, and values [layers, pages, KH, page_size, D].

A decode is bound by how fast its context is read, so it is written as plain sums, of which
torch.compile makes loops over what lies side by side: the tokens of a page for its scores, the
dimensions of a head for its values. A page is read once for the query heads that share it. As in
Flash-Decoding (https://pytorch.org/blog/flash-decoding/) each page w is computed by itself, from
the scores x of its tokens and their values v, and a sequence is put together from its pages:

    largest(w)  = max(x)                        over the tokens of the page
    sum(w)      = sum(exp(x - largest(w)))
    weighted(w) = sum(exp(x - largest(w)) * v)

    share(w)    = exp(largest(w) - max(largest))
    output      = sum(share(w) * weighted(w)) / sum(share(w) * sum(w))      over the pages

So no context is read as far as the longest goes (only the putting together goes over so many pages
for all), and one long context is shared among threads as well as many short ones.

All of a batch's rows are written, padding into the sink, and so many rows are decoded that no size
is smaller than compiled code has it (LEAST). A chunk of one token is a decode like all others. The
other chunks are computed between what is compiled.

Legend: T tokens of the iteration, H query heads, KH key-value heads, G = H / KH, D head size, B
rows that decode, W pages that they read, S pages of the longest of them; all indices are int64.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.computing.attention.layout import LEAST, Decode, KvLayout
from engine.computing.attention.prompts import Prefill, ReadContext, attend_prefill, joined
from engine.computing.transfer import columns_to_device
from engine.deciding.plan import Chunk

OUTSIDE = -1e30  # score of what is no context: finite, as a page may be nothing but that
SMALLEST = 1e-30


class DecodeInputs(NamedTuple):
    """The inputs are what compiled code knows of an iteration, the same for every layer."""

    page: Tensor  # [T] where each token's keys and values are written; padding: in the sink
    offset: Tensor  # [T] within that page
    owner: Tensor  # [W] the row that reads
    pages: Tensor  # [W] this page
    lengths: Tensor  # [W] and so many tokens of it
    parts: Tensor  # [B, S] which of the W are each row's; padding: one of length 0


def write_and_decode(qkv: Tensor, memory: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Tensor:
    """Writes the new keys and values of all rows into one layer's (keys, values), and attends for
    the first B, from [T, H + 2 * KH, D] to [B, H * D]. It is written for the compiler; its sums are
    in float32.
    """
    (keys, values), (page, offset, owner, pages, lengths, parts) = memory, inputs
    num_kv, dim, page_size = keys.shape[1:]
    heads, batch = qkv.shape[1] - 2 * num_kv, parts.shape[0]
    group = heads // num_kv
    new = qkv[:, heads:]
    keys[page, :, :, offset] = new[:, :num_kv]
    values[page, :, offset] = new[:, num_kv:]

    q = qkv[:batch, :heads].float() * dim**-0.5
    q = q.as_strided(q.shape, q.stride())  # in memory, not computed again for every page
    q = q.view(batch, num_kv, group, dim)[owner]
    k, v = keys[pages].float(), values[pages].float()  # [W, KH, D, page_size], and the last two
    scores = torch.stack([_scores(q[:, :, g], k) for g in range(group)], 2)
    is_context = torch.arange(page_size) < lengths[:, None]
    is_context = is_context[:, None, None]
    scores = torch.where(is_context, scores, OUTSIDE)  # [W, KH, G, page_size]
    largest = scores.amax(3)
    weights = torch.where(is_context, (scores - largest[..., None]).exp(), 0.0)
    sums = weights.sum(3)
    weighted = torch.stack([(weights[:, :, g, :, None] * v).sum(2) for g in range(group)], 2)

    largest = largest.flatten(1)[parts]  # [B, S, H]
    share = (largest - largest.amax(1, keepdim=True)).exp()
    total = (share * sums.flatten(1)[parts]).sum(1, keepdim=True)
    share = share / total.clamp_min(SMALLEST)  # of a row that is padding it is 0
    out = (share[..., None] * weighted.flatten(1, 2)[parts]).sum(1)
    return out.to(qkv.dtype).view(batch, -1)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Multiplies q [W, KH, D] with k [W, KH, D, page_size], to [W, KH, page_size]."""
    if q.shape[2] % 2:
        return (q[..., None] * k).sum(2)
    first, second = (q[..., None] * k).unflatten(2, (2, -1)).unbind(2)
    return first.sum(2) + second.sum(2)  # two sums at a time: each waits for its last addition


class InPlaceKv(KvLayout):
    """KV memory, `keys` [layers, pages, KH, D, page_size] and `values` [layers, pages, KH,
    page_size, D], whose contexts are read in place.
    """

    computes_padding = True
    traced = staticmethod(write_and_decode)

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
        page = (self.num_layers, self.total_pages, self.num_kv_heads)
        self.keys = self._zeros(*page, self.head_dim, page_size)
        self.values = self._zeros(*page, page_size, self.head_dim)
        self._memory = [(self.keys[layer], self.values[layer]) for layer in range(self.num_layers)]

    def clear(self, pages: List[int]) -> None:
        for page in pages:
            self.keys[:, page].zero_()
            self.values[:, page].zero_()

    def memory(self, layer: int) -> tuple[Tensor, ...]:
        return self._memory[layer]

    def is_decode(self, chunk: Chunk) -> bool:
        return chunk.length == 1

    def reader(self, pages: List[int], length: int) -> ReadContext:
        table = torch.tensor(pages[: -(-length // self.page_size)])
        return partial(self._read, table, length)

    def _read(self, pages: Tensor, length: int, layer: int) -> tuple[Tensor, ...]:
        """Copies keys and values [KH, 1, L, D] from these pages [P]."""
        keys, values = (memory.index_select(0, pages) for memory in self._memory[layer])
        k = keys.permute(1, 0, 3, 2).flatten(1, 2)  # [P, KH, D, page_size] before
        v = values.transpose(0, 1).flatten(1, 2)
        return k[:, None, :length], v[:, None, :length]

    def plan(
        self, slots: Tensor, decodes: List[Decode], padding: int, prefill: Prefill
    ) -> InPlacePlan:
        counts = [position // self.page_size + 1 for _, position in decodes]
        owner = [row for row, count in enumerate(counts) for _ in range(count)]
        none = len(owner)  # the first of what pads them
        longest = max([LEAST, *counts])
        pages: list[int] = []
        lengths: list[int] = []
        parts: list[int] = []
        for (sequence, position), count in zip(decodes, counts, strict=True):
            parts += range(len(pages), len(pages) + count)
            parts += [none] * (longest - count)
            pages += sequence.pages[:count]
            lengths += [self.page_size] * (count - 1)
            lengths.append(position % self.page_size + 1)
        parts += [none] * (padding * longest)
        extra = max(1, LEAST - none)
        owner += [0] * extra
        pages += [self.spare_page] * extra
        lengths += [0] * extra
        columns = columns_to_device((owner, pages, lengths, parts), self.device)
        inputs = DecodeInputs(
            page=slots // self.page_size,
            offset=slots % self.page_size,
            owner=columns[0],
            pages=columns[1],
            lengths=columns[2],
            parts=columns[3].view(-1, longest),
        )
        return InPlacePlan(self, inputs, prefill)


@dataclass(frozen=True, slots=True)
class InPlacePlan:
    """Implements AttentionPlan. Rows that decode stand first."""

    kv: InPlaceKv
    inputs: DecodeInputs
    prefill: Prefill

    @property
    def has_rest(self) -> bool:
        return not self.prefill.is_empty

    def attend(self, qkv: Tensor, layer: int, decoded: Tensor | None = None) -> Tensor:
        kv, num_kv = self.kv, self.kv.num_kv_heads
        if decoded is None:
            decoded = write_and_decode(qkv, kv.memory(layer), self.inputs)
        if not self.has_rest:
            return decoded
        heads, dim = qkv.shape[1] - 2 * num_kv, qkv.shape[2]
        parts = [decoded.view(-1, num_kv, heads // num_kv, dim)]
        parts += attend_prefill(qkv, self.prefill, layer, num_kv, kv.by_products)
        return joined(parts, len(qkv))
