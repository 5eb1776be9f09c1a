"""How true the simulator is: the live service against it, on the same requests.

    python -m tests.bench fidelity [--capacity RPS] [--duration 40] [--policy niyama]

A server that notes every iteration is sent as many requests per second as it should sustain by what
it measured of itself; from what it noted its capacity in service is estimated by simulation. Then
come three loads: light (0.4 of the capacity), at capacity, and 1.5 times that, each first with
other requests and for a shorter time. What the iterations of this took beside front end, network
and generator, and how much they strayed, becomes the simulator's profile; what a first token took
longer at the client than on the server (median) is added to every token. Then the load itself is
sent to the server and to the simulated one: the same seed, tiers and limits.

Prints attainment per tier and median TTFT side by side and, as the last line, a JSON object; exit
code 1 where an attainment differs by more than 5 points or the median TTFT by more than 20 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from loadgen.reports.progress import showing
from loadgen.scoring.modes import (
    Measurement,
    Search,
    Showing,
    measure,
    search_capacity,
    unwatched,
)
from loadgen.scoring.score import Score
from loadgen.scoring.summary import Measuring
from loadgen.targets import local_server, profiles
from loadgen.targets.live import DRAIN_S, LiveTarget
from loadgen.targets.profiles import Profile
from loadgen.targets.record import Record
from loadgen.targets.simulated import Setup, SimulatedTarget
from loadgen.targets.target import Run, Target, Watch
from loadgen.workload.arrivals import Rate
from loadgen.workload.lengths import Exact
from loadgen.workload.mix import default_lengths
from loadgen.workload.plan import Arrivals, PlannedRequest, TierLoad, Workload
from loadgen.workload.served import TargetInfo
from niyama.client import Client
from niyama.client.values import ServerInfo, Tier
from tests.bench._notes import NOTES, Note, in_service, read

LOADS = {"light": 0.4, "at capacity": 1.0, "overload": 1.5}
POINTS, TTFT_ERROR = 0.05, 0.20
# Rates below this say nothing of the scheduler: the search ends there.
GUESS_RPS = 20.0
FITTED_S = 20.0  # of each load that the simulator is fitted to
FITTED_SEED = 1000


class Side(NamedTuple):
    """One tier of one run, on the live server or the simulated one."""

    attainment: float
    ttft_p50_s: float


@dataclass(frozen=True, slots=True)
class Delayed:
    """A target whose every token arrives that much later."""

    target: SimulatedTarget
    delay_s: float = 0.0

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
    result = _served(arguments)
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps(result))
    return 0 if result["within_goal"] else 1


def _served(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        saved, notes = Path(folder) / "profile.json", Path(folder) / "notes.jsonl"
        os.environ[NOTES] = str(notes)
        flags = ["--policy", arguments.policy]
        saving = [sys.executable, "-m", "server", *flags, "--save-profile", str(saved)]
        subprocess.run(
            saving, check=True, stdout=subprocess.DEVNULL
        )  # remembered by the next start
        with local_server.serving(flags, "tests.bench._noted") as address:
            with Client(address) as client:
                info = client.server_info()
            alone = _simulated(saved, info, arguments.policy)
            fitting = Fitting(LiveTarget(address), alone.setup, notes)
            capacity = arguments.capacity
            if capacity is None:
                rate = _capacity(Delayed(alone), FITTED_SEED)
                capacity = _capacity(fitting.under(rate, FITTED_SEED), arguments.seed)
            return _compare(fitting, capacity, arguments)


class Fitting(NamedTuple):
    """A server that notes its iterations, and what it measured of itself alone."""

    live: LiveTarget
    alone: Setup
    notes: Path

    def under(self, rate: float, seed: int) -> Delayed:
        """Puts the server under that load, and returns the simulated machine as it then was."""
        began_at = time.monotonic()
        load = _workload(self.alone.profile.tiers, rate, FITTED_S, seed)
        measured = _measured(self.live, load)
        notes = [note for note in read(self.notes) if note.planned_at >= began_at]
        served = SimulatedTarget(as_served(self.alone, notes))
        return Delayed(served, on_the_way_s(measured.records))


def on_the_way_s(records: Sequence[Record]) -> float:
    """Returns the median of what a first token took longer at the client than on the server."""
    timed = [(record.ttft_s, record.server_ttft_s) for record in records]
    return statistics.median(
        client - server for client, server in timed if client is not None and server is not None
    )


def as_served(alone: Setup, notes: Sequence[Note]) -> Setup:
    """Returns the set-up with iterations as they were noted in service, instead of as the machine
    was measured alone.
    """
    before = alone.profile.latency
    profile, error = in_service(f"{before.name}, in service", notes, before.max_chunk)
    return replace(
        alone, profile=replace(alone.profile, latency=profile), predictor_error=min(error, 0.5)
    )


def _simulated(saved: Path, info: ServerInfo, policy: str) -> SimulatedTarget:
    profile: Profile = replace(
        profiles.load(str(saved)),
        kv_tokens=info.limits.kv_tokens,
        context_len=info.model.context_length,
        max_batch_size=info.limits.max_batch_size,
        tiers=info.tiers,
    )
    return SimulatedTarget(
        Setup(
            profile,
            policy,
            drain_s=DRAIN_S,
            max_requests=info.limits.max_requests,
            stated_output=Exact(),  # as what is sent to the server
        )
    )


def _workload(tiers: Sequence[Tier], rate: float, duration_s: float, seed: int) -> Workload:
    loads = tuple(
        TierLoad(tier.name, 1 / len(tiers), tier.targets, default_lengths(tier)) for tier in tiers
    )
    return Workload(Arrivals(Rate(rate, rate)), loads, duration_s, seed)


def _measured(target: Target, workload: Workload, watched: Showing = unwatched) -> Measurement:
    return measure(target, target.info(), workload, Measuring(), watched)


def _capacity(simulated: Delayed, seed: int) -> float:
    """Returns the requests per second that the simulated machine sustains over five minutes."""
    search = Search(GUESS_RPS, repeats=1)
    workload = _workload(simulated.info().tiers, GUESS_RPS, 300.0, seed)
    capacity, _ = search_capacity(lambda load, _: _measured(simulated, load), workload, search)
    return capacity.passed


def _compare(fitting: Fitting, capacity: float, arguments: argparse.Namespace) -> dict[str, Any]:
    out, tiers = Console(), fitting.alone.profile.tiers
    table = Table("load", "tier", "on time live", "simulated", "TTFT p50 live", "simulated", "")
    runs: dict[str, Any] = {}
    for index, (name, factor) in enumerate(LOADS.items(), 1):
        simulated = fitting.under(capacity * factor, FITTED_SEED + index)
        workload = _workload(tiers, capacity * factor, arguments.duration, arguments.seed)
        targets = (fitting.live, simulated)
        sides = [_measured(target, workload, partial(showing, out)).summary for target in targets]
        runs[name] = {
            "rps": capacity * factor,
            "invalid": sides[0].invalid,
            "on_the_way_ms": round(1e3 * simulated.delay_s, 2),
            "iterations_stray": round(simulated.target.setup.predictor_error, 3),
            "tiers": {},
        }
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
