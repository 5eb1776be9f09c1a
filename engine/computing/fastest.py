"""Which dtype this CPU computes the model's matrices in fastest, by measurement, once per load.

A CPU without bfloat16's instructions is not asked. Seconds.
"""

from __future__ import annotations

import time

import torch

from engine.computing.config import ModelConfig
from engine.computing.linear import Linear, can_pack

ROWS = (1, 8, 256)  # a lone decode, a batch of them, a chunk of a prompt
REPEATS = 5


def fastest_dtype(config: ModelConfig) -> torch.dtype:
    """float32, or bfloat16 where a layer of the model takes less time in it over all of ROWS."""
    if not can_pack(torch.bfloat16):
        return torch.float32
    seconds = {dtype: _layer_s(config, dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratios = [b / f for f, b in zip(*seconds.values(), strict=True)]
    return torch.bfloat16 if sum(ratios) < len(ratios) else torch.float32


@torch.inference_mode()
def _layer_s(config: ModelConfig, dtype: torch.dtype) -> list[float]:
    """Seconds of the largest matrix of a layer, for each number of rows."""
    device = torch.device("cpu")
    linear = Linear.empty(config.hidden_size, 2 * config.intermediate_size, False, dtype, device)
    linear.weight.normal_(0, 0.02)
    linear.pack()
    found = []
    for rows in ROWS:
        x = torch.randn(rows, config.hidden_size).to(dtype)
        seconds = []
        for _ in range(REPEATS + 1):
            started_at = time.perf_counter()
            linear(x)
            seconds.append(time.perf_counter() - started_at)
        found.append(min(seconds[1:]))
    return found
