"""Whether a simulated fleet is one: two live servers behind a router, and the same in simulation.

    python -m tests.bench fleet [--duration 60] [--chats 0.8] [--batch 1.5] [--slow 5]

The servers are real, but for engines whose iterations last as long as a profile says: two that
compute would take each other's cores. The load generator is the router before them, and asks each
for its load once a second. Chats are sent at a part of what both sustain (`--chats`), and batch
goes past the router to the first server, at so many times what that sustains by itself (`--batch`),
so that it has an ever longer backlog. The same requests go to a simulated fleet with that profile.
All times are longer by the same factor (`--slow`), which makes the way between generator and server
small beside them.

Prints for each routing how many chats were on time, live and simulated, every one that was sent
counted, and as the last line a JSON object; exit code 1 where they differ by more than 5 points.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from loadgen.scoring.modes import Measurement, Search, measure, search_capacity
from loadgen.scoring.summary import Measuring
from loadgen.targets import local_server
from loadgen.targets.live import LiveTarget
from loadgen.targets.simulated import Setup, SimulatedTarget
from loadgen.targets.target import Target
from loadgen.workload.arrivals import Rate
from loadgen.workload.lengths import Exact, Independent, Lognormal
from loadgen.workload.plan import Arrivals, TierLoad, Workload
from niyama.client import Client
from niyama.client.values import ServerInfo
from tests.bench._priced import SLOW
from tests.bench.attainment import profile_of

LENGTHS = {
    "chat": Independent(Lognormal(60, 150), Lognormal(20, 48)),
    "batch": Independent(Lognormal(100, 240), Lognormal(32, 80)),
}
TIERS = "[tiers.chat]\nttft_s = {}\ntbt_s = {}\n[tiers.batch]\nttlt_s = 3600\n"
TTFT_S, TBT_S = 0.5, 0.05  # of an engine that is not slowed
GUESS_RPS = 20.0
DRAIN_S = 15.0  # batch goes on after that
POINTS = 0.05
ROUTINGS = "round-robin,least-tokens,least-load,qos"


class Side(NamedTuple):
    """Chats of one run."""

    num_sent: int
    on_time: float
    ttft_p99_s: float | None
    by_server: list[int]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and says by the exit code whether both agree."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench fleet", description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds per run")
    parser.add_argument("--chats", type=float, default=0.8, help="of what both servers sustain")
    parser.add_argument("--batch", type=float, default=1.5, help="times what one sustains")
    parser.add_argument("--slow", type=float, default=5.0, help="times as slow, all of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--routings", default=ROUTINGS)
    arguments = parser.parse_args(argv)
    os.environ[SLOW] = str(arguments.slow)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tiers = folder / "tiers.toml"
        tiers.write_text(TIERS.format(TTFT_S * arguments.slow, TBT_S * arguments.slow))
        flags = ["--config", str(tiers)]
        servers = [
            stack.enter_context(local_server.serving(flags, "tests.bench._priced"))
            for _ in range(2)
        ]
        result = _compare(servers, arguments)
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps(result))
    return 0 if result["within_goal"] else 1


def _compare(servers: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    with Client(servers[0]) as client:
        info = client.server_info()
    rates = {
        "chat": 2 * arguments.chats * _sustained(info, "chat", arguments),
        "batch": arguments.batch * _sustained(info, "batch", arguments),
    }
    load = _workload(info, rates, arguments.duration, arguments.seed)
    columns = ("chats", "on time live", "simulated", "TTFT p99 live", "simulated")
    table = Table("routing", *columns, "by server live", "simulated", "")
    runs, agrees = {}, True
    for routing in arguments.routings.split(","):
        live, simulated = (
            _side(measure(target, target.info(), load, Measuring()), names)
            for target, names in _targets(servers, info, routing, arguments)
        )
        is_near = abs(live.on_time - simulated.on_time) <= POINTS
        agrees &= is_near and live.num_sent == simulated.num_sent
        runs[routing] = {"live": live._asdict(), "simulated": simulated._asdict()}
        table.add_row(
            routing,
            str(live.num_sent),
            *(f"{each.on_time:.1%}" for each in (live, simulated)),
            *(f"{each.ttft_p99_s or 0.0:.2f} s" for each in (live, simulated)),
            *(" ".join(map(str, each.by_server)) for each in (live, simulated)),
            "" if is_near else "off",
        )
    Console().print(table)
    return {"benchmark": "fleet", "rates": rates, "within_goal": agrees, "routings": runs}


def _targets(
    servers: Sequence[str], info: ServerInfo, routing: str, arguments: argparse.Namespace
) -> Iterator[tuple[Target, Sequence[str]]]:
    """Yields the live fleet and the simulated one, with the names of their servers."""
    pinned = {"batch": 0}
    live = LiveTarget(",".join(servers), drain_s=DRAIN_S, routing=routing, pinned=pinned)
    yield live, servers
    yield SimulatedTarget(_setup(info, arguments, 2, routing, pinned)), ("0", "1")


def _setup(
    info: ServerInfo,
    arguments: argparse.Namespace,
    replicas: int,
    routing: str,
    pinned: dict[str, int],
) -> Setup:
    return Setup(
        profile_of(info, arguments.slow),
        info.policy,
        replicas=replicas,
        routing=routing,
        pinned=pinned,
        max_requests=info.limits.max_requests,
        drain_s=DRAIN_S,
        stated_output=Exact(),  # as what is sent to the servers
    )


def _sustained(info: ServerInfo, tier: str, arguments: argparse.Namespace) -> float:
    """Returns the requests per second of a tier that one server sustains by itself."""
    target = SimulatedTarget(_setup(info, arguments, 1, "round-robin", {}))
    guess = GUESS_RPS / arguments.slow
    load = _workload(info, {tier: guess}, 120.0, arguments.seed)
    capacity, _ = search_capacity(
        lambda load, _: measure(target, target.info(), load, Measuring()),
        load,
        Search(guess, precision=0.1, repeats=1),
    )
    return capacity.passed


def _workload(info: ServerInfo, rates: dict[str, float], duration_s: float, seed: int) -> Workload:
    targets, total = {tier.name: tier.targets for tier in info.tiers}, sum(rates.values())
    loads = tuple(
        TierLoad(name, rate / total, targets[name], LENGTHS[name]) for name, rate in rates.items()
    )
    return Workload(Arrivals(Rate(total, total)), loads, duration_s, seed)


def _side(run: Measurement, names: Sequence[str]) -> Side:
    chats = next(score for score in run.summary.by_tier if score.group == "chat")
    sent = Counter(r.replica for r in run.records if r.request.tier == "chat")
    return Side(
        chats.num_sent, chats.attainment or 0.0, chats.ttft.p99, [sent[name] for name in names]
    )
