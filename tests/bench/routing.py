"""Where requests of a fleet go, and who is on time for it: every routing on the same requests.

    python -m tests.bench routing [--minutes 3] [--seeds 3] [--only backlog] [--routings qos,...]

Simulated A100s with Llama-3-8B and prompts and outputs as in the Azure-Conv trace (its published
quantiles, where the trace is not there): chats with a TTFT of 1 s and a TBT of 50 ms, agents with a
TTLT of 30 s, batch with half an hour. The loads: even arrivals, bursts, batch that goes past the
router to one of two replicas and is more than this can do, one of two replicas at half the speed,
and four replicas with prompts that share one of 40 beginnings, or mostly one of three. Each replica
tells its load once a second. Everybody routes with its own defaults; the load of `least-tokens`
includes what was relegated and best effort, as of a server that does not tell them apart.

Prints a table in Markdown for each load, means over the seeds, every arrival counted, and as the
last line a JSON object. Exit code 1 where `qos` has fewer chats on time than another routing, by
more than a point, or than round robin with a backlog.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from engine.routing.router import ROUTINGS
from loadgen.paper.load import CONTEXT_LEN, lengths_of
from loadgen.scoring.score import is_on_time, percentile
from loadgen.targets.profiles import A100
from loadgen.targets.simulated import Setup, records, uncollected
from loadgen.workload.arrivals import Process, Rate
from loadgen.workload.plan import Arrivals, SharedPrefix, TierLoad, Workload, plan
from niyama.client.values import Importance, Targets, Tier

TARGETS = {
    "chat": Targets(ttft=1.0, tbt=0.05),
    "agent": Targets(ttlt=30.0),
    "batch": Targets(ttlt=1800.0),
}
PROFILE = replace(
    A100,
    context_len=CONTEXT_LEN,
    tiers=tuple(Tier(name, each, Importance.NORMAL) for name, each in TARGETS.items()),
)
POINT = 0.01


@dataclass(frozen=True, slots=True)
class Load:
    """Requests per second of each tier, and the fleet that they are sent to."""

    rates: tuple[float, float, float]  # of chats, agents and batch
    replicas: int = 2
    cv: float = 1.0  # of the gaps between arrivals
    prefix: SharedPrefix | None = None
    changes: dict[str, Any] = field(default_factory=dict)  # of the Setup

    def workload(self, minutes: float, seed: int) -> Workload:
        """Returns what is sent."""
        total = sum(self.rates)
        tiers = tuple(
            TierLoad(
                name,
                rate / total,
                TARGETS[name],
                lengths_of("azure-conv"),
                prefix=None if name == "batch" else self.prefix,
            )
            for name, rate in zip(TARGETS, self.rates, strict=True)
        )
        process = Process.POISSON if self.cv == 1 else Process.GAMMA
        arrivals = Arrivals(Rate(total, total), process, self.cv)
        return Workload(arrivals, tiers, 60 * minutes, seed, context_length=CONTEXT_LEN)

    def setup(self, routing: str, seed: int) -> Setup:
        """Returns the fleet."""
        return Setup(
            PROFILE,
            replicas=self.replicas,
            routing=routing,
            seed=seed,
            prefix_caching=self.prefix is not None,
            **self.changes,
        )


LOADS = {
    "even": Load((6.5, 1.5, 1.0)),
    "bursts": Load((5.0, 1.0, 1.0), cv=4.0),
    "backlog": Load((6.0, 1.0, 3.0), changes={"pinned": {"batch": 0}}),
    "slow": Load((3.5, 1.0, 0.8), changes={"slow": {1: 2.0}}),
    "prefixes": Load((14.0, 3.0, 2.0), 4, prefix=SharedPrefix(1024, 0.9, 40)),
    "hot prefixes": Load((14.0, 3.0, 2.0), 4, prefix=SharedPrefix(1024, 0.9, 3)),
}


class Outcome(NamedTuple):
    """What became of a run: shares on time, seconds, and chats by replica."""

    num_requests: int
    on_time: dict[str, float]  # by tier, and "all"
    ttft_p50_s: float  # of chats; whoever got no token counts as a minute
    ttft_p99_s: float
    by_replica: list[int]


class Asked(NamedTuple):
    """One run."""

    load: str
    routing: str
    seed: int
    minutes: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and says by the exit code whether the goals are met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench routing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of arrivals per run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(LOADS), help="loads")
    parser.add_argument("--routings", default=",".join(ROUTINGS))
    arguments = parser.parse_args(argv)
    loads, routings = arguments.only.split(","), arguments.routings.split(",")
    means = {}
    with ProcessPoolExecutor(2) as pool:
        for load in loads:
            seeds, minutes = range(arguments.seeds), arguments.minutes
            runs = [Asked(load, name, seed, minutes) for name in routings for seed in seeds]
            found = dict(zip(runs, pool.map(run, runs), strict=True))
            means[load] = {
                name: mean([found[each] for each in runs if each.routing == name])
                for name in routings
            }
            print(table(load, means[load]), flush=True)
    missed = list(misses(means))
    for problem in missed:
        print(problem)
    as_json = {
        load: {name: outcome._asdict() for name, outcome in each.items()}
        for load, each in means.items()
    }
    print(json.dumps({"benchmark": "routing", "within_goal": not missed, "loads": as_json}))
    return 1 if missed else 0


def run(asked: Asked) -> Outcome:
    """Simulates one run to its end."""
    load = LOADS[asked.load]
    requests = list(plan(load.workload(asked.minutes, asked.seed)))
    with uncollected():
        ended = list(records(load.setup(asked.routing, asked.seed), requests))
    assert len(ended) == len(requests)
    on_time = {
        tier: statistics.fmean(is_on_time(r) for r in ended if tier in (r.request.tier, "all"))
        for tier in (*TARGETS, "all")
    }
    chats = [r for r in ended if r.request.tier == "chat"]
    ttft = sorted(60.0 if r.ttft_s is None else r.ttft_s for r in chats)
    return Outcome(
        len(ended),
        on_time,
        percentile(ttft, 50) or 0.0,
        percentile(ttft, 99) or 0.0,
        [sum(r.replica == str(i) for r in chats) for i in range(load.replicas)],
    )


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns the means over several seeds."""
    return Outcome(
        sum(each.num_requests for each in outcomes),
        {
            tier: statistics.fmean(each.on_time[tier] for each in outcomes)
            for tier in outcomes[0].on_time
        },
        statistics.fmean(each.ttft_p50_s for each in outcomes),
        statistics.fmean(each.ttft_p99_s for each in outcomes),
        [sum(column) for column in zip(*(each.by_replica for each in outcomes), strict=True)],
    )


