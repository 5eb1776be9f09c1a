"""Copies between host and device that do not wait for what the device has still to do.

A copy from or to ordinary memory waits for the device. From pinned memory it is one more thing in
the device's queue; pinned blocks come from torch's own cache, which gives none away that a queued
copy still reads. On a CPU there is nothing to wait for, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import Any

import torch
from torch import Tensor


def to_device(values: List[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Makes a tensor of these (nested) values; what is launched from now on may use it."""
    tensor = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def columns_to_device(columns: List[List[int]], device: torch.device) -> tuple[Tensor, ...]:
    """Makes an int64 tensor of each column; they cross as one tensor, of which they are views."""
    flat = to_device([i for column in columns for i in column], device, torch.int64)
    return flat.split([len(column) for column in columns])


class ToHost:
    """Some tensors on their way to the host, where they arrive when they have been computed."""

    def __init__(self, *tensors: Tensor) -> None:
        """Begins to copy these tensors, all of which are on one device."""
        self._arrived: torch.cuda.Event | None = None
        self._tensors = tensors
        if tensors[0].is_cuda:
            self._tensors = tuple(_copied(t) for t in tensors)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> tuple[Tensor, ...]:
        """Waits until they are here, but not for what was launched after them; returns them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _copied(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
