"""The engine by itself, beside vLLM and the machine's own limits, in one run.

    python -m tests.bench engine [--model FOLDER]... [--peer ENVIRONMENT] [--repeats 5]

    W1  64 requests at once, lengths as in a trace of conversations, an eighth of them: tokens/s
    W2  one request of 128 prompt and 256 output tokens: mean time between tokens
    W3  one prompt of 2,048 tokens, one token of output: time to the first token

Greedy, prompts of random ids, seeded. Each engine is a process that loads the model once per dtype;
workloads are repeated in turn, engine after engine, so that a busy moment falls on all; medians.
`--peer` is a virtual environment with vllm in it. A ratio compares the better dtype of each side.
The bounds: W2 the bytes of all weights over this machine's bandwidth (the sum of a large array);
W1 and W3 the arithmetic of the matrices and of causal attention over its rate of multiplying
matrices of 2,048 by 2,048, both measured between the rounds. Prints tables and one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.opening import open_source
from engine.computing.linear import Linear
from engine.embedded import FOLDER
from engine.processes.environment import environment

ROOT = Path(__file__).parents[2]
TRACE = ROOT.parent / "shared" / "traces" / "azure-2023-conv.csv"
DTYPES = ("bfloat16", "float32")
GOALS = {"W1": 1.2, "W2": 0.75, "W3": 0.9}  # ours over vLLM's

Asked = list[tuple[list[int], int]]


def lengths() -> dict[str, list[tuple[int, int]]]:
    """Returns for each workload the tokens (prompt, output) of every request. Those of W1 are the
    trace's or, where that is missing, drawn from lognormal distributions with its quantiles.
    """
    if TRACE.is_file():
        with TRACE.open(newline="") as file:
            rows = [row for row, _ in zip(csv.DictReader(file), range(64), strict=False)]
        first = [(int(r["ContextTokens"]) // 8, int(r["GeneratedTokens"]) // 8) for r in rows]
    else:
        rng = random.Random(7)
        draws = [(rng.lognormvariate(4.2, 0.9), rng.lognormvariate(2.4, 0.8)) for _ in range(64)]
        first = [(int(prompt), int(output)) for prompt, output in draws]
    return {
        "W1": [(max(8, prompt), max(4, output)) for prompt, output in first],
        "W2": [(128, 256)],
        "W3": [(2048, 1)],
    }


def workloads(vocab_size: int) -> dict[str, Asked]:
    made = {}
    for name, pairs in lengths().items():
        rng = random.Random(name)
        made[name] = [([rng.randrange(100, vocab_size) for _ in range(n)], m) for n, m in pairs]
    return made


class Worker:
    """A process with an engine in it; `about` is what it says of itself. It ends with the `with`
    block, also where that raises: a stopped process would outlive who stopped it.
    """

    def __init__(self, command: list[str], told: dict[str, Any], env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [*command, json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if "vllm" in command[-1] else None,
            text=True,
            env=env,
            cwd=ROOT,
        )
        try:
            self.about: dict[str, Any] = self._read()
        except BaseException:
            self._kill()
            raise
        self.name = f"{self.about['engine']} {self.about['dtype']}"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            error = self._process.stderr.read()[-2000:] if self._process.stderr else ""
            raise SystemExit(f"a worker ended with {self._process.wait()}: {error}")
        return json.loads(line)

    def serve(self, asked: Asked) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self._process.send_signal(signal.SIGSTOP)  # nothing of it runs while others are measured
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.communicate()
        else:
            self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def ours(model: Path, dtype: str, options: argparse.Namespace) -> Worker:
    told = {
        "model": str(model),
        "dtype": dtype,
        "threads": options.threads,
        "compile": options.compile,
        "chunk_size": options.chunk_size,
    }
    return Worker([sys.executable, "-m", "tests.bench._offline"], told, dict(environment()))


def vllm(model: Path, dtype: str, options: argparse.Namespace) -> Worker:
    """Starts vLLM with the settings that are fastest on few cores: threads bound, one process,
    the memory allocator and OpenMP of its own documentation where they are installed.
    """
    home: Path = options.peer
    preload = [home / "lib" / "libiomp5.so"]
    preload += Path("/usr/lib/x86_64-linux-gnu").glob("libtcmalloc_minimal.so.4")
    threads = options.threads
    env = os.environ | {
        "LD_PRELOAD": ":".join(str(path) for path in preload if path.exists()),
        "OMP_NUM_THREADS": str(threads),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist={list(range(threads))}".replace(
            " ", ""
        ),
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
    }
    told = {"model": str(model), "dtype": dtype}
    script = str(Path(__file__).parent / "_vllm.py")
    return Worker([str(home / "bin" / "python"), script], told, env)


class Limits(NamedTuple):
    """Of this machine, now: bytes per second, floating-point operations per second by dtype."""

    bandwidth: float
    matmul: dict[str, float]


def measure_limits(threads: int) -> Limits:
    torch.set_num_threads(threads)
    large = torch.ones(1 << 27)
    bandwidth = large.nbytes / _least_s(lambda: large.sum())
    rates = {}
    for dtype in DTYPES:
        size = 2048
        linear = Linear(torch.randn(size, size).to(getattr(torch, dtype)))
        linear.pack()
        x = torch.randn(size, size).to(getattr(torch, dtype))
        rates[dtype] = 2 * size**3 / _least_s(lambda linear=linear, x=x: linear(x))  # type: ignore[misc] # bound now
    return Limits(bandwidth, rates)


@torch.inference_mode()
def _least_s(what: Callable[[], object], repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats + 1):
        started_at = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - started_at)
    return min(seconds[1:])


def figure(workload: str, result: dict[str, Any], asked: Asked) -> float:
    """Returns a workload's figure: of W1 tokens per second, of W2 the mean milliseconds between
    tokens, of W3 the milliseconds to the first token.
    """
    assert [len(ids) for ids in result["ids"]] == [length for _, length in asked]
    if workload == "W1":
        return sum(len(prompt) + length for prompt, length in asked) / result["seconds"]
    instants = result["instants"][0]
    if workload == "W2":
        return 1e3 * (instants[-1] - instants[0]) / (len(instants) - 1)
    return 1e3 * instants[0]


def bounds(
    config: ModelConfig, dtype: str, limits: Limits, asked: dict[str, Asked]
) -> dict[str, float]:
    """Returns the figures of an engine that could not be beaten on this machine."""
    size = 4 if dtype == "float32" else 2
    table = config.vocab_size * config.hidden_size
    matrices = config.num_parameters - table * (1 if config.tied_embeddings else 2)
    per_pair = 4 * config.num_layers * config.num_heads * config.head_dim

    def seconds(name: str) -> float:
        """Returns what the arithmetic takes. The last output token is not computed with."""
        flops = 0.0
        for prompt, length in asked[name]:
            tokens = len(prompt) + length - 1
            flops += 2 * tokens * matrices + 2 * length * table + per_pair * tokens**2 / 2
        return flops / limits.matmul[dtype]

    return {
        "W1": sum(len(prompt) + length for prompt, length in asked["W1"]) / seconds("W1"),
        "W2": 1e3 * (matrices + table) * size / limits.bandwidth,
        "W3": 1e3 * seconds("W3"),
    }


def measure_all(
    workers: list[Worker], asked: dict[str, Asked], options: argparse.Namespace
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, Any]], list[Limits]]:
    """Returns figures and token ids by worker and workload, and the machine's limits in every
    round.
    """
    found: dict[str, dict[str, list[float]]] = {w.name: {} for w in workers}
    outputs: dict[str, dict[str, Any]] = {w.name: {} for w in workers}
    limits = []
    for round_ in range(options.repeats + 1):  # the first is for warming up
        limits.append(measure_limits(options.threads))
        for name, requests in asked.items():
            for worker in workers:
                result = worker.serve(requests)
                if round_:
                    found[worker.name].setdefault(name, []).append(figure(name, result, requests))
                outputs[worker.name][name] = result["ids"]
    return found, outputs, limits


def compare(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    config = open_source(model).model_config()
    asked = workloads(config.vocab_size)
    starters = [ours] + ([vllm] if options.peer else [])
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(start(model, dtype, options))
            for dtype in DTYPES
            for start in starters
        ]
        found, outputs, limits = measure_all(workers, asked, options)
    limit = Limits(
        statistics.median(one.bandwidth for one in limits),
        {d: statistics.median(one.matmul[d] for one in limits) for d in DTYPES},
    )
    medians = {n: {w: statistics.median(v) for w, v in of.items()} for n, of in found.items()}
    return {
        "model": model.name,
        "workers": [worker.about for worker in workers],
        "medians": medians,
        "spread": {n: {w: [min(v), max(v)] for w, v in of.items()} for n, of in found.items()},
        "limits": limit._asdict(),
        "bounds": {d: bounds(config, d, limit, asked) for d in DTYPES},
        "same_tokens_float32": _same(outputs, "niyama float32", "vllm float32"),
        "ratios": _ratios(medians) if options.peer else None,
    }


def _same(outputs: dict[str, dict[str, Any]], a: str, b: str) -> dict[str, float] | None:
    """Returns the share of each workload's requests for which both gave the very same tokens."""
    if b not in outputs:
        return None
    pairs = {name: zip(ids, outputs[b][name], strict=True) for name, ids in outputs[a].items()}
    return {name: statistics.mean(x == y for x, y in pair) for name, pair in pairs.items()}


