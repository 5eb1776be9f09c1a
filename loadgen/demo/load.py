"""The load that the demo sends to each policy: chat and some reports, behind a backlog of batch.

It is sized by what the engine was just measured to serve of the same mix, so that it makes the same
point on slow machines and fast ones: it is more than can be on time, by as much. Instants and
lengths are drawn by one seed, and written as a trace, which `python -m loadgen` can send again.
"""

from __future__ import annotations

import csv
import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from loadgen.interrupts import Interrupted
from loadgen.targets.live import LiveTarget
from loadgen.targets.target import End, Unreachable
from loadgen.workload import toml_file, traces
from loadgen.workload.lengths import Independent, Lognormal
from loadgen.workload.mix import BACKGROUND, INTERACTIVE
from loadgen.workload.plan import PlannedRequest
from loadgen.workload.spec import Spec
from loadgen.workload.traces import Row
from niyama.client.values import Targets

SEED = 0
CHAT, REPORT, BATCH = "interactive", "standard", "batch"  # the server's own tiers
# A batch reads documents and writes a paragraph on each; the others are as long as usual.
LENGTHS: Mapping[str, Independent] = {
    CHAT: INTERACTIVE,
    REPORT: BACKGROUND,
    BATCH: Independent(prompt=Lognormal(700, 1200), output=Lognormal(40, 80)),
}
PER_BATCH = {CHAT: 2.0, REPORT: 0.2, BATCH: 1.0}  # requests for each of the batch
BACKLOG_ARRIVES_IN_S = 1.0
LEAST = 12  # requests of a burst
MOST = 2000  # requests, as many as the generator can send in time beside a server on 2 cores
START = datetime(2026, 1, 1, tzinfo=UTC)  # what the trace calls instant 0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is sent, for how long, on a machine where that is at most `MOST` requests; else all
    durations are as much shorter. Seconds.
    """

    arrivals_s: float = 16.0  # in which chat and reports come
    work_s: float = 19.0  # of the engine, in all that is sent
    batch_ttlt_s: float = 12.0  # in which each of the batch is due
    probe_s: float = 3.0  # of full load, by which the engine is measured


@dataclass(frozen=True, slots=True)
class Load:
    """The requests, in order of time, and the seconds in which each of the batch is due."""

    rows: Sequence[Row]
    batch_ttlt_s: float
    arrivals_s: float

    def count(self, tier: str) -> int:
        """Returns how many requests the tier has."""
        return sum(row.tier == tier for row in self.rows)

    def write(self, folder: Path) -> Spec:
        """Writes it as a trace and a workload file, and returns what `python -m loadgen` reads in
        them. Raises OSError.
        """
        with (folder / "load.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*traces.COLUMNS, traces.TIER])
            for row in self.rows:
                stamp = (START + timedelta(seconds=row.at)).strftime("%Y-%m-%d %H:%M:%S.%f")
                writer.writerow([stamp, row.prompt_len, row.output_len, row.tier])
        path = folder / "load.toml"
        path.write_text(
            f'replay = "load.csv"\n\n[tiers.{BATCH}]\nttlt_s = {self.batch_ttlt_s:g}\n'
            "importance = {low = 1.0}\n"
        )
        return toml_file.load(path)


def drawn(tokens_per_s: float, size: Size) -> Load:
    """Returns the load for an engine that serves so many prompt and output tokens of the mix in a
    second.
    """
    wanted = requests_in(tokens_per_s * size.work_s)
    scale = min(1.0, MOST / wanted)
    arrivals_s = size.arrivals_s * scale
    within_s = {CHAT: arrivals_s, REPORT: arrivals_s, BATCH: BACKLOG_ARRIVES_IN_S * scale}
    rows = [
        row._replace(at=row.at * within_s[row.tier or ""])
        for row in mixed(wanted * scale, f"{SEED}/load")
    ]
    return Load(sorted(rows), round(size.batch_ttlt_s * scale, 2), arrivals_s)


def mixed(count: float, seed: str) -> list[Row]:
    """Draws about so many requests of the mix, each kind in its part and at least one; they arrive
    at any instants of the first second: Poisson processes of which the numbers are known.
    """
    rows: list[Row] = []
    for tier, each in PER_BATCH.items():
        rng, number = random.Random(f"{seed}/{tier}"), round(count * each / sum(PER_BATCH.values()))
        rows.extend(Row(rng.random(), *LENGTHS[tier].draw(rng), tier) for _ in range(number or 1))
    return rows


def requests_in(tokens: float) -> float:
    """Returns how many requests of the mix have so many tokens."""
    sample = mixed(3000, f"{SEED}/tokens")
    return tokens * len(sample) / num_tokens(sample)


def num_tokens(rows: Sequence[Row]) -> int:
    """Returns the prompt and output tokens of requests."""
    return sum(row.prompt_len + row.output_len for row in rows)


LEAST = 12  # requests of a burst


def measured(target: LiveTarget, probe_s: float) -> float:
    """Returns how many tokens of the mix the engine serves in a second when all requests come at
    once: in a burst that takes about `probe_s`, after shorter ones that warm it up. Raises
    Interrupted, or Unreachable.
    """
    tokens_per_s = burst(target, 0.0)
    for wanted_s in (probe_s / 3, probe_s):
        tokens_per_s = burst(target, tokens_per_s * wanted_s)
    return tokens_per_s


def burst(target: LiveTarget, tokens: float) -> float:
    """Sends requests of the mix with about so many tokens at once, and returns how many the engine
    serves in a second. Raises Interrupted, or Unreachable where some were not.

    Over the whole of a burst that is too few, since its end is a few streams, and until the last
    prompt is done too many, since decodes are dearer and left over: their geometric mean is taken
    (docs/decisions/the-demo.md).
    """
    count = min(MOST, max(LEAST, requests_in(tokens)))
    rows = sorted(mixed(count, f"{SEED}/burst of {count:.0f}"))
    requests = [
        PlannedRequest(i, 0.0, row.tier or "", Targets(), row.prompt_len, row.output_len, seed=i)
        for i, row in enumerate(rows)
    ]
    run = target.run(requests, lambda progress: None)
    if run.end is End.INTERRUPTED:
        raise Interrupted(run.interrupted_by)
    failed = [record for record in run.records if record.outcome.is_incomplete]
    if run.end is End.TARGET_LOST or failed:
        raise Unreachable(run.problem or f"{target.server}: {failed[0].error or 'no answer'}")
    last_prompt_at = max(record.token_at[0] for record in run.records)
    until_then = sum(
        record.request.prompt_len + bisect_right(record.token_at, last_prompt_at)
        for record in run.records
    )
    return math.sqrt(num_tokens(rows) / run.elapsed_s * until_then / last_prompt_at)
