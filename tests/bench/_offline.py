"""This engine as a worker of `bench engine`: no gRPC, no processes, first come first served.

    python -m tests.bench._offline '{"model": FOLDER, "dtype": ..., "threads": 2, ...}'

Loads the model, prints a line of JSON about itself, then for each line of JSON on standard input, a
list of [prompt, tokens to generate], serves all of these at once, greedily, and prints the instants
(seconds from the start) and the ids of each one's tokens. _vllm.py speaks the same.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from engine.computing import loading
from engine.computing.runner import ModelExecutor
from engine.deciding.latency import LatencyModel
from engine.deciding.plan import Sampled
from engine.deciding.request import Request, Sampling
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.driving.build import UNCALIBRATED

MAX_BATCH = 64


def load(told: dict[str, Any]) -> ModelExecutor:
    executor = loading.load(
        Path(told["model"]),
        device=told.get("device", "cpu"),
        dtype=told.get("dtype", "auto"),
        quantize=told.get("quantize", "none"),
        compile=told.get("compile", "auto"),
        threads=told.get("threads"),
        kv_bytes=told.get("kv_mib", 2048) << 20,
    )
    executor.warm_up()
    return executor


def serve(
    executor: ModelExecutor, asked: list[Any], chunk_size: int, prefix_caching: bool = False
) -> dict[str, Any]:
    scheduler = Scheduler(
        SchedulerConfig(
            num_pages=executor.num_pages,
            context_len=executor.config.max_positions,
            page_size=executor.page_size,
            policy="fcfs",
            chunk_size=chunk_size,
            max_batch_size=MAX_BATCH,
            prefix_caching=prefix_caching,
        ),
        LatencyModel(UNCALIBRATED),
    )
    started_at = time.perf_counter()
    for number, (prompt, length) in enumerate(asked):
        sampling = Sampling(temperature=0.0, max_tokens=length)
        scheduler.submit(Request(str(number), prompt, sampling, 0.0), 0.0)
    instants: list[list[float]] = [[] for _ in asked]
    ids: list[list[int]] = [[] for _ in asked]
    while (plan := scheduler.plan(time.perf_counter() - started_at)) is not None:
        tokens = executor.run(plan)
        now = time.perf_counter() - started_at
        for event in scheduler.commit(plan, tokens, now):
            if isinstance(event, Sampled):
                instants[int(event.request_id)].append(now)
                ids[int(event.request_id)].append(event.token.id)
    return {"seconds": time.perf_counter() - started_at, "instants": instants, "ids": ids}


def main() -> None:
    told = json.loads(sys.argv[1])
    started_at = time.perf_counter()
    executor = load(told)
    compiled = executor.compilations
    about = {
        "engine": "niyama",
        "torch": torch.__version__,
        "dtype": str(executor.dtype).removeprefix("torch."),
        "compiled": executor.is_compiled,
        "threads": torch.get_num_threads(),
        "start_s": time.perf_counter() - started_at,
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(executor, json.loads(line), told["chunk_size"])), flush=True)
    after_start = executor.compilations - compiled
    print(json.dumps({"compilations_after_start": after_start}), file=sys.stderr)


if __name__ == "__main__":
    main()
