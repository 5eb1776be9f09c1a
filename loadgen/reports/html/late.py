"""Who was late in each run, and by how much: the sentences between headline and charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadgen.reports.html.curves import TTFT, TTLT
from loadgen.reports.html.runs import contender, contenders, tier_targets
from loadgen.reports.html.text import duration
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import counted, is_on_time, percentile
from loadgen.targets.record import Record
from niyama.client.values import Targets

RELEGATED = (
    "relegated: moved behind the others, as a deadline was lost or too dear, and still served"
)


def who_was_late(runs: Sequence[Measurement]) -> Iterator[str]:
    """Yields a sentence for each run of a load, and nothing where nothing was sent."""
    is_named = len(contenders(runs)) > 1
    for run in runs:
        if not run.summary.total.num_sent:
            continue
        told = ", ".join(_late_of_tiers(run)) or "nobody"
        of = f" under {contender(run)}" if is_named else ""
        relegated = run.summary.total.num_relegated
        yield f"Late{of}: {told}." + (f" {relegated:,} {RELEGATED}." if relegated else "")


def _late_of_tiers(run: Measurement) -> Iterator[str]:
    window = run.summary.window
    sent = counted(run.records, window.start_s, window.end_s)
    for tier, targets in tier_targets([run]).items():
        of_tier = [record for record in sent if record.request.tier == tier]
        if late := [record for record in of_tier if not is_on_time(record)]:
            yield f"{len(late):,} of {len(of_tier):,} {tier or '(none)'}{_by(late, targets)}"


def _by(late: Sequence[Record], targets: Targets) -> str:
    """Says what the late ones had in the median, beside what was asked for."""
    for metric in (TTFT, TTLT):
        asked = metric.target(targets)
        median = percentile(sorted(v for r in late for v in metric.of_record(r)), 50)
        if asked is not None and median is not None and median > asked:
            return f" ({metric.name} {duration(median)} in the median, target {duration(asked)})"
    return ""
