"""What int8 weights cost in accuracy and give in speed, beside the dtypes.

    python -m tests.bench quantize [--model FOLDER] [--text FILE]... [--threads 1]

Loss is the mean negative log-likelihood, in nats per token, of the texts (default:
tests/held_out.txt, which the embedded model was not trained on), in windows of 512 tokens;
perplexity is e to that, and "costs" by how much it is above float32's. Speed is of a decode alone,
of 32 decodes over 200 tokens, and of a prefill of 512, uncompiled, in turn, medians in
milliseconds. Ends with one line of JSON.

Goal: int8 costs at most 1.5 % of perplexity. (How it is kept: docs/decisions/int8.md.)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engine.checkpoint.tokenizer import Tokenizer
from engine.computing import loading
from engine.computing.batch import BatchBuilder
from engine.computing.calibration import Shape, make_plan
from engine.computing.runner import ModelExecutor
from engine.deciding.plan import Chunk, Plan, Work
from engine.deciding.request import Request, Sampling
from engine.deciding.sequence import Sequence as Served
from engine.embedded import FOLDER

ROOT = Path(__file__).parents[2]
HELD_OUT = ROOT / "tests" / "held_out.txt"
WINDOW, PAGE = 512, 16
MOST_COST = 0.015  # of perplexity
INT8 = "int8 in bfloat16"
ARMS = {
    "float32": {},
    "bfloat16": {},
    INT8: {"dtype": "bfloat16", "quantize": "int8"},
}
SHAPES = {
    "decode 1": Shape((200,)),
    "decode 32": Shape((200,) * 32),
    "prefill 512": Shape((), ((0, 512),)),
}


@torch.inference_mode()
def loss(executor: ModelExecutor, tokens: list[int]) -> float:
    """Nats per token, over all windows."""
    builder = BatchBuilder(executor.kv)
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, WINDOW):
        window = tokens[start : start + WINDOW + 1]
        request = Request("", window[:-1], Sampling(), 0.0)
        sequence = Served(request, 0.0, pages=list(range(WINDOW // PAGE)))
        plan = Plan((), (Chunk(sequence, 0, len(window) - 1, True),), Work(), 0.0, 0.0)
        batch = replace(builder.build(plan), rows=torch.arange(len(window) - 1))
        logits = executor.step(batch).float()
        targets = torch.tensor(window[1:])
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
    return total / count


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench quantize")
    parser.add_argument("--model", type=Path, default=FOLDER)
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(argv)
    texts = options.text or [HELD_OUT]
    text = "\n".join(path.read_text(encoding="utf-8") for path in texts)
    tokens = Tokenizer.load(options.model).encode(text)
    executors = {
        name: loading.load(
            options.model,
            **{"dtype": name, "threads": options.threads, "num_pages": 1024, **arm},
        )
        for name, arm in ARMS.items()
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in executors}
    for _ in range(options.repeats + 1):
        for shape_name, shape in SHAPES.items():
            for name, executor in executors.items():
                plan = make_plan(shape, PAGE)
                started_at = time.perf_counter()
                executor.run(plan)
                took_s = time.perf_counter() - started_at
                seconds[name].setdefault(shape_name, []).append(took_s)
    losses = {name: loss(executor, tokens) for name, executor in executors.items()}
    costs = {name: math.exp(of - losses["float32"]) - 1 for name, of in losses.items()}
    found = {
        name: {"loss": round(losses[name], 4), "perplexity": round(math.exp(losses[name]), 2)}
        | {"costs %": round(100 * costs[name], 2)}
        | {of: round(1e3 * statistics.median(s[1:]), 3) for of, s in seconds[name].items()}
        for name in executors
    }
    for name, of in found.items():
        print(f"{name:18}" + "".join(f"{key} {value:<10}" for key, value in of.items()))
    goals = {f"int8 costs at most {MOST_COST:.1%} of perplexity": costs[INT8] <= MOST_COST}
    machine = {"cores": os.cpu_count(), "threads": options.threads, "torch": torch.__version__}
    print(
        json.dumps(
            {"bench": "quantize", "model": options.model.name, "tokens": len(tokens)}
            | {"arms": found, "goals": goals, "machine": machine, "load": os.getloadavg()[0]}
        )
    )
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
