"""Paged memory for keys and values.

One tensor [layers, slots, 2, KH, D], where KH is the number of key-value heads and D the head's
size: a slot holds a token's keys, then its values, so that one copy writes both and one gather
reads both, in rows of a whole page. Page p holds slots p * page_size to (p + 1) * page_size - 1.
Which page belongs to whom is decided elsewhere. Sizes are bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.computing.config import CheckpointError, ModelConfig


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


class KvMemory:
    """`slots` is the memory; `pages` the same, a row for each page of a layer."""

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        shape = (config.num_layers, num_pages * page_size, 2, config.num_kv_heads, config.head_dim)
        # Zeros, not empty: padded positions are read with weight 0, and 0 * nan is nan.
        self.slots = torch.zeros(shape, dtype=dtype, device=device)
        self.pages = self.slots.view(config.num_layers, num_pages, -1)

    @property
    def num_bytes(self) -> int:
        return self.slots.nbytes

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """For each layer: slots [slots, 2, KH, D] and pages [pages, page_size * 2 * KH * D]."""
        return list(zip(self.slots.unbind(0), self.pages.unbind(0), strict=True))
