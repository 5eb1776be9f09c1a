"""All policies on the live service: the same requests to each, at a load that is found first.

    python -m tests.bench policies [--load 1.2] [--duration 25]
    python -m tests.bench policies --low 0.2 --load 2      # a fifth of low importance, overload

Finds what first-come-first-served sustains on this machine, then offers `--load` times that to a
fresh server of each policy, the published rivals among them, one after the other. Short deadlines,
so that a run of half a minute says something: interactive 0.5 s / 50 ms, standard 5 s, batch 15 s.
Lengths have the heavy tail of production prompts (p50 150, p90 700 tokens). Prints every table, and
a JSON line last: who was late, the tail of the first tokens, and what promises at admission were
worth. Takes 8 minutes on 2 cores that are idle; of each policy at most the start of a server, and
`--duration` and `--drain`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.deciding.policies import POLICIES
from loadgen.cli import main as loadgen
from loadgen.targets import local_server

TIERS = """
default_tier = "interactive"
[tiers.interactive]
ttft_s = 0.5
tbt_s = 0.05
[tiers.standard]
ttlt_s = 5
[tiers.batch]
ttlt_s = 15
"""
# Generator, front end and engine share the machine's cores; what the generator lags counts against
# every policy alike, as latencies run from the scheduled instant.
MAX_LAG = ("--max-lag", "250ms")
LENGTHS = ("--prompt-tokens", "150/700", "--output-tokens", "20/48")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench policies", description=__doc__)
    parser.add_argument("--load", type=float, default=1.2, help="times the capacity of fcfs")
    parser.add_argument("--capacity", type=float, help="requests/s; not given: it is searched")
    parser.add_argument("--duration", type=float, default=25.0, help="seconds per policy")
    parser.add_argument("--drain", type=float, default=30.0, help="seconds for the last answers")
    parser.add_argument("--policies", default=",".join(POLICIES), help="default: all")
    parser.add_argument("--low", type=float, default=0.0, help="share of low importance")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "tiers.toml"
        config.write_text(TIERS)
        flags = ["--config", str(config)]
        capacity = arguments.capacity or _capacity(flags, folder, arguments.seed)
        report = _compare(flags, folder, arguments, capacity * arguments.load)
    result = {
        "benchmark": "policies",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "fcfs_capacity_rps": capacity,
        "offered_rps": capacity * arguments.load,
        "low_importance_share": arguments.low,
        "policies": {run["name"]: _figures(run) for run in report["runs"]},
    }
    print(json.dumps(result))
    lost = sum(figures["lost"] for figures in result["policies"].values())
    return 1 if lost or len(result["policies"]) < len(arguments.policies.split(",")) else 0


def _capacity(flags: list[str], folder: str, seed: int) -> float:
    """Requests/s that fcfs serves with at most 1 % late."""
    path = f"{folder}/capacity.json"
    with local_server.serving([*flags, "--policy", "fcfs"]) as address:
        search = ["--find-capacity", "--repeats", "1", "--precision", "0.15", "--duration", "15"]
        run = ["--target", address, "--rps", "15", "--seed", str(seed), "--json", path]
        status = loadgen([*search, *run, *LENGTHS, *MAX_LAG])
    if status:
        raise SystemExit(f"the search for capacity failed with status {status}")
    return float(json.loads(Path(path).read_text())["capacity"]["passed_rps"])


def _compare(
    flags: list[str], folder: str, arguments: argparse.Namespace, rate: float
) -> dict[str, Any]:
    path = f"{folder}/compare.json"
    load = ["--rps", f"{rate:.4g}", "--duration", str(arguments.duration)]
    load += ["--drain", str(arguments.drain)]
    if arguments.low:
        load += ["--importance", f"low:{arguments.low},normal:{1 - arguments.low}"]
    compare = ["--compare", arguments.policies, "--server-flags", shlex.join(flags)]
    measuring = [*MAX_LAG, "--seed", str(arguments.seed), "--json", path]
    status = loadgen([*compare, *load, *LENGTHS, *measuring])
    if status:
        raise SystemExit(f"the comparison failed with status {status}")
    report: dict[str, Any] = json.loads(Path(path).read_text())
    return report


def _figures(run: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures that one policy's run comes to."""
    scores = {score["group"]: score for part in ("by_tier", "by_importance") for score in run[part]}
    long = next(score for score in run["by_prompt"] if score["group"] == "long")
    total, promises = run["total"], run["total"]["promises"]
    interactive = scores["interactive"]
    rejected = total["num_rejected"] if run["name"] == "edf-reject" else 0  # others reject nobody
    return {
        "on_time": total["attainment"],
        "late_of_interactive": round(1 - (interactive["attainment"] or 0.0), 4),
        "ttft_p99_ms_of_interactive": round(1e3 * (interactive["ttft_s"]["p99"] or 0)),
        "promises_broken": promises["broken_share"],
        "late_foretold": promises["recall_late"],
        "on_time_by": {name: score["attainment"] for name, score in scores.items()},
        "worst_gap_ms": round(1e3 * (total["worst_gap_s"] or 0)),
        "ttft_p99_ms_of_long_prompts": round(1e3 * (long["ttft_s"]["p99"] or 0)),
        "relegated": total["num_relegated"],
        "sent": total["num_sent"],
        "rejected": rejected,
        "lost": total["num_sent"] - total["num_finished"] - total["num_cancelled"] - rejected,
        "invalid": run["invalid"],
    }
