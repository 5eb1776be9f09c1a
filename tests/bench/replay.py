"""How true a replay is: a live server's decision log against a simulation of that very log.

    python -m tests.bench replay [--capacity RPS] [--duration 20]

A server with a decision log is sent 0.8, 1.2 and 3 times the requests per second that it should
sustain (found by simulation on the log of a short load before, unless it is given): each of one of
two tenants, one in twenty leaves early, and every call has a deadline of its own. Then
`python -m loadgen --replay LOG --simulate log` runs what the log says of the requests on what it
says of the engine.

Prints attainment per tier, as the log has it and as simulated, and, as the last line, a JSON
object; exit code 1 where they differ by more than 5 points in a tier.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadgen import cli
from loadgen.targets import local_server

LOADS = (0.8, 1.2, 3.0)
POINTS = 0.05
FITTED_RPS, FITTED_S = 15.0, 10.0
DRAIN_S = 40.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench replay", description=__doc__)
    parser.add_argument("--capacity", type=float, help="requests/s; not given: by simulation")
    parser.add_argument("--duration", type=float, default=20.0, help="seconds per load")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = _measured(Path(folder), arguments)
    print(json.dumps(result))
    return 0 if result["within_goal"] else 1


def _measured(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    capacity = arguments.capacity
    if capacity is None:
        log = _served(folder / "fitted", FITTED_RPS, FITTED_S, arguments.seed + 1)
        flags = ["--rps", f"{FITTED_RPS}", "--find-capacity", "--repeats", "1"]
        searched = _loadgen(folder, ["--replay", str(log), "--simulate", "log", *flags])
        capacity = searched["capacity"]["passed_rps"]
    table = Table("load", "tier", "sent", "on time live", "simulated", "")
    loads: dict[str, Any] = {}
    for factor in LOADS:
        rps = capacity * factor
        log = _served(folder / f"at-{factor}", rps, arguments.duration, arguments.seed)
        (run,) = _loadgen(folder, ["--replay", str(log), "--simulate", "log"])["runs"]
        simulated = {each["group"]: each for each in (*run["by_tier"], run["total"])}
        tiers: dict[str, Any] = {}
        for live in run["log"]["by_tier"]:
            group, sent = live["group"], sum(live["fates"].values())
            shares = live["attainment"] or 0.0, simulated[group]["attainment"] or 0.0
            tiers[group] = {"sent": sent, "live": shares[0], "simulated": shares[1]}
            cells = [f"{share:.1%}" for share in shares]
            table.add_row(f"{rps:.1f}/s", group, str(sent), *cells, "off" * (not _near(*shares)))
        loads[f"{factor:g}"] = {"rps": rps, "tiers": tiers}
    Console().print(table)
    return {
        "benchmark": "replay",
        "capacity_rps": capacity,
        "within_goal": all(
            _near(tier["live"], tier["simulated"])
            for load in loads.values()
            for tier in load["tiers"].values()
        ),
        "loads": loads,
    }


def _served(log: Path, rps: float, duration_s: float, seed: int) -> Path:
    """Sends a server that load; returns its decision log."""
    with local_server.serving(["--decision-log", str(log)]) as address:
        flags = ["--target", address, "--rps", f"{rps}", "--duration", f"{duration_s}s"]
        flags += ["--tenants", "a:0.5,b:0.5", "--cancel-rate", "0.05", "--timeout", "30s"]
        _loadgen(log.parent, [*flags, "--seed", str(seed), "--drain", f"{DRAIN_S}s"])
    return log


def _loadgen(folder: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Runs the load generator; returns its figures."""
    out = folder / "figures.json"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = cli.main([*flags, "--json", str(out)])
    if status:
        raise RuntimeError(f"loadgen {' '.join(flags)} ended with {status}: {said.getvalue()}")
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


def _near(live: float, simulated: float) -> bool:
    return abs(live - simulated) <= POINTS
