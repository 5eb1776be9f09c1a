"""What shared prompt prefixes are worth: the same requests with prefix caching and without.

    python -m tests.bench prefix [--model FOLDER] [--requests 32] [--shared 1024] [--own 64]

All arrive at once, from one tenant, and are served first come first served by the engine alone. The
two in turn, medians. Prints one line of JSON last; exit code 1 where the throughput is less than 5
times that without, or the outputs differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.embedded import FOLDER
from tests.bench._offline import load, serve

GOAL = 5.0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench prefix")
    parser.add_argument("--model", type=Path, default=FOLDER)
    parser.add_argument("--dtype", default="float32", help="in bfloat16 outputs may differ")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    for name, default in (("requests", 32), ("shared", 1024), ("own", 64), ("output", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    executor = load(vars(options) | {"model": str(options.model), "compile": "auto"})
    rng = random.Random(3)
    vocab = executor.config.vocab_size
    shared = [rng.randrange(100, vocab) for _ in range(options.shared)]
    asked = [
        (shared + [rng.randrange(100, vocab) for _ in range(options.own)], options.output)
        for _ in range(options.requests)
    ]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    outputs = {}
    for _ in range(options.repeats):
        for is_on, of in seconds.items():
            result = serve(executor, asked, options.shared, is_on)
            of.append(result["seconds"])
            outputs[is_on] = result["ids"]
    medians = {is_on: statistics.median(of) for is_on, of in seconds.items()}
    speedup, is_equal = medians[False] / medians[True], outputs[True] == outputs[False]
    result = {
        "bench": "prefix",
        "requests": options.requests,
        "prompt_tokens": options.shared + options.own,
        "shared_tokens": options.shared,
        "seconds_with": round(medians[True], 3),
        "seconds_without": round(medians[False], 3),
        "speedup": round(speedup, 2),
        "outputs_equal": is_equal,
        "model": options.model.name,
        "dtype": str(executor.dtype).removeprefix("torch."),
        "threads": options.threads,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result))
    return 0 if speedup >= GOAL and is_equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
