"""The cost of deciding: plan and commit, with 64 running and ever more queued requests.

    python -m tests.bench scheduler [--queued 100,1000,10000] [--iterations 2000] [--profile]

The queue is in a steady state: what finishes is replaced, and time passes as the published profile
of an A100 with Llama-3-8B predicts. Two loads: `feasible`, where all deadlines can be kept, and
`overloaded`, where many cannot and requests are relegated all the time. Prints a table, and as the
last line a JSON object; exit code 1 when the median with the longest queue exceeds 0.3 ms, or twice
the median with the shortest. Wants a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import os
import platform
import pstats
import random
import statistics
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import sortedcontainers

from engine.deciding.latency import A100_LLAMA3_8B, LatencyModel
from engine.deciding.plan import Token
from engine.deciding.policies import POLICIES
from engine.deciding.request import Importance, Request, Sampling, Targets
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig

STREAMS = 54  # that decode throughout; those of the queue bring the batch to about 64
MAX_BATCH = 66
MEDIAN_MS = 0.3
MEDIAN_RATIO = 2.0
WARM_UP = 1000
_TOKEN = Token(0)


def feasible(queued: int) -> Sequence[Targets]:
    """Returns targets that leave several times what serving the queue takes (about 0.12 s for each
    request).
    """
    return (Targets(ttft_s=0.4 * queued, tbt_s=0.05), *[Targets(ttlt_s=0.4 * queued + 60)] * 2)


def overloaded(queued: int) -> Sequence[Targets]:
    """Returns targets of which a third leaves a sixth of that time, and a third half of it."""
    ttft_s, ttlt_s = 0.02 * queued, 0.06 * queued
    return (Targets(ttft_s=ttft_s, tbt_s=0.05), Targets(ttlt_s=ttlt_s), Targets(ttlt_s=4 * ttlt_s))


LOADS = {"feasible": feasible, "overloaded": overloaded}


class Queue:
    """A scheduler whose queue is kept at one length."""

    def __init__(self, num_queued: int, policy: str, targets: Sequence[Targets]) -> None:
        config = SchedulerConfig(
            num_pages=100_000, context_len=20_000, policy=policy, max_batch_size=MAX_BATCH
        )
        self.scheduler = Scheduler(config, LatencyModel(A100_LLAMA3_8B))
        for i in range(STREAMS):
            sampling, pace = Sampling(max_tokens=19_000), Targets(ttft_s=60, tbt_s=0.1)
            self.scheduler.submit(Request(f"stream{i}", range(100), sampling, 0.0, pace), 0.0)
        self.now = 0.0
        self._targets = targets
        self._rng = random.Random(0)
        self.submit_s: list[float] = []
        self.decodes: list[int] = []
        self._submit(num_queued)

    def _submit(self, count: int) -> None:
        scheduler = self.scheduler
        for _ in range(count):
            request = _request(scheduler.totals.num_submitted, self.now, self._rng, self._targets)
            started = perf_counter()
            scheduler.submit(request, self.now)
            self.submit_s.append(perf_counter() - started)

    def iterate(self) -> float:
        """Plays one iteration, and returns the seconds that deciding it took."""
        scheduler = self.scheduler
        started = perf_counter()
        plan = scheduler.plan(self.now)
        seconds = perf_counter() - started
        assert plan is not None
        self.now += plan.predicted_s
        sampling = plan.sampling
        tokens = [_TOKEN] * len(sampling)
        started = perf_counter()
        scheduler.commit(plan, tokens, self.now)
        seconds += perf_counter() - started
        self.decodes.append(len(plan.decodes))
        left = sum(len(s.output) == 1 for s in sampling if s.prompt_len > 100)
        self._submit(left)
        return seconds


def _request(number: int, at: float, rng: random.Random, targets: Sequence[Targets]) -> Request:
    """Prompts about those of chat traces, none sharing a prefix; short outputs, for turnover."""
    first, prompt_len = number << 20, min(6000, 101 + int(rng.lognormvariate(6.5, 1.0)))
    return Request(
        id=f"r{number}",
        prompt=range(first, first + prompt_len),
        sampling=Sampling(max_tokens=min(500, 1 + int(rng.lognormvariate(3.0, 0.7)))),
        arrived_at=at,
        targets=targets[number % len(targets)],
        importance=Importance.LOW if number % 5 == 0 else Importance.NORMAL,
        application=f"a{number % 11}",
        tenant=f"t{number % 7}",
    )


def measure(queued: int, policy: str, load: str, iterations: int) -> dict[str, Any]:
    """Returns one line of the table, with times in milliseconds."""
    queue = Queue(queued, policy, LOADS[load](queued))
    for _ in range(WARM_UP):
        queue.iterate()
    queue.submit_s, queue.decodes = [], []
    times = sorted(queue.iterate() for _ in range(iterations))
    stats = queue.scheduler.stats()
    return {
        "policy": policy,
        "load": load,
        "queued": queued,
        "running": statistics.median(queue.decodes),
        "relegated": stats.num_relegated,
        "median_ms": round(1e3 * times[len(times) // 2], 4),
        "p99_ms": round(1e3 * times[int(0.99 * len(times))], 4),
        "mean_ms": round(1e3 * statistics.fmean(times), 4),
        "worst_ms": round(1e3 * times[-1], 4),
        "submit_median_ms": round(1e3 * statistics.median(queue.submit_s), 4),
    }


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "sortedcontainers": sortedcontainers.__version__,
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.machine()


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each policy and load the median with the longest queue, and its ratio to the
    median with the shortest.
    """
    found = []
    for key in sorted({(r["policy"], r["load"]) for r in rows}):
        own = sorted((r for r in rows if (r["policy"], r["load"]) == key), key=_queued)
        median, ratio = own[-1]["median_ms"], own[-1]["median_ms"] / own[0]["median_ms"]
        found.append(
            {
                "policy": key[0],
                "load": key[1],
                "median_ms": median,
                "ratio": round(ratio, 2),
                "median_ok": median <= MEDIAN_MS,
                "ratio_ok": ratio <= MEDIAN_RATIO,
            }
        )
    return found


def _queued(row: dict[str, Any]) -> int:
    return int(row["queued"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench scheduler", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--queued", default="100,1000,10000", help="lengths of the queue")
    parser.add_argument("--iterations", type=int, default=2000, help="measured, for each row")
    parser.add_argument("--policies", default="niyama", help=f"of {','.join(POLICIES)}")
    parser.add_argument("--loads", default=",".join(LOADS), help=f"of {','.join(LOADS)}")
    parser.add_argument("--profile", action="store_true", help="print where the time goes as well")
    arguments = parser.parse_args(argv)
    print(f"plan + commit, about 64 running, {arguments.iterations} iterations: {machine()}")
    rows = []
    with cProfile.Profile() if arguments.profile else contextlib.nullcontext() as profile:
        for policy in arguments.policies.split(","):
            for load in arguments.loads.split(","):
                for queued in map(int, arguments.queued.split(",")):
                    rows.append(measure(queued, policy, load, arguments.iterations))
                    print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    found = verdicts(rows)
    passed = all(v["median_ok"] and v["ratio_ok"] for v in found)
    report = {"bench": "scheduler", "machine": machine(), "rows": rows, "verdicts": found}
    print(json.dumps(report | {"passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
