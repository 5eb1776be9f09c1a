"""The tables of a report, as figures: whatever shows a report shows these.

A table has named columns, each of one kind, and rows with a figure for each column. The terminal
and the HTML page choose the columns that they have room for and how a kind is written; neither has
a figure of its own, so that they cannot differ in what they say. Seconds, shares between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from loadgen.scoring.criterion import MEASURED
from loadgen.scoring.fairness import Portion
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import Percentiles, Score
from loadgen.scoring.summary import Summary
from loadgen.targets.target import End

MOST_ERRORS = 5  # of a run
BEHIND = "behind"


class Kind(Enum):
    """What the figures of a column are, and hence how they may be written."""

    TEXT = auto()
    COUNT = auto()
    SHARE = auto()
    GROWTH = auto()  # a share with its sign
    LOAD = auto()  # requests per second, as they were asked for
    RATE = auto()  # requests per second, as they were measured
    DURATION = auto()  # seconds, from microseconds to minutes in one column
    LATENCY = auto()  # seconds, of an order that milliseconds suit
    PERCENTILES = auto()  # three latencies


Figure = str | int | float | Percentiles | None


class Column(NamedTuple):
    """`tier` is the tier that the column is about, where it is about one."""

    name: str
    kind: Kind
    tier: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Figures in rows and columns. The first column names the row; None stands for no figure."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Figure]]


def called(run: Measurement) -> str:
    """Returns the name of a run among others: its own, or whom it measured."""
    return run.name or run.contender or run.summary.target.policy


def remark(summary: Summary) -> str:
    """Returns what must be known of a run before its figures are read, in one word; "" where
    nothing.
    """
    if summary.end is not End.COMPLETE:
        return "partial"
    if summary.invalid:
        return "invalid"
    return BEHIND if MEASURED.falls_behind(summary) else ""


def runs_table(title: str, runs: Sequence[Measurement]) -> Table:
    """Returns a table with a row per run, and among its columns one for the attainment of each
    tier.
    """
    tiers = list(dict.fromkeys(score.group for run in runs for score in run.summary.by_tier))
    columns = [
        Column("run", Kind.TEXT),
        Column("load /s", Kind.LOAD),
        Column("sent", Kind.COUNT),
        Column("failed", Kind.COUNT),
        Column("on time", Kind.SHARE),
        *(Column(f"{tier} on time", Kind.SHARE, tier) for tier in tiers),
        Column("on pace", Kind.SHARE),
        Column("goodput /s", Kind.RATE),
        Column("TTFT p99", Kind.DURATION),
        Column("TBT p99", Kind.DURATION),
        Column("TTLT p99", Kind.DURATION),
        Column("longest gap", Kind.DURATION),
        Column("relegated", Kind.COUNT),
        Column("backlog growth", Kind.GROWTH),
        Column("lag p99", Kind.DURATION),
        Column("remark", Kind.TEXT),
    ]
    return Table(title, columns, [_run_row(run, tiers) for run in runs])


def _run_row(run: Measurement, tiers: Sequence[str]) -> list[Figure]:
    summary, total = run.summary, run.summary.total
    by_tier = {score.group: score.attainment for score in summary.by_tier}
    return [
        called(run),
        summary.requested_rps,
        total.num_sent,
        total.num_incomplete,
        total.attainment,
        *(by_tier.get(tier) for tier in tiers),
        total.pace_attainment,
        total.goodput_rps,
        total.ttft.p99,
        total.tbt.p99,
        total.ttlt.p99,
        total.worst_gap_s,
        total.num_relegated,
        summary.backlog_growth,
        summary.lag.p99_s,
        remark(summary),
    ]


def score_tables(summary: Summary) -> Iterator[Table]:
    """Yields tables with a row per group of requests: by tier, and by importance, tenant, replica
    and prompt length where there are several of them.
    """
    yield _score_table("Tiers", "tier", [*summary.by_tier, summary.total])
    for title, name, scores in (
        ("Importance", "importance", summary.by_importance),
        ("Tenants", "tenant", summary.by_tenant),
        ("Replicas", "replica", summary.by_replica),
        ("Prompt length", "prompt", summary.by_prompt),
    ):
        if len(scores) > 1:
            yield _score_table(title, name, scores)


def _score_table(title: str, name: str, scores: Sequence[Score]) -> Table:
    columns = [
        Column(name, Kind.TEXT),
        Column("sent", Kind.COUNT),
        Column("finished", Kind.COUNT),
        Column("failed", Kind.COUNT),
        Column("on time", Kind.SHARE),
        Column("on pace", Kind.SHARE),
        Column("goodput /s", Kind.RATE),
        Column("TTFT", Kind.PERCENTILES),
        Column("TBT", Kind.PERCENTILES),
        Column("TTLT", Kind.PERCENTILES),
        Column("longest gap", Kind.LATENCY),
        Column("relegated", Kind.COUNT),
    ]
    return Table(title, columns, [_score_row(score) for score in scores])


def _score_row(score: Score) -> list[Figure]:
    return [
        score.group or "(none)",
        score.num_sent,
        score.num_finished + score.num_cancelled,
        score.num_incomplete,
        score.attainment,
        score.pace_attainment,
        score.goodput_rps,
        score.ttft,
        score.tbt,
        score.ttlt,
        score.worst_gap_s,
        score.num_relegated,
    ]


def longest_gaps(summary: Summary) -> str:
    """Says how long each tier lets gaps be, and why; "" where it is not known."""
    gaps = [f"{t.name} {t.max_gap:g}" for t in summary.target.tiers if t.max_gap is not None]
    if not gaps:
        return ""
    return (
        "where a stream is ahead of its deadlines, the scheduler may let a gap grow to as many "
        f"TBTs (max_gap): {', '.join(gaps)}"
    )


def promises_by_tier(summary: Summary) -> Table:
    """Returns a table of what was promised at admission and what came of it, a row per tier."""
    return _promises_table(
        "Promises", "tier", [(s.group, s) for s in (*summary.by_tier, summary.total)]
    )


def promises_by_run(title: str, runs: Sequence[Measurement]) -> Table:
    """Returns a table of what was promised at admission and what came of it, a row per run."""
    return _promises_table("Promises", title, [(called(run), run.summary.total) for run in runs])


def portions(summary: Summary) -> Table:
    """Returns a table of what each tenant got of what is its own; it has no rows where there is
    only one.
    """
    return _portions_table([((each.tenant or "(none)",), each) for each in summary.portions], ())


def worst_off(title: str, runs: Sequence[Measurement]) -> Table:
    """Returns a table with a row per run: the tenant that would gain most by having its fair share
    alone. It has no rows where that was not measured.
    """
    rows = []
    for run in runs:
        measured = [each for each in run.summary.portions if each.worse_by is not None]
        if measured:
            worst = max(measured, key=lambda each: (each.worse_by or 0.0, -each.attainment))
            rows.append(((called(run), worst.tenant or "(none)"), worst))
    return _portions_table(rows, (title,))


def _portions_table(rows: Sequence[tuple[Sequence[str], Portion]], of: Sequence[str]) -> Table:
    """Returns a row for each portion, which begins with the names that stand before it."""
    is_measured = any(each.alone is not None for _, each in rows)
    columns = [
        *(Column(name, Kind.TEXT) for name in (*of, "tenant")),
        Column("fair share", Kind.SHARE),
        Column("offered", Kind.SHARE),
        Column("received", Kind.SHARE),
        Column("on time", Kind.SHARE),
        *(Column(name, Kind.SHARE) for name in ("on time alone", "worse by") if is_measured),
    ]
    cells: list[list[Figure]] = [
        [
            *names,
            *(each.fair_share, each.offered, each.received, each.attainment),
            *((each.alone, each.worse_by) if is_measured else ()),
        ]
        for names, each in rows
    ]
    return Table("Fair shares", columns, cells)


def cold_start(summary: Summary) -> Table:
    """Returns a table of those who came without history beside those who came later; it has no rows
    where there are not both.
    """
    scores = [(f"{s.group} history", s) for s in reversed(summary.by_history)]
    table = _promises_table("Cold start", "request", scores)
    columns = [*table.columns[:1], Column("sent", Kind.COUNT), Column("late", Kind.SHARE)]
    rows = [
        [row[0], s.num_sent, None if s.attainment is None else 1 - s.attainment, *row[1:]]
        for row, (_, s) in zip(table.rows, scores, strict=False)
    ]
    return Table(table.title, [*columns, *table.columns[1:]], rows if len(rows) > 1 else [])


def _promises_table(title: str, name: str, scores: Sequence[tuple[str, Score]]) -> Table:
    """Returns a row for each score, and none at all where nobody was told anything."""
    columns = [
        Column(name, Kind.TEXT),
        Column("told on time", Kind.COUNT),
        Column("promises broken", Kind.SHARE),
        Column("told late", Kind.COUNT),
        Column("were late", Kind.SHARE),
        Column("late foretold", Kind.SHARE),
        Column("told nothing", Kind.COUNT),
    ]
    rows = [_promises_row(name, score) for name, score in scores]
    return Table(title, columns, rows if any(any(s.promises) for _, s in scores) else [])


def _promises_row(name: str, score: Score) -> list[Figure]:
    told = score.promises
    return [
        name,
        told.num_told_on_time,
        told.broken_share,
        told.num_told_late,
        told.precision_late,
        told.recall_late,
        score.num_sent - sum(told),
    ]


def against_log(run: Measurement) -> Table:
    """Returns a table of what really became of the requests of a replayed log, beside what became
    of them in the run; it has no rows where none was replayed.
    """
    columns = [
        Column("tier", Kind.TEXT),
        Column("in the log", Kind.COUNT),
        Column("on time there", Kind.SHARE),
        Column("sent here", Kind.COUNT),
        Column("on time here", Kind.SHARE),
        Column("difference", Kind.GROWTH),
    ]
    rows: list[list[Figure]] = []
    here = {score.group: score for score in (*run.summary.by_tier, run.summary.total)}
    for then in run.replayed.happened if run.replayed else ():
        now, was = here[then.group], then.attainment
        share = now.attainment
        difference = None if was is None or share is None else share - was
        rows.append([then.group, then.num_ended, was, now.num_sent, share, difference])
    return Table("Against the log", columns, rows)


def replayed_from(run: Measurement) -> str:
    """Says which log was replayed and what had to be guessed of it; "" where none was."""
    if run.replayed is None:
        return ""
    found, of = run.replayed.guesses, run.replayed.factor
    said = [
        (found.outputs, "output lengths are guesses: of who was refused, expired, failed or left"),
        (found.prompts, "prompt lengths are estimates: of who was refused before it was tokenized"),
        (found.unread, "requests are left out: they were refused before they were read"),
        (found.without_end, "requests have no end in the log"),
        (found.before, "ends are of requests from before the log"),
        (found.torn, "lines were cut short"),
    ]
    parts = [f"{count:,} {what}" for count, what in said if count]
    if abs(of - 1) > 1e-9:
        parts.insert(0, f"{of:.4g} requests for each of the log's")
    return f"{', '.join(run.replayed.files)}: {'; '.join(parts) or 'nothing was guessed'}"


def errors_table(runs: Sequence[Measurement]) -> Table:
    """Returns a table of the errors of each run, most frequent first; it has no rows where nothing
    went wrong.
    """
    columns = [
        Column("error", Kind.TEXT),
        Column("run", Kind.TEXT),
        Column("requests", Kind.COUNT),
    ]
    rows: list[list[Figure]] = [
        [error, called(run), count]
        for run in runs
        for error, count in run.summary.errors[:MOST_ERRORS]
    ]
    return Table("Errors", columns, rows)
