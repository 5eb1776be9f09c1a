"""How true the simulator is: the live service against it, on the same requests.

    python -m tests.bench fidelity [--capacity RPS] [--duration 40] [--policy niyama]

Starts a server, which saves what it measured of this machine, and finds by simulation what the
machine sustains. Then three loads (light, 0.4 of that; at capacity; 1.5 times as much) are sent to
the live server and to the simulated one: the same seed, tiers and limits. Prints attainment per
tier and median TTFT side by side and, as the last line, a JSON object; exit code 1 where an
attainment differs by more than 5 points or the median TTFT of all by more than 20 %.

The simulator knows what an iteration took when the machine was measured, alone. What service adds
is measured before the runs: what a token takes to come out (network, front end, generator) with
single requests, and what iterations take longer beside all that, from the gaps between tokens under
a light load. Both are added to the simulation, and printed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from client import Client
from client.values import ServerInfo, Tier
from loadgen import local_server, profiles
from loadgen.arrivals import Rate
from loadgen.live import LiveTarget
from loadgen.mix import default_lengths
from loadgen.modes import Measurement, Measuring, Search, measure, search_capacity
from loadgen.profiles import Profile
from loadgen.score import Score
from loadgen.simulated import Setup, SimulatedTarget
from loadgen.target import Run, Target, TargetInfo, Watch
from loadgen.workload import Arrivals, PlannedRequest, TierLoad, Workload

LOADS = {"light": 0.4, "at capacity": 1.0, "overload": 1.5}
POINTS, TTFT_ERROR = 0.05, 0.20
# Rates below this say nothing of the scheduler: the search ends there.
GUESS_RPS = 20.0
PROBES = 30
LIGHT_RPS, LIGHT_S = 8.0, 15.0


class Side(NamedTuple):
    """One tier of one run, on the live server or the simulated one."""

    attainment: float
    ttft_p50_s: float


@dataclass(frozen=True, slots=True)
class Delayed:
    """A target whose every token arrives that much later."""

    target: SimulatedTarget
    delay_s: float

    def slower(self, seconds: float) -> Delayed:
        """With iterations that take that much longer."""
        setup = self.target.setup
        slower = replace(setup, profile=setup.profile.with_overhead(seconds))
        return replace(self, target=SimulatedTarget(slower))

    def info(self) -> TargetInfo:
        return self.target.info()

    def run(self, requests: Iterable[PlannedRequest], watch: Watch) -> Run:
        run = self.target.run(requests, watch)
        for record in run.records:
            record.token_at = array("d", [at + self.delay_s for at in record.token_at])
            if record.ended_at is not None:
                record.ended_at += self.delay_s
        return run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench fidelity", description=__doc__)
    parser.add_argument("--capacity", type=float, help="requests/s; not given: by simulation")
    parser.add_argument("--duration", type=float, default=40.0, help="seconds per run")
    parser.add_argument("--policy", default="niyama")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "profile.json"
        flags = ["--policy", arguments.policy, "--save-profile", str(saved)]
        with local_server.serving(flags) as address:
            info, delay_s = _probe(address)
            live = LiveTarget(address)
            simulated = _simulated(saved, info, arguments.policy, delay_s)
            overhead_s = _overhead_s(live, simulated, info.tiers)
            simulated = simulated.slower(overhead_s)
            capacity = arguments.capacity or _capacity(simulated, info.tiers, arguments.seed)
            result = _compare(live, simulated, info.tiers, capacity, arguments)
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    result["outside_the_engine_ms"] = round(1e3 * delay_s, 2)
    result["more_per_iteration_ms"] = round(1e3 * overhead_s, 2)
    print(json.dumps(result))
    return 0 if result["within_goal"] else 1


def _probe(address: str) -> tuple[ServerInfo, float]:
    """What the server says of itself, and what a first token takes beyond the server's own TTFT:
    the median over single requests."""
    with Client(address) as client:
        info = client.server_info()
        beyond = [_beyond_s(client) for _ in range(PROBES)]
    return info, statistics.median(beyond)


def _beyond_s(client: Client) -> float:
    started_at = time.monotonic()
    first_at = None
    with client.generate([300] * 60, max_tokens=4, ignore_eos=True) as stream:
        for _ in stream:
            first_at = first_at or time.monotonic()
    assert first_at is not None
    assert stream.finished is not None
    assert stream.finished.timings.ttft is not None
    return max(0.0, first_at - started_at - stream.finished.timings.ttft)


def _simulated(saved: Path, info: ServerInfo, policy: str, delay_s: float) -> Delayed:
    profile: Profile = replace(
        profiles.load(str(saved)),
        kv_tokens=info.limits.kv_tokens,
        context_len=info.model.context_length,
        max_batch_size=info.limits.max_batch_size,
        tiers=info.tiers,
    )
    setup = Setup(profile, policy, drain_s=60.0, max_requests=info.limits.max_requests)
    return Delayed(SimulatedTarget(setup), delay_s)


def _workload(tiers: Sequence[Tier], rate: float, duration_s: float, seed: int) -> Workload:
    loads = tuple(
        TierLoad(tier.name, 1 / len(tiers), tier.targets, default_lengths(tier)) for tier in tiers
    )
    return Workload(Arrivals(Rate(rate, rate)), loads, duration_s, seed)


def _measured(target: Target, workload: Workload, out: Console) -> Measurement:
    return measure(target, target.info(), workload, Measuring(), out)


def _overhead_s(live: Target, simulated: Target, tiers: Sequence[Tier]) -> float:
    """What lies between the median gaps of a light load, live and simulated."""
    workload = _workload(tiers, LIGHT_RPS, LIGHT_S, seed=1000)
    out = Console(file=io.StringIO())
    lived, played = (
        _measured(target, workload, out).summary.total.tbt.p50 for target in (live, simulated)
    )
    return max(0.0, (lived or 0.0) - (played or 0.0))


def _capacity(simulated: Delayed, tiers: Sequence[Tier], seed: int) -> float:
    """What the simulated machine sustains over five minutes."""
    out = Console(file=io.StringIO())
    search = Search(GUESS_RPS, repeats=1)
    workload = _workload(tiers, GUESS_RPS, 300.0, seed)
    capacity, _ = search_capacity(lambda load, _: _measured(simulated, load, out), workload, search)
    return capacity.passed


def _compare(
    live: Target,
    simulated: Target,
    tiers: Sequence[Tier],
    capacity: float,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    out = Console()
    table = Table("load", "tier", "on time live", "simulated", "TTFT p50 live", "simulated", "")
    runs: dict[str, Any] = {}
    for name, factor in LOADS.items():
        workload = _workload(tiers, capacity * factor, arguments.duration, arguments.seed)
        sides = [_measured(target, workload, out).summary for target in (live, simulated)]
        runs[name] = {"rps": capacity * factor, "invalid": sides[0].invalid, "tiers": {}}
        lines = [(side.total, *side.by_tier) for side in sides]
        for lived, played in zip(*lines, strict=True):
            ours = (_side(lived), _side(played))
            runs[name]["tiers"][lived.group] = [side._asdict() for side in ours]
            table.add_row(f"{name}, {capacity * factor:.1f}/s", lived.group, *_cells(*ours))
    out.print(table)
    agrees = all(
        _near(Side(**a), Side(**b)) and (group != "all" or _as_quick(Side(**a), Side(**b)))
        for run in runs.values()
        for group, (a, b) in run["tiers"].items()
    )
    return {
        "benchmark": "fidelity",
        "policy": arguments.policy,
        "capacity_rps": capacity,
        "within_goal": agrees,
        "loads": runs,
    }


def _side(score: Score) -> Side:
    return Side(score.attainment or 0.0, score.ttft.p50 or 0.0)


def _cells(live: Side, simulated: Side) -> list[str]:
    return [
        f"{live.attainment:.1%}",
        f"{simulated.attainment:.1%}",
        f"{live.ttft_p50_s * 1e3:.0f} ms",
        f"{simulated.ttft_p50_s * 1e3:.0f} ms",
        "" if _near(live, simulated) and _as_quick(live, simulated) else "off",
    ]


def _near(live: Side, simulated: Side) -> bool:
    return abs(live.attainment - simulated.attainment) <= POINTS


def _as_quick(live: Side, simulated: Side) -> bool:
    return abs(simulated.ttft_p50_s - live.ttft_p50_s) <= TTFT_ERROR * live.ttft_p50_s
