"""Whether an operator is told of overload, and of a machine that has become slow.

    python -m tests.bench saturation [--seconds 60] [--hogs 4] [--rps 4]

First the simulated A100 with three kinds of load, from a third to three times what it can do: what
`niyama_demand_ratio` says at the end, beside the share of time in which the engine computes, and
how many prompts of average length it gets done. Then what an answer to the metrics' question costs
the engine with ever longer queues, in processor time. Last a real server under load, undisturbed,
with so many CPU hogs beside it (processes that only count, ended after the measurement), and after
them: what `niyama_speed_ratio` says, and actual over predicted, which the engine learns to keep
near 1.

Prints tables, and as the last line a JSON object. Exit code 1 when a load below 0.7 of what can be
done is told to be above 1 or one above 1.3 is not, when the longest queue makes the answer cost
twice as much as the shortest, or when the hogs do not show in the speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.deciding.request import BEST_EFFORT, Importance, Request, Targets
from engine.deciding.stats import TierAsked
from engine.simulator import Arrival, simulate
from tests.bench.scheduler import Queue, feasible
from tests.engine.deciding.parts import interactive, make_replica, make_request, poisson
from tests.server_process import ServerProcess

URGENT = interactive(2.0, 0.1)
PROMPT = 500
FACTORS = (0.3, 0.5, 0.7, 1.0, 1.3, 2.0, 3.0)
TIERS = (
    TierAsked("interactive", Targets(ttft_s=1.0, tbt_s=0.05), Importance.NORMAL),
    TierAsked("standard", Targets(ttlt_s=10.0), Importance.NORMAL),
    TierAsked("batch", Targets(ttlt_s=60.0), Importance.NORMAL),
)
_HOG = "while True: pass"


class Load(NamedTuple):
    """Requests of 200 to 800 prompt tokens, PROMPT on average."""

    name: str
    output: int
    targets: Targets
    limits: dict[str, int]


LOADS = (
    Load("streams", 20, URGENT, {}),
    Load("prompts, best effort", 5, BEST_EFFORT, {}),
    Load("decodes, 8 at a time", 100, URGENT, {"max_batch_size": 8}),
)


def requests(load: Load, rate: float, seconds: float) -> Iterator[Request]:
    rng = random.Random(0)
    for i, at in enumerate(poisson(rate, seconds, rng)):
        yield make_request(f"r{i}", rng.randint(200, 800), load.output, at, load.targets)


def run(load: Load, rate: float, seconds: float) -> dict[str, float]:
    replica = make_replica(**load.limits)  # type: ignore[arg-type] # any field of the configuration
    arrivals = map(Arrival, requests(load, rate, seconds))
    for _ in simulate(arrivals, [replica]):
        if replica.now >= seconds - 1:
            break
    stats = replica.scheduler.stats()
    return {
        "demand_ratio": round(replica.scheduler.flow.ratio(replica.now), 3),
        "busy": round(stats.iterations.total / replica.now, 3),
        # Not those that were finished: under an overload these are the short ones.
        "prompts_per_s": round(stats.totals.prefill_tokens / PROMPT / replica.now, 2),
    }


def loads(seconds: float) -> list[dict[str, Any]]:
    rows = []
    for load in LOADS:
        most = run(load, 60.0 if load.output < 100 else 12.0, seconds)["prompts_per_s"]
        for factor in FACTORS:
            row = {"load": load.name, "of_capacity": factor, **run(load, factor * most, seconds)}
            rows.append(row)
            print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return rows


def answers() -> list[dict[str, Any]]:
    """What the answer costs with queues of these lengths, in milliseconds of processor time."""
    rows = []
    for queued in (100, 1000, 10_000):
        queue = Queue(queued, "niyama", feasible(queued))
        for _ in range(200):
            queue.iterate()
        times = []
        for _ in range(100):
            started = time.thread_time()
            queue.scheduler.stats()
            queue.scheduler.saturation(TIERS, queue.now)
            times.append(time.thread_time() - started)
        rows.append({"queued": queued, "answer_ms": round(1e3 * statistics.median(times), 3)})
        print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    return rows


class Live:
    """A server under load, and what its metrics say."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._before = self._scrape()

    def _scrape(self) -> dict[str, float]:
        with urllib.request.urlopen(self._url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def look(self, phase: str) -> dict[str, Any]:
        """Returns what is said now, and since the last look."""
        before, now = self._before, self._scrape()
        self._before = now

        def since(name: str) -> float:
            return now[name] - before[name]

        actual = since("niyama_iteration_seconds_sum")
        row = {
            "phase": phase,
            "speed_ratio": round(now["niyama_speed_ratio"], 3),
            "actual_over_predicted": round(
                actual / since("niyama_iteration_predicted_seconds_total"), 3
            ),
            "iteration_ms": round(1e3 * actual / since("niyama_iteration_seconds_count"), 2),
            "demand_ratio": round(now["niyama_demand_ratio"], 2),
        }
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        return row


@contextlib.contextmanager
def hogs(number: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", _HOG]) for _ in range(number)]
    try:
        yield
    finally:
        for hog in running:
            hog.kill()
            hog.wait()


def slow_machine(seconds: float, number: int, rps: float, port: int) -> list[dict[str, Any]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(
            Path(folder) / "log", "--metrics-port", str(port), "--calibration-s", "8"
        ) as server,
    ):
        server.wait_ready()
        flags = f"--target {server.address} --rps {rps} --duration {3 * seconds + 30}s"
        load = subprocess.Popen(
            [sys.executable, "-m", "loadgen", *flags.split()], stdout=subprocess.DEVNULL
        )
        try:
            time.sleep(10)  # until the load generator sends
            live, rows = Live(port), []
            time.sleep(seconds)
            rows.append(live.look("undisturbed"))
            with hogs(number):
                time.sleep(seconds)
                rows.append(live.look(f"{number} hogs"))
            time.sleep(seconds)
            rows.append(live.look("after"))
            return rows
        finally:
            load.kill()
            load.wait()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench saturation")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each simulation and phase")
    parser.add_argument("--hogs", type=int, default=4, help="processes beside the server")
    parser.add_argument("--rps", type=float, default=4.0, help="of the real server's load")
    parser.add_argument("--metrics-port", type=int, default=19465)
    arguments = parser.parse_args(argv)
    simulated, costs = loads(arguments.seconds), answers()
    live = slow_machine(arguments.seconds, arguments.hogs, arguments.rps, arguments.metrics_port)
    result = {"bench": "saturation", "loads": simulated, "answers": costs, "live": live}
    misjudged = [
        row
        for row in simulated
        if (row["of_capacity"] <= 0.7 and row["demand_ratio"] > 1)
        or (row["of_capacity"] >= 1.3 and row["demand_ratio"] <= 1)
    ]
    is_flat = costs[-1]["answer_ms"] <= 2 * costs[0]["answer_ms"]
    shows = live[1]["speed_ratio"] < 0.8 * min(live[0]["speed_ratio"], live[2]["speed_ratio"])
    passed = not misjudged and is_flat and shows
    print(json.dumps(result | {"passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
