"""A summary as a person reads it: tables in the terminal, latencies in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from loadgen.score import Percentiles, Score
from loadgen.summary import Summary
from loadgen.target import End

_WIDTH = 118  # where the output is no terminal
_MOST_ERRORS = 5


def console() -> Console:
    """Standard output; wide enough for the tables where it is a file or a pipe."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=_WIDTH)


def print_report(summary: Summary, out: Console) -> None:
    target, window = summary.target, summary.window
    out.print(
        f"[bold]{target.name}[/]: {target.model}, policy {target.policy}; "
        f"measured {window.start_s:g} to {window.end_s:.4g} s",
        highlight=False,
    )
    out.print(score_table("tier", [*summary.by_tier, summary.total]))
    for title, scores in (
        ("importance", summary.by_importance),
        ("tenant", summary.by_tenant),
        ("prompt", summary.by_prompt),
    ):
        if len(scores) > 1:
            out.print(score_table(title, scores))
    for line in _lines(summary):
        out.print(line, highlight=False)


def score_table(title: str, scores: Iterable[Score]) -> Table:
    """One row per group."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(title, no_wrap=True)
    latencies = (f"{name} ms\np50/p90/p99" for name in ("TTFT", "TBT", "TTLT"))
    for heading in ("sent", "finished", "failed", *latencies, "on time", "on pace", "goodput/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in scores:
        table.add_row(
            each.group or "(none)",
            str(each.num_sent),
            str(each.num_finished + each.num_cancelled),
            str(each.num_failed + each.num_rejected + each.num_unfinished),
            *(_percentiles(values) for values in (each.ttft, each.tbt, each.ttlt)),
            _share(each.attainment),
            _share(each.pace_attainment),
            f"{each.goodput_rps:.2f}",
        )
    return table


def _lines(summary: Summary) -> Iterable[str]:
    total, lag = summary.total, summary.lag
    yield (
        f"rate {summary.achieved_rps:.2f} of {summary.requested_rps:.2f} requests/s sent, "
        f"schedule lag p50 {lag.p50_s * 1e3:.1f} p99 {lag.p99_s * 1e3:.1f} "
        f"max {lag.max_s * 1e3:.1f} ms"
    )
    yield (
        f"output {total.output_tokens:,} tokens, {total.goodput_tokens_per_s:,.0f} tokens/s of "
        f"requests on time, longest gap {_ms(total.worst_gap_s)} ms, "
        f"{total.num_relegated} relegated"
    )
    if len(summary.by_prompt) > 1:
        yield f"long prompts are those over {summary.long_prompt_tokens} tokens (p90)"
    if len(summary.by_tenant) > 1 and summary.fairness is not None:
        yield f"fairness among tenants {summary.fairness:.4f} (Jain's index of their attainment)"
    if total.num_rejected or total.num_unfinished:
        yield f"{total.num_rejected} rejected, {total.num_unfinished} unfinished at the end"
    if summary.num_abandoned:
        yield f"{summary.num_abandoned} in flight at the interruption, not counted"
    for error, count in summary.errors[:_MOST_ERRORS]:
        yield f"[red]{count} x[/] {error}"
    if summary.end is not End.COMPLETE:
        yield f"[red bold]PARTIAL[/] {summary.problem}"
    if summary.invalid:
        yield f"[red bold]INVALID[/] {summary.invalid}"


def _percentiles(values: Percentiles) -> str:
    return "/".join(_ms(value) for value in values)


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    ms = seconds * 1e3
    if seconds >= 10:
        return f"{seconds:.1f}s"
    return f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
