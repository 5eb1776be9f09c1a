"""Whether a long mixed run compiles anything after warm-up, or grows.

    python -m tests.bench endurance [--minutes 10] [--rps 6]

`python -m server` with its defaults and `python -m loadgen` with all three tiers, prompts from a
few tokens to thousands, some calls cancelled. Every ten seconds the metric
niyama_engine_compilations and the resident memory of the service's processes are noted. Prints
these and one line of JSON last; exit code 1 where something was compiled, a request was lost, or
the memory at the end is more than 5 % above that after a third of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

GROWTH = 0.05
PERIOD_S = 10.0
WARM_SHARE = 1 / 3  # of the run, in which memory may grow to its level


def resident_mib(pid: int) -> float:
    """Returns the MiB of memory that a process has, and all that it started."""
    root = psutil.Process(pid)
    return sum(p.memory_info().rss for p in [root, *root.children(recursive=True)]) / 2**20


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    pairs = re.findall(r"^(niyama_\w+?)(?:_total)? ([0-9.e+]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in pairs}


def observe(server: int, port: int, load: subprocess.Popen[bytes]) -> list[dict[str, float]]:
    started_at, seen = time.monotonic(), []
    while load.poll() is None:
        try:
            load.wait(PERIOD_S)
        except subprocess.TimeoutExpired:
            now = metrics(port)
            seen.append(
                {
                    "seconds": time.monotonic() - started_at,
                    "resident_mib": resident_mib(server),
                    "compilations": now["niyama_engine_compilations"],
                    "iterations": now["niyama_iteration_seconds_count"],
                    "finished": now["niyama_sequences_finished"],
                }
            )
            print(json.dumps({k: round(v, 1) for k, v in seen[-1].items()}), flush=True)
    return seen


def run(arguments: argparse.Namespace, folder: Path) -> tuple[list[dict[str, float]], Any]:
    port, report = arguments.metrics_port, folder / "report.json"
    server = subprocess.Popen(
        [sys.executable, "-m", "server", "--until-eof", "--port", "0", "--metrics-port", str(port)],
        stdin=subprocess.PIPE,  # it ends with this process
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        ready = re.search(r"ready on (\S+):(\d+)", server.stdout.readline())
        assert ready, "the server did not become ready"
        flags = f"""--target 127.0.0.1:{ready[2]} --rps {arguments.rps}
            --duration {60 * arguments.minutes}s --prompt-tokens 150/1500 --output-tokens 20/60
            --cancel-rate 0.05 --max-lag 5s --json {report}"""
        load = subprocess.Popen([sys.executable, "-m", "loadgen", *flags.split()])
        seen = observe(server.pid, port, load)
        return seen, json.loads(report.read_text())
    finally:
        server.terminate()
        server.wait()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench endurance")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rps", type=float, default=6)
    parser.add_argument("--metrics-port", type=int, default=19464)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        seen, report = run(arguments, Path(folder))
    warm = [one for one in seen if one["seconds"] >= WARM_SHARE * seen[-1]["seconds"]]
    level, last = warm[0]["resident_mib"], warm[-1]["resident_mib"]
    total = report["runs"][0]["total"]
    lost = total["num_failed"] + total["num_unfinished"]
    result = {
        "bench": "endurance",
        "minutes": arguments.minutes,
        "rps": arguments.rps,
        "iterations": seen[-1]["iterations"],
        "finished": seen[-1]["finished"],
        "lost": lost,
        "compilations": max(one["compilations"] for one in seen),
        "resident_mib_after_a_third": round(level, 1),
        "resident_mib_at_the_end": round(last, 1),
        "growth": round(last / level - 1, 4),
        "machine": f"{os.cpu_count()} cores, torch {torch.__version__}",
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result))
    is_flat = last <= (1 + GROWTH) * level
    return 0 if is_flat and not lost and not result["compilations"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
