"""Whether the service tells the truth about itself: attainment by its metrics beside that which the
load generator saw, for the same calls, over all that were sent.

    python -m tests.bench attainment [--duration 60] [--frontends N] [--loads 0.8,1.2,3] [--slow 5]

The service is real, but for an engine whose iterations last as long as a profile says. What it
sustains is searched in the simulator with the same profile; then come 0.8, 1.2 and 3 times that, of
a chat tier and one of reports, whose calls have deadlines of their own, before a queue that is
short. Once all calls of a load are over, what they have added to `niyama_requests_total` is read.

The two do not share a clock: what a client sees begins before the message has come, and ends after
the token has left. Under a load at which everybody is served just in time, that decides for many.
So engine, targets and deadlines are all slower by the same factor (`--slow`), which makes the way
between the two small beside them, on a machine that is busy, too; at 1 a chat has 0.5 s.

Prints both attainments for each tier and load and, as the last line, a JSON object; exit code 1
where they differ by more than a point, where the counts do not add up to what was sent, or where
nothing expired or nothing was refused in the largest load, which would then show nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from engine.deciding.outcome import MISSES
from loadgen.reports.progress import showing
from loadgen.scoring.modes import Search, measure, search_capacity
from loadgen.scoring.summary import Measuring
from loadgen.targets import local_server
from loadgen.targets.live import LiveTarget
from loadgen.targets.profiles import Profile
from loadgen.targets.simulated import Setup, SimulatedTarget
from loadgen.workload.arrivals import Rate
from loadgen.workload.lengths import Exact, Independent, Lognormal
from loadgen.workload.plan import Arrivals, TierLoad, Workload
from niyama.client import Client
from niyama.client.values import ServerInfo
from tests.bench._priced import SLOW, priced

# Seconds, of an engine that is not slowed.
TTFT_S, TBT_S, TTLT_S = 0.5, 0.05, 4.0
TIMEOUT_S = {"chat": 2.0, "report": 6.0}
LENGTHS = {
    "chat": Independent(Lognormal(60, 150), Lognormal(20, 48)),
    "report": Independent(Lognormal(100, 240), Lognormal(32, 80)),
}
MAX_REQUESTS = 96
POINT = 0.01
MISSED = tuple(fate.value for fate in MISSES)
SETTLE_S = 10.0  # for the last calls to be counted, after their clients have been answered
GUESS_RPS = 20.0  # of an engine that is not slowed

Counts = Counter[tuple[str, str]]  # by tier and result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench attainment", description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds per run")
    parser.add_argument("--loads", default="0.8,1.2,3", help="times what is sustained")
    parser.add_argument("--frontends", type=int, default=1)
    parser.add_argument("--slow", type=float, default=5.0, help="times as slow, all of it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        tiers = Path(folder) / "tiers.toml"
        tiers.write_text(_tiers(arguments.slow), encoding="utf-8")
        os.environ[SLOW] = str(arguments.slow)
        port = _free_port()
        flags = ["--config", str(tiers), "--metrics-port", str(port)]
        flags += ["--max-requests", str(MAX_REQUESTS), "--frontends", str(arguments.frontends)]
        with local_server.serving(flags, "tests.bench._priced") as address:
            result = _compare(address, port, arguments)
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps(result))
    return 0 if result["within_goal"] else 1


def _compare(address: str, port: int, arguments: argparse.Namespace) -> dict[str, Any]:
    with Client(address) as client:
        info = client.server_info()
    capacity = _capacity(info, arguments.slow, arguments.seed)
    out, channels = Console(), max(1, 4 * (arguments.frontends - 1))
    table = Table("load", "tier", "sent", "on time: loadgen", "metrics", "missed as", "")
    loads, agrees, shows = {}, True, False
    for name in arguments.loads.split(","):
        rate = float(name) * capacity
        load = _workload(info, rate, arguments.slow, arguments.duration, arguments.seed)
        before = _counts(port)
        target = replace(LiveTarget(address), channels=channels)
        run = measure(target, target.info(), load, Measuring(), partial(showing, out))
        counts = _counted(port, before, run.summary.total.num_sent)
        tiers = {}
        for score in run.summary.by_tier:
            results = {result: n for (tier, result), n in counts.items() if tier == score.group}
            ours, sent = score.attainment or 0.0, sum(results.values())
            theirs = results.get("on_time", 0) / sent if sent else 0.0
            is_near = abs(ours - theirs) <= POINT and sent == score.num_sent
            agrees &= is_near
            tiers[score.group] = {
                "sent": score.num_sent,
                "loadgen": round(ours, 4),
                "metrics": round(theirs, 4),
                "results": results,
            }
            missed = ", ".join(f"{n} {r}" for r in MISSED if (n := results.get(r)))
            row = (str(score.num_sent), f"{ours:.1%}", f"{theirs:.1%}", missed)
            table.add_row(f"{name}, {rate:.0f}/s", score.group, *row, "" if is_near else "off")
        kinds = {result for _, result in counts}
        shows |= {"expired", "refused"} <= kinds
        loads[name] = {"rps": rate, "invalid": run.summary.invalid, "tiers": tiers}
    out.print(table)
    return {
        "benchmark": "attainment",
        "frontends": arguments.frontends,
        "capacity_rps": capacity,
        "within_goal": agrees and shows,
        "loads": loads,
    }


def _tiers(slow: float) -> str:
    chat = f"[tiers.chat]\nttft_s = {TTFT_S * slow}\ntbt_s = {TBT_S * slow}\n"
    return f"{chat}[tiers.report]\nttlt_s = {TTLT_S * slow}\n"


def _workload(info: ServerInfo, rate: float, slow: float, duration_s: float, seed: int) -> Workload:
    targets = {tier.name: tier.targets for tier in info.tiers}
    loads = tuple(
        TierLoad(name, 1 / len(LENGTHS), targets[name], lengths, timeout_s=slow * TIMEOUT_S[name])
        for name, lengths in LENGTHS.items()
    )
    return Workload(Arrivals(Rate(rate, rate)), loads, duration_s, seed)


def profile_of(info: ServerInfo, slow: float) -> Profile:
    """Returns what a simulator takes for a server whose engine is priced so."""
    latency, limits = priced(slow), info.limits
    return Profile(
        latency.name,
        latency,
        limits.kv_tokens,
        info.model.context_length,
        limits.max_batch_size,
        info.tiers,
    )


def _capacity(info: ServerInfo, slow: float, seed: int) -> float:
    """Returns the requests per second that are sustained over ten minutes of virtual time."""
    target = SimulatedTarget(Setup(profile_of(info, slow), info.policy, stated_output=Exact()))
    search = Search(GUESS_RPS / slow, repeats=1)
    workload = _workload(info, GUESS_RPS / slow, slow, 600.0, seed)
    capacity, _ = search_capacity(
        lambda load, _: measure(target, target.info(), load, Measuring()), workload, search
    )
    return capacity.passed


def _counted(port: int, before: Counts, num_sent: int) -> Counts:
    """Returns what was added to the counts, once it is as much as was sent; or what there is after
    a while.
    """
    until = time.monotonic() + SETTLE_S
    while (counts := _counts(port) - before).total() < num_sent and time.monotonic() < until:
        time.sleep(0.1)
    return counts


def _counts(port: int) -> Counts:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        text = response.read().decode()
    counts: Counts = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "niyama_requests_total":
                counts[sample.labels["tier"], sample.labels["result"]] += int(sample.value)
    return counts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
