"""What this CPU computes the model's matrices fastest in, by measurement, once per load: the dtype,
the layout of those that a row by itself is multiplied with, and whether some more rows take less.

A CPU without bfloat16's instructions is not asked about it. Seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.computing.compiled import COMPILER_ERRORS, MOST_GRAPHS
from engine.computing.cpu import (
    BEYOND_CACHE_BYTES,
    NO_ROWS,
    SLOW_ROWS,
    WORTH_A_COPY,
    WORTH_PADDING,
    can_pack,
)
from engine.computing.linear import ROW_LAYOUTS, Linear, in_lanes
from engine.computing.model import Block, Decoder

ROWS = (1, 8, 256)  # a lone decode, a batch of them, a chunk of a prompt
REPEATS = 5
GROUP = 4  # matrices that one call of compiled code takes a row through


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
    """Of ROW_LAYOUTS; another than packed, which costs a second copy, only if it is clearly faster.
    Lanes need a compiler that works: without one they are no choice.
    """
    seconds = _row_s(config, dtype)
    best = min(seconds, key=lambda layout: seconds[layout])
    return best if seconds[best] < WORTH_A_COPY * seconds["packed"] else "packed"


@torch.inference_mode()
def _row_s(config: ModelConfig, dtype: torch.dtype) -> dict[str, float]:
    """By layout: seconds of a row through matrices like the largest of a layer, one after another,
    as many as the model has or as no cache holds.
    """
    shape = (config.hidden_size, 2 * config.intermediate_size)
    most = BEYOND_CACHE_BYTES // (shape[0] * shape[1] * dtype.itemsize)
    num_groups = max(1, min(config.num_layers, most) // GROUP)
    weights = [torch.empty(shape, dtype=dtype).normal_(0, 0.02) for _ in range(num_groups * GROUP)]
    x = torch.randn(1, config.hidden_size).to(dtype)
    passes: dict[str, Callable[[], object]] = {}
    for layout in ROW_LAYOUTS:
        linears = [Linear(weight) for weight in weights]
        for linear in linears:
            linear.pack(layout)
        if layout == "packed":
            passes[layout] = partial(_pass_each, linears, x)
            continue
        rows = [linear.row for linear in linears if linear.row is not None]
        if layout == "plain":
            passes[layout] = partial(_pass_plain, rows, x)
        else:
            compiled = torch.compile(_several_in_lanes, fullgraph=True, dynamic=False)
            passes[layout] = partial(_pass_lanes, compiled, rows, x)
            try:
                with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
                    passes[layout]()
            except COMPILER_ERRORS:
                del passes[layout]
    return dict(zip(passes, _least_in_turn(passes.values()), strict=True))


def measured_slow_rows(model: Decoder) -> range:
    """SLOW_ROWS, or none where the first number beyond them is not clearly faster."""
    within, beyond = _by_rows_s(model, (SLOW_ROWS[len(SLOW_ROWS) // 2], SLOW_ROWS.stop))
    return SLOW_ROWS if beyond < WORTH_PADDING * within else NO_ROWS


@torch.inference_mode()
def _by_rows_s(model: Decoder, rows: Sequence[int]) -> list[float]:
    """Seconds of the largest matrices of its layers, all or as many as no cache holds, for each
    number of rows.
    """
    config, dtype = model.config, model.embedding.dtype
    size = config.hidden_size * 2 * config.intermediate_size * dtype.itemsize
    linears: list[Linear] = []
    for block in model.blocks[: 1 + BEYOND_CACHE_BYTES // size]:
        assert isinstance(block, Block)
        linears.append(block.gate_up)
    inputs = [torch.randn(count, config.hidden_size).to(dtype) for count in rows]
    return _least_in_turn([partial(_pass_each, linears, x) for x in inputs])


def _least_in_turn(passes: Iterable[Callable[[], object]]) -> list[float]:
    """Seconds: of each the least of REPEATS, after a first one. In turn, as the machine may be
    faster now than a moment later.
    """
    seconds = [[_time_s(what) for what in passes] for _ in range(REPEATS + 1)]
    return [min(each) for each in zip(*seconds[1:], strict=True)]


def _pass_each(linears: Sequence[Linear], x: Tensor) -> None:
    for linear in linears:
        linear(x)


def _pass_plain(rows: Sequence[Tensor], x: Tensor) -> None:
    for row in rows:
        x @ row


def _pass_lanes(product: Callable[..., object], rows: Sequence[Tensor], x: Tensor) -> None:
    for start in range(0, len(rows), GROUP):
        product(x, rows[start : start + GROUP])


def _several_in_lanes(x: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    return [in_lanes(x, row) for row in rows]


def _least_s(what: Callable[[], object]) -> float:
    """Of REPEATS times, after a first one."""
    return min([_time_s(what) for _ in range(REPEATS + 1)][1:])


def _time_s(what: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    what()
    return time.perf_counter() - started_at
