"""How this CPU multiplies with the model's matrices fastest, by measurement, once for each load.

CPUs differ too much to know it beforehand: in which dtype products are fastest, in which layout a
matrix is read fastest for a row by itself, and whether some numbers of rows take longer than larger
ones. Each question takes a second or two. What is measured are products like the model's own, each
several times and in turn with the others, since the machine may be faster now than a moment later;
the least of its times counts, as another process may have had the core in the rest.

A function that chooses is handed the function that measures, so that its rule can be tried with any
seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.computing.compiler import CompilationFailed, compiling
from engine.computing.cpu import (
    BEYOND_CACHE_BYTES,
    NO_ROWS,
    SLOW_ROWS,
    WORTH_A_COPY,
    WORTH_PADDING,
    can_pack,
)
from engine.computing.linear import Linear, in_strips
from engine.computing.model import Block, Decoder

ROWS = (1, 8, 256)  # a lone decode, a batch of them, a chunk of a prompt
REPEATS = 5
GROUP = 4  # matrices that one call of compiled code takes a row through


def seconds_by_rows(config: ModelConfig, dtype: torch.dtype) -> list[float]:
    """Measures the largest matrix of a layer in a dtype: the seconds for each number of ROWS."""
    device = torch.device("cpu")
    linear = Linear.empty(config.hidden_size, 2 * config.intermediate_size, False, dtype, device)
    with torch.inference_mode():
        linear.weight.normal_(0, 0.02)
        linear.pack()
        x = {rows: torch.randn(rows, config.hidden_size).to(dtype) for rows in ROWS}
        return _least_in_turn([partial(linear, x[rows]) for rows in ROWS])


def fastest_dtype(
    config: ModelConfig,
    measure: Callable[[ModelConfig, torch.dtype], Sequence[float]] = seconds_by_rows,
) -> torch.dtype:
    """Returns bfloat16 where a layer of the model takes less time in it than in float32, as a mean
    over the numbers of rows that are measured; otherwise float32. A CPU without instructions for
    bfloat16 is not measured.
    """
    if not can_pack(torch.bfloat16):
        return torch.float32
    seconds = [measure(config, dtype) for dtype in (torch.float32, torch.bfloat16)]
    ratios = [b / f for f, b in zip(*seconds, strict=True)]
    return torch.bfloat16 if sum(ratios) < len(ratios) else torch.float32


@torch.inference_mode()
def seconds_by_layout(config: ModelConfig, dtype: torch.dtype) -> dict[str, float]:
    """Measures one row that goes through matrices like the largest of a layer, as many as the model
    has or as no cache keeps: the seconds by layout (linear.ROW_LAYOUTS). Strips need a compiler
    that works; without one they are left out.
    """
    shape = (config.hidden_size, 2 * config.intermediate_size)
    most = BEYOND_CACHE_BYTES // (shape[0] * shape[1] * dtype.itemsize)
    num_groups = max(1, min(config.num_layers, most) // GROUP)
    weights = [torch.empty(shape, dtype=dtype).normal_(0, 0.02) for _ in range(num_groups * GROUP)]
    x = torch.randn(1, config.hidden_size).to(dtype)
    passes: dict[str, Callable[[], object]] = {
        "packed": partial(_pass_each, _packed(weights), x),
        "plain": partial(_pass_plain, _rows(weights, "plain"), x),
    }
    compiled = torch.compile(_several_in_strips, fullgraph=True, dynamic=False)
    strips = partial(_pass_strips, compiled, _rows(weights, "strips"), x)
    try:
        with compiling():
            strips()
        passes["strips"] = strips
    except CompilationFailed:
        pass  # no choice then
    return dict(zip(passes, _least_in_turn(passes.values()), strict=True))


def fastest_row_layout(
    config: ModelConfig,
    dtype: torch.dtype,
    measure: Callable[[ModelConfig, torch.dtype], dict[str, float]] = seconds_by_layout,
) -> str:
    """Returns the layout of linear.ROW_LAYOUTS in which one row goes through the model's matrices
    fastest. Another one than "packed" costs a second copy, so it must be clearly faster.
    """
    seconds = measure(config, dtype)
    best = min(seconds, key=lambda layout: seconds[layout])
    return best if seconds[best] < WORTH_A_COPY * seconds["packed"] else "packed"


@torch.inference_mode()
def seconds_of_layers(model: Decoder, rows: Sequence[int]) -> list[float]:
    """Measures the largest matrices of the model's layers, of all layers or of as many as no cache
    keeps: the seconds for each of these numbers of rows.
    """
    config, dtype = model.config, model.embedding.dtype
    size = config.hidden_size * 2 * config.intermediate_size * dtype.itemsize
    linears: list[Linear] = []
    for block in model.blocks[: 1 + BEYOND_CACHE_BYTES // size]:
        assert isinstance(block, Block)
        linears.append(block.gate_up)
    inputs = [torch.randn(count, config.hidden_size).to(dtype) for count in rows]
    return _least_in_turn([partial(_pass_each, linears, x) for x in inputs])


def measured_slow_rows(
    model: Decoder,
    measure: Callable[[Decoder, Sequence[int]], Sequence[float]] = seconds_of_layers,
) -> range:
    """Returns the numbers of rows that are worth being padded to the first number beyond them: all
    of cpu.SLOW_ROWS, or none where one from their middle is not clearly slower than that number.
    """
    within, beyond = measure(model, (SLOW_ROWS[len(SLOW_ROWS) // 2], SLOW_ROWS.stop))
    return SLOW_ROWS if beyond < WORTH_PADDING * within else NO_ROWS


def _packed(weights: Iterable[Tensor]) -> list[Linear]:
    linears = [Linear(weight) for weight in weights]
    for linear in linears:
        linear.pack()
    return linears


def _rows(weights: Iterable[Tensor], layout: str) -> list[Tensor]:
    """Returns the matrices in a layout for one row, or none where the dtype has no such layout."""
    linears = [Linear(weight) for weight in weights]
    for linear in linears:
        linear.pack(layout)
    return [linear.row for linear in linears if linear.row is not None]


def _pass_each(linears: Sequence[Linear], x: Tensor) -> None:
    for linear in linears:
        linear(x)


def _pass_plain(rows: Sequence[Tensor], x: Tensor) -> None:
    for row in rows:
        x @ row


def _pass_strips(product: Callable[..., object], rows: Sequence[Tensor], x: Tensor) -> None:
    for start in range(0, len(rows), GROUP):
        product(x, rows[start : start + GROUP])


def _several_in_strips(x: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    return [in_strips(x, row) for row in rows]


def _least_in_turn(passes: Iterable[Callable[[], object]]) -> list[float]:
    """Returns of each the least seconds of REPEATS calls, made in turn, after a first one."""
    passes = list(passes)
    seconds = [[_seconds(what) for what in passes] for _ in range(REPEATS + 1)]
    return [min(each) for each in zip(*seconds[1:], strict=True)]


def _seconds(what: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    what()
    return time.perf_counter() - started_at
