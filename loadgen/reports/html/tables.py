"""Figures in rows and columns, as text: shares in per cent, latencies in milliseconds or, where one
column has those of seconds and of minutes, with their unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from client.values import Targets
from loadgen.reports.html.runs import contender
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import Percentiles, Score
from loadgen.targets.target import End

DASH = "–"
MOST_ERRORS = 5  # of a run
_NO_BREAK = "\N{NO-BREAK SPACE}"
_SCORES = (
    "sent",
    "finished",
    "failed",
    "on time",
    "on pace",
    "goodput /s",
    "TTFT p50 ms",
    "TTFT p99 ms",
    "TBT p50 ms",
    "TBT p99 ms",
    "TTLT p50 ms",
    "TTLT p99 ms",
    "longest gap ms",
    "relegated",
)
_OF_RUNS = (
    "on pace",
    "goodput /s",
    "TTFT p99",
    "TBT p99",
    "TTLT p99",
    "longest gap",
    "relegated",
    "backlog growth",
    "lag p99",
    "remark",
)


@dataclass(frozen=True, slots=True)
class Table:
    """The first column of each row is its name."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def runs_table(runs: Sequence[Measurement]) -> Table:
    """A row per run, a column of attainment per tier."""
    tiers = list(dict.fromkeys(score.group for run in runs for score in run.summary.by_tier))
    own = [f"{tier} on time" for tier in tiers]
    return Table(
        "Runs",
        ["run", "load /s", "sent", "failed", "on time", *own, *_OF_RUNS],
        [_run_row(run, tiers) for run in runs],
    )


def _run_row(run: Measurement, tiers: Sequence[str]) -> list[str]:
    summary, total = run.summary, run.summary.total
    by_tier = {score.group: score.attainment for score in summary.by_tier}
    remark = "partial" if summary.end is not End.COMPLETE else "invalid" if summary.invalid else ""
    return [
        run.name or contender(run),
        f"{summary.requested_rps:.4g}",
        f"{total.num_sent:,}",
        f"{total.num_incomplete:,}",
        share(total.attainment),
        *(share(by_tier.get(tier)) for tier in tiers),
        share(total.pace_attainment),
        f"{total.goodput_rps:.2f}",
        duration(total.ttft.p99),
        duration(total.tbt.p99),
        duration(total.ttlt.p99),
        duration(total.worst_gap_s),
        f"{total.num_relegated:,}",
        f"{summary.backlog_growth:+.1%}".replace("%", f"{_NO_BREAK}%"),
        duration(summary.lag.p99_s),
        remark,
    ]


def errors_table(runs: Sequence[Measurement]) -> Iterator[Table]:
    """What went wrong, most frequent first; none where nothing did."""
    rows = [
        [error, run.name or contender(run), f"{count:,}"]
        for run in runs
        for error, count in run.summary.errors[:MOST_ERRORS]
    ]
    if rows:
        yield Table("Errors", ["error", "run", "requests"], rows)


def score_tables(run: Measurement) -> Iterator[Table]:
    """By tier; by importance, tenant and prompt length where there are several."""
    summary = run.summary
    yield _scores("Tiers", "tier", [*summary.by_tier, summary.total])
    for title, name, scores in (
        ("Importance", "importance", summary.by_importance),
        ("Tenants", "tenant", summary.by_tenant),
        ("Prompt length", "prompts", summary.by_prompt),
    ):
        if len(scores) > 1:
            yield _scores(title, name, scores)


def _scores(title: str, name: str, scores: Sequence[Score]) -> Table:
    rows = [[score.group or "(none)", *score_cells(score)] for score in scores]
    return Table(title, [name, *_SCORES], rows)


def score_cells(score: Score) -> list[str]:
    """As the header _SCORES has it."""
    return [
        f"{score.num_sent:,}",
        f"{score.num_finished + score.num_cancelled:,}",
        f"{score.num_incomplete:,}",
        share(score.attainment),
        share(score.pace_attainment),
        f"{score.goodput_rps:.2f}",
        *_two(score.ttft),
        *_two(score.tbt),
        *_two(score.ttlt),
        milliseconds(score.worst_gap_s),
        f"{score.num_relegated:,}",
    ]


def _two(values: Percentiles) -> tuple[str, str]:
    return milliseconds(values.p50), milliseconds(values.p99)


def share(value: float | None) -> str:
    return DASH if value is None else f"{value:.1%}".replace("%", f"{_NO_BREAK}%")


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    return f"{seconds * 1e3:.1f}" if seconds < 0.01 else f"{seconds * 1e3:,.0f}"


def duration(seconds: float | None) -> str:
    """With its unit: in milliseconds below a second, to three digits."""
    if seconds is None:
        return DASH
    if seconds < 1:
        return f"{seconds * 1e3:.3g}{_NO_BREAK}ms"
    return (f"{seconds:.3g}" if seconds < 1000 else f"{seconds:,.0f}") + f"{_NO_BREAK}s"


def targets_text(targets: Targets) -> str:
    named = (("TTFT", targets.ttft), ("TBT", targets.tbt), ("TTLT", targets.ttlt))
    return ", ".join(f"{name} {duration(s)}" for name, s in named if s is not None) or "best effort"
