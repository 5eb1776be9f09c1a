"""What this CPU computes the model's matrices fastest in, by measurement, once per load: the dtype,
and the layout of those that a row by itself is multiplied with.

A CPU without bfloat16's instructions is not asked about it. Seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import torch

from engine.computing.compiled import COMPILER_ERRORS, MOST_GRAPHS
from engine.computing.config import ModelConfig
from engine.computing.linear import ROW_LAYOUTS, Linear, can_pack, in_lanes

ROWS = (1, 8, 256)  # a lone decode, a batch of them, a chunk of a prompt
REPEATS = 5
MOST_BYTES = 128 << 20  # of the matrices that a row goes through: more than a cache keeps


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
    x = {rows: torch.randn(rows, config.hidden_size).to(dtype) for rows in ROWS}
    return [_least_s(partial(linear, x[rows])) for rows in ROWS]


def fastest_row_layout(config: ModelConfig, dtype: torch.dtype) -> str:
    """Of ROW_LAYOUTS. Lanes need a compiler that works: without one they are no choice."""
    seconds = {layout: _row_s(config, dtype, layout) for layout in ROW_LAYOUTS}
    return min(seconds, key=lambda layout: seconds[layout])


@torch.inference_mode()
def _row_s(config: ModelConfig, dtype: torch.dtype, layout: str) -> float:
    """Seconds of a row through matrices like the largest of a layer: one after another, as many as
    the model has, or as no cache holds.
    """
    shape = (config.hidden_size, 2 * config.intermediate_size)
    size = shape[0] * shape[1] * dtype.itemsize
    linears = []
    for _ in range(min(config.num_layers, -(-MOST_BYTES // size))):
        linears.append(Linear(torch.empty(shape, dtype=dtype).normal_(0, 0.02)))
        linears[-1].pack(layout)
    x = torch.randn(1, config.hidden_size).to(dtype)
    lanes = torch.compile(in_lanes, fullgraph=True, dynamic=False)

    def pass_through() -> None:
        for linear in linears:
            if layout == "lanes" and linear.row is not None:
                lanes(x, linear.row)
            else:
                linear(x)

    try:
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            return _least_s(pass_through)
    except COMPILER_ERRORS:
        return math.inf


def _least_s(what: Callable[[], object]) -> float:
    """Of REPEATS times, the first left out."""
    seconds = []
    for _ in range(REPEATS + 1):
        started_at = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - started_at)
    return min(seconds[1:])