def _ratios(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """Returns our figures over vLLM's, each in its better dtype."""

    def best(engine: str, workload: str) -> float:
        values = [of[workload] for name, of in medians.items() if name.startswith(engine)]
        return max(values) if workload == "W1" else min(values)

    return {name: best("niyama", name) / best("vllm", name) for name in GOALS}


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['model']}: W1 tokens/s, W2 ms between tokens, W3 ms to the first token")
    for name, of in result["medians"].items():
        print(f"  {name:18}" + "".join(f"{of[w]:12.2f}" for w in GOALS))
    limits = result["limits"]
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {d}" for d, rate in limits["matmul"].items())
    print(f"  this machine: {limits['bandwidth'] / 1e9:.1f} GB/s, {rates}")
    for name, figures in result["medians"].items():
        of = result["bounds"][name.split()[1]]
        print(
            f"  {name:18} W2 {figures['W2'] / of['W2']:.2f}x the bandwidth bound; of the matmul"
            f" rate W1 {figures['W1'] / of['W1']:.0%}, W3 {of['W3'] / figures['W3']:.0%}"
        )
    for name, ratio in (result["ratios"] or {}).items():
        print(f"  {name}: {ratio:.2f}x vLLM's (goal {GOALS[name]})")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench engine")
    parser.add_argument("--model", type=Path, action="append", help="default: the embedded one")
    parser.add_argument("--peer", type=Path, help="virtual environment with vllm in it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--chunk-size", type=int, default=2048)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the workers' ends
    results = [compare(model, options) for model in options.model or [FOLDER]]
    for result in results:
        show(result)
    machine = {"platform": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps({"bench": "engine", "machine": machine, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
