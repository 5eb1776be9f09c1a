"""How fast simulations are: processor time of a run, by its parts and by the size of the batch.

    python -m tests.bench simulator [--requests 5000] [--loads code,fleet,chat] [--policy niyama]

On the published A100 profile, with the lengths of the Azure and ShareGPT traces (lognormal by the
published quantiles where a trace is absent) and the paper's tiers:

    code    3.5 requests/s of Azure-Code on one replica: many short outputs, small batches
    fleet   the same on 10 replicas, 35 requests/s
    chat    2 requests/s of ShareGPT lengths on one replica, overloaded: large batches

What is measured is what a run costs, from the plan of its requests to its figures. Another run of
the same says what an iteration costs, its commands and records included, by the number of its
decodes. Time is that of the processor, so that other processes disturb little. The last line is
JSON; exit code 1 when 100,000 requests of `code` would take more than 30 s.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from time import process_time
from typing import Any

from engine.deciding.pace import PaceConfig
from engine.deciding.plan import Plan
from engine.deciding.policies import POLICIES
from engine.simulator import Replica
from loadgen.paper.contender import Contender
from loadgen.paper.load import Load, source_of
from loadgen.scoring.summary import summarise
from loadgen.targets.series import SeriesRecorder
from loadgen.targets.simulated import SimulatedTarget, uncollected
from loadgen.workload.plan import plan

GOAL_S = 30.0  # for 100,000 requests of `code`
LOADS = {
    "code": (Load("azure-code", rate="3.5"), 1),
    "fleet": (Load("azure-code", rate="35"), 10),
    "chat": (Load("sharegpt", rate="2"), 1),
}
BATCHES = {"0 to 4": 4, "5 to 16": 16, "17 to 64": 64, "more": math.inf}  # by decodes


class _Stopwatch(SeriesRecorder):
    """Takes the time from the start of each iteration to that of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: dict[str, list[float]] = {batch: [] for batch in BATCHES}
        self._batch = ""
        self._at = 0.0

    def observe(self, replica: Replica, plan: Plan) -> None:
        now = process_time()
        if self._batch:
            self.spent[self._batch].append(now - self._at)
        self._batch = next(name for name, most in BATCHES.items() if len(plan.decodes) <= most)
        self._at = process_time()


def measure(name: str, policy: str, num_requests: int) -> dict[str, Any]:
    """Returns one line of the table."""
    load, replicas = LOADS[name]
    hours = num_requests / float(load.rate) / 3600
    workload = replace(load, hours=hours).workload()
    target = SimulatedTarget(
        Contender(policy, replicas=replicas, max_gap=PaceConfig().max_gap).setup()
    )
    with uncollected():
        started = process_time()
        requests = list(islice(plan(workload), num_requests))
        planned = process_time()
        run = target.run(requests, lambda progress: None)
        served = process_time()
        tiers = [tier.tier for tier in workload.tiers]
        summarise(tiers, workload.duration_s, target.info(), run)
        scored = process_time()
        watch = _Stopwatch()
        target.run(requests, lambda progress: None, watch)
    count = len(requests)
    return {
        "load": name,
        "policy": policy,
        "lengths": source_of(load.lengths),
        "requests": count,
        "seconds": round(scored - started, 2),
        "us_per_request": round(1e6 * (scored - started) / count),
        "us_to_plan": round(1e6 * (planned - started) / count, 1),
        "us_to_serve": round(1e6 * (served - planned) / count, 1),
        "us_to_score": round(1e6 * (scored - served) / count, 1),
        "us_per_iteration": {
            batch: round(1e6 * statistics.fmean(spent), 1)
            for batch, spent in watch.spent.items()
            if spent
        },
        "iterations": sum(len(spent) for spent in watch.spent.values()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench simulator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--requests", type=int, default=5000, help="of each load")
    parser.add_argument("--loads", default=",".join(LOADS), help=f"of {','.join(LOADS)}")
    parser.add_argument("--policy", default="niyama", choices=POLICIES)
    arguments = parser.parse_args(argv)
    rows = []
    for name in arguments.loads.split(","):
        rows.append(measure(name, arguments.policy, arguments.requests))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    seconds = {row["load"]: row["us_per_request"] / 10 for row in rows}  # for 100,000 requests
    passed = seconds.get("code", 0.0) <= GOAL_S
    print(json.dumps({"bench": "simulator", "rows": rows, "goal_s": GOAL_S, "passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
