"""What a layer's products, and the one to the vocabulary, cost on this machine by their number of
rows, as the engine stores the matrices.

    python -m tests.bench products [--threads 2] [--hidden 576] [--intermediate 1536] [--qkv 960]
                                   [--layers 30] [--vocabulary 49152]

The shape is SmolLM2-135M's by default. All layers are computed one after another, so that none is
in a small cache when its turn comes. With matrix units (AMX) oneDNN takes longer for some numbers
of rows than for larger ones: those the engine pads (batch.py, autotune.py). Milliseconds of one
layer and of the vocabulary, by dtype and rows, in turn; the median, and the least beside it, as the
machine may be shared. Also what a number of rows costs that a product never had: oneDNN compiles
for it. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from engine.computing.linear import Linear

REPEATS = 10
ROWS = (2, 8, 16, 17, 24, 32, 33, 36, 48, 64, 100, 112, 128, 136, 144, 256, 512)
Times = dict[int, tuple[float, float]]  # by rows: median and least milliseconds


def _linear(inputs: int, outputs: int, dtype: torch.dtype) -> Linear:
    linear = Linear(torch.randn(inputs, outputs).mul_(0.02).to(dtype))
    linear.pack()
    return linear


def by_rows(shapes: Sequence[tuple[int, int]], copies: int, dtype: torch.dtype) -> Times:
    """Measures, for each number of ROWS, a product with a matrix of each of these shapes, of which
    there are so many copies: the median and the least milliseconds.
    """
    layers = [[_linear(*shape, dtype) for shape in shapes] for _ in range(copies)]
    xs = {rows: [torch.randn(rows, width).to(dtype) for width, _ in shapes] for rows in ROWS}
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(REPEATS + 1):
        for rows in ROWS:
            started_at = time.perf_counter()
            for layer in layers:
                for linear, x in zip(layer, xs[rows], strict=True):
                    linear(x)
            times[rows].append(1e3 * (time.perf_counter() - started_at) / copies)
    return {rows: (statistics.median(ms[1:]), min(ms[1:])) for rows, ms in times.items()}


def first_time(hidden: int, dtype: torch.dtype) -> dict[str, float]:
    """Measures one product with numbers of rows that it never had, and again with each: the median
    milliseconds of both.
    """
    linear = _linear(hidden, 4 * hidden, dtype)
    first, again = [], []
    for rows in range(40, 120, 3):
        x = torch.randn(rows, hidden).to(dtype)
        for times in (first, again):
            started_at = time.perf_counter()
            linear(x)
            times.append(1e3 * (time.perf_counter() - started_at))
    return {"first": statistics.median(first), "again": statistics.median(again)}


@torch.inference_mode()
def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench products")
    for name, default in (("threads", 2), ("hidden", 576), ("intermediate", 1536), ("qkv", 960)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=49152)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    hidden, inner = options.hidden, options.intermediate
    layer = [(hidden, options.qkv), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    found: dict[str, dict[str, Times]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        found[name] = {
            "layer": by_rows(layer, options.layers, dtype),
            "vocabulary": by_rows([(hidden, options.vocabulary)], 2, dtype),
        }
        for what, times in found[name].items():
            for rows, (median, least) in times.items():
                print(f"{name:9}{what:11}{rows:5} rows  {median:7.3f} ms  least {least:7.3f} ms")
    new_shape = first_time(hidden, torch.bfloat16)
    print("one product, first and again: {first:.2f} ms, {again:.2f} ms".format(**new_shape))
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__}
    figures = {"milliseconds": found, "new_shape": new_shape, "threads": options.threads}
    print(json.dumps({"bench": "products", "machine": machine, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