def table(load: str, outcomes: dict[str, Outcome]) -> str:
    """Writes a table in Markdown with a row for each routing."""
    num = next(iter(outcomes.values())).num_requests
    columns = ("chats on time", "agents", "batch", "all", "TTFT p50", "p99", "chats by replica")
    lines = [
        f"| {load} ({num:,} requests) | " + " | ".join(columns) + " |",
        "|" + "---|" * (1 + len(columns)),
    ]
    for name, each in outcomes.items():
        cells = (
            name,
            *(f"{100 * each.on_time[tier]:.2f} %" for tier in (*TARGETS, "all")),
            f"{each.ttft_p50_s:.2f} s",
            f"{each.ttft_p99_s:.2f} s",
            " ".join(map(str, each.by_replica)),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def misses(means: dict[str, dict[str, Outcome]]) -> Iterator[str]:
    """Yields what `qos` does worse than it should."""
    for load, outcomes in means.items():
        if "qos" not in outcomes:
            continue
        own = outcomes["qos"].on_time["chat"]
        for name, each in outcomes.items():
            allowed = 0.0 if (load, name) == ("backlog", "round-robin") else POINT
            if each.on_time["chat"] > own + allowed:
                yield f"{load}: {name} has {each.on_time['chat']:.2%} of the chats on time"
