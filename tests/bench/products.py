"""What a layer's products cost on this machine by their number of rows, as the engine stores the
matrices.

    python -m tests.bench products [--threads 2] [--hidden 576] [--intermediate 1536] [--qkv 960]

One layer of the shape given (SmolLM2-135M's by default) in `LAYERS` copies, so that it is not in
the cache when its turn comes. With matrix units (AMX) oneDNN takes longer for some numbers of rows
than for larger ones: those the engine pads (batch.py, fastest.py). Milliseconds of one layer, by
dtype and rows, in turn; the median, and the least beside it, as the machine may be shared. Also
what a number of rows costs that a product never had: oneDNN compiles for it. Ends with one line of
JSON.
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

LAYERS = 8
REPEATS = 30
ROWS = (2, 8, 16, 17, 24, 32, 33, 36, 48, 64, 100, 112, 128, 136, 144, 256, 512, 1024)


def _linear(inputs: int, outputs: int, dtype: torch.dtype) -> Linear:
    linear = Linear(torch.randn(inputs, outputs).mul_(0.02).to(dtype))
    linear.pack()
    return linear


def by_rows(
    shapes: Sequence[tuple[int, int]], dtype: torch.dtype
) -> dict[int, tuple[float, float]]:
    """Median and least milliseconds of one product with each of these matrices."""
    layers = [[_linear(*shape, dtype) for shape in shapes] for _ in range(LAYERS)]
    inputs = {rows: [torch.randn(rows, inputs).to(dtype) for inputs, _ in shapes] for rows in ROWS}
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(REPEATS + 1):
        for rows, xs in inputs.items():
            started_at = time.perf_counter()
            for layer in layers:
                for linear, x in zip(layer, xs, strict=True):
                    linear(x)
            seconds[rows].append(1e3 * (time.perf_counter() - started_at) / LAYERS)
    return {rows: (statistics.median(s[1:]), min(s[1:])) for rows, s in seconds.items()}


def first_time(hidden: int, dtype: torch.dtype) -> dict[str, float]:
    """Of one product: with a number of rows that it never had, and again. Milliseconds, medians."""
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
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    hidden, inner = options.hidden, options.intermediate
    shapes = [(hidden, options.qkv), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        found[name] = by_rows(shapes, dtype)
        for rows, (median, least) in found[name].items():
            print(f"{name:9}{rows:6} rows  {median:7.3f} ms  least {least:7.3f} ms")
    new_shape = first_time(hidden, torch.bfloat16)
    print("one product, first and again: {first:.2f} ms, {again:.2f} ms".format(**new_shape))
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__}
    figures = {"milliseconds": found, "new_shape": new_shape, "threads": options.threads}
    print(json.dumps({"bench": "products", "machine": machine, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
