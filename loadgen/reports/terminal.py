"""A summary as a person reads it: tables in the terminal, latencies in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadgen.reports import tables
from loadgen.reports.tables import BEHIND, MOST_ERRORS, Figure, Kind, called, remark
from loadgen.scoring.capacity import Capacity
from loadgen.scoring.criterion import MEASURED
from loadgen.scoring.modes import Measurement
from loadgen.scoring.score import Percentiles
from loadgen.scoring.summary import Summary
from loadgen.targets.target import End
from loadgen.workload.served import TargetInfo

_WIDTH = 118  # where the output is no terminal
_NARROW = 100  # columns below which the tables leave something out

ON_PACE = "on pace: on time, and no gap above TBT (`--max-gap 1` on the server aims at that)"
_PROMISES = (
    "promises broken: told at admission that they would be on time, and late; late foretold: late "
    "and told so"
)
_PORTIONS = (
    "fair share: of the engine, by weight; offered, received: parts of all tokens; alone: with its "
    "fair share\nof the engine alone, which a simulation measures with --fair-share"
)
_BEHIND = "the backlog grew by more than chance explains: more was sent than is served"
_TOO_MUCH = "more was sent than this target can serve: lower --rps, or try --find-capacity"


def console() -> Console:
    """Returns a console on standard output, wide enough for the tables where that is a file or a
    pipe.
    """
    plain = Console()
    return plain if plain.is_terminal else Console(width=_WIDTH)


def print_mode(
    mode: str, measurements: Sequence[Measurement], seed: int | None, out: Console
) -> None:
    """Prints what was done in a mode: "run", "sweep" or "compare". `seed` is None if not known."""
    if mode == "run":
        print_report(measurements[0], out)
    else:
        print_runs("contender" if mode == "compare" else "rate", measurements, seed, out)


def print_report(run: Measurement, out: Console) -> None:
    """Prints one run: a table per kind of group, then the figures that are of the run as a
    whole.
    """
    summary = run.summary
    target, window = summary.target, summary.window
    out.print(
        f"[bold]{_who(target)}[/], policy {escape(target.policy)}; "
        f"measured {window.start_s:g} to {window.end_s:.4g} s{_stated(target)}",
        highlight=False,
    )
    narrow = out.width < _NARROW
    for table in tables.score_tables(summary):
        out.print(_score_table(table, narrow))
    _print_table(tables.against_log(run), out)
    if source := tables.replayed_from(run):
        out.print(f"[dim]of the log {escape(source)}[/]", highlight=False)
    _print_promises(tables.promises_by_tier(summary), out)
    _print_table(tables.cold_start(summary), out)
    _print_portions(tables.portions(summary), out)
    for line in _lines(summary):
        out.print(line, highlight=False)


def _print_promises(table: tables.Table, out: Console) -> None:
    if table.rows:
        out.print(f"[dim]{_PROMISES}[/]", highlight=False)
    _print_table(table, out)


def _print_portions(table: tables.Table, out: Console) -> None:
    if table.rows:
        out.print(f"[dim]{_PORTIONS}[/]", highlight=False)
    _print_table(table, out)


def _print_table(table: tables.Table, out: Console) -> None:
    """Prints a table with all of its columns, if it has a row."""
    if table.rows:
        headings = {column.name: column.name.replace(" ", "\n", 1) for column in table.columns}
        out.print(_shown(table, headings))


def _who(target: TargetInfo) -> str:
    """Says how a target is named; a simulated one is called by its model."""
    name, model = escape(target.name), escape(target.model)
    return name if model in name else f"{name}: {model}"


def _stated(target: TargetInfo) -> str:
    """Says what a simulated target was told of the lengths of outputs; of any other, nothing."""
    return f"; max_tokens stated: {target.stated_output}" if target.stated_output else ""


def _score_table(table: tables.Table, narrow: bool) -> Table:
    """Shows a table of scores, a row per group; it fits 80 columns when narrow."""
    quantiles = "p50/p99" if narrow else "p50/p90/p99"
    name = table.columns[0].name
    headings = {name: name, "sent": "sent", "finished": "finished", "failed": "failed"}
    headings |= {each: f"{each} ms\n{quantiles}" for each in ("TTFT", "TBT", "TTLT")}
    headings |= {"on time": "on time"}
    if not narrow:
        headings |= {"on pace": "on pace", "goodput /s": "goodput/s"}
    return _shown(table, headings, narrow)


def _shown(table: tables.Table, headings: Mapping[str, str], narrow: bool = False) -> Table:
    """Shows the columns of a table that have a heading, in the order of the headings. Text, as the
    first column and a remark, stands on the left.
    """
    shown = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    index = {column.name: i for i, column in enumerate(table.columns)}
    chosen = [index[name] for name in headings]
    for i, heading in zip(chosen, headings.values(), strict=True):
        is_text = table.columns[i].kind is Kind.TEXT
        shown.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*(_cell(table.columns[i].kind, row[i], narrow) for i in chosen))
    return shown


def _cell(kind: Kind, figure: Figure, narrow: bool) -> str:
    if isinstance(figure, Percentiles):
        values = (figure.p50, figure.p99) if narrow else figure
        return "/".join(_ms(value) for value in values)
    if isinstance(figure, str):
        return escape(figure)
    match kind:
        case Kind.SHARE:
            return _share(figure)
        case Kind.GROWTH:
            return _growth(figure)
        case Kind.RATE | Kind.LOAD:
            return f"{figure:.2f}"
        case Kind.DURATION | Kind.LATENCY:
            return _ms(figure)
        case _:
            return str(figure)


def print_runs(
    title: str, measurements: Sequence[Measurement], seed: int | None, out: Console
) -> None:
    """Prints several runs: what they have in common (their seed where it is known), a table, and
    what must be known of some.
    """
    first = measurements[0]
    targets = dict.fromkeys(_who(each.summary.target) for each in measurements)
    rates = dict.fromkeys(f"{each.summary.requested_rps:.4g}" for each in measurements)
    out.print(
        f"[bold]{', '.join(targets)}[/]; "
        f"{', '.join(rates)} requests/s for {first.duration_s:.4g} s"
        + ("" if seed is None else f", seed {seed}")
        + _stated(first.summary.target),
        highlight=False,
    )
    out.print(runs_table(title, measurements, out.width < _NARROW))
    _print_promises(tables.promises_by_run(title, measurements), out)
    _print_portions(tables.worst_off(title, measurements), out)
    for line in (*caveats(measurements), f"[dim]{ON_PACE}[/]"):
        out.print(line, highlight=False)


def runs_table(title: str, measurements: Sequence[Measurement], narrow: bool = False) -> Table:
    """Shows a row per run, one column of attainment per tier; it fits 80 columns when narrow."""
    table = tables.runs_table(title, measurements)
    headings = {"run": title, "sent": "sent", "failed": "failed", "on time": "on\ntime"}
    headings |= {column.name: escape(column.tier) for column in table.columns if column.tier}
    if not narrow:
        headings |= {"on pace": "on\npace", "goodput /s": "good-\nput/s"}
    headings |= {"TTFT p99": "TTFT ms\np99"}
    if not narrow:
        headings |= {"longest gap": "gap ms\nmax", "lag p99": "lag ms\np99"}
        headings |= {"backlog growth": "backlog\ngrowth"}
    return _shown(table, headings | {"remark": ""}, narrow)


def caveats(measurements: Sequence[Measurement]) -> Iterable[str]:
    """Yields why some of several runs are partial or invalid, and the most frequent error of
    each.
    """
    for each in measurements:
        name, summary = escape(called(each)), each.summary
        for error, count in summary.errors[:1]:
            yield f"[red]{count} x[/] {name}: {escape(error)}"
        if summary.end is not End.COMPLETE:
            yield f"[red bold]PARTIAL[/] {name}: {escape(summary.problem)}"
        if summary.invalid:
            yield f"[red bold]INVALID[/] {name}: {summary.invalid}"
    if any(remark(each.summary) == BEHIND for each in measurements):
        yield f"{BEHIND}: {_BEHIND}"


def search_line(measurement: Measurement, passed: bool) -> str:
    """Tells one step of the search for capacity in a line."""
    summary = measurement.summary
    verdict = "[green]passes[/]" if passed else "[red]fails[/]"
    return (
        f"{escape(measurement.name):>14}  {_share(summary.total.attainment):>6} on time, "
        f"backlog {summary.backlog_growth:+.1%} of arrivals: {verdict}"
    )


def capacity_line(capacity: Capacity, max_misses: float) -> str:
    """Tells the result of the search in a line."""
    condition = f"with at most {max_misses:.2%} of all requests late and no growing backlog"
    if capacity.passed == 0:
        return f"no rate was found that is served {condition}; {capacity.failed:.4g}/s is not"
    if not capacity.is_bracketed:
        return f"capacity: at least {capacity.passed:.4g} requests/s {condition}"
    return (
        f"capacity: [bold]{capacity.passed:.4g} requests/s[/] {condition} "
        f"({capacity.failed:.4g}/s is too much)"
    )


def replicas_line(count: int, max_misses: float) -> str:
    """Tells the result of the search for replicas in a line."""
    engines = "1 engine serves" if count == 1 else f"{count} engines serve"
    return (
        f"[bold]{engines}[/] it with at most {max_misses:.2%} of all requests late and no growing"
        " backlog"
    )


def _lines(summary: Summary) -> Iterable[str]:
    total, lag = summary.total, summary.lag
    yield (
        f"rate {summary.achieved_rps:.2f} of {summary.requested_rps:.2f} requests/s sent, "
        f"schedule lag p50 {lag.p50_s * 1e3:.1f} p99 {lag.p99_s * 1e3:.1f} "
        f"max {lag.max_s * 1e3:.1f} ms"
    )
    yield (
        f"on time {_share(total.attainment)}, on pace {_share(total.pace_attainment)}, "
        f"goodput {total.goodput_rps:.2f} requests/s"
    )
    yield (
        f"output {total.output_tokens:,} tokens, {total.goodput_tokens_per_s:,.0f} tokens/s of "
        f"requests on time, longest gap {_ms(total.worst_gap_s)} ms, "
        f"{total.num_relegated} relegated"
    )
    yield f"backlog growth {summary.backlog_growth:+.1%} of the arriving tokens"
    if MEASURED.falls_behind(summary):
        yield f"[red]{_TOO_MUCH}[/]"
    if len(summary.by_prompt) > 1:
        yield f"long prompts are those over {summary.long_prompt_tokens} tokens (p90)"
    if total.num_rejected or total.num_unfinished:
        yield f"{total.num_rejected} rejected, {total.num_unfinished} unfinished at the end"
    if summary.num_abandoned:
        yield f"{summary.num_abandoned} in flight at the interruption, not counted"
    for error, count in summary.errors[:MOST_ERRORS]:
        yield f"[red]{count} x[/] {escape(error)}"
    if summary.end is not End.COMPLETE:
        yield f"[red bold]PARTIAL[/] {escape(summary.problem)}"
    if summary.invalid:
        yield f"[red bold]INVALID[/] {summary.invalid}"
    yield f"[dim]{ON_PACE}[/]"
    if gaps := tables.longest_gaps(summary):
        yield f"[dim]{escape(gaps)}[/]"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    ms = seconds * 1e3
    if seconds >= 10:
        return f"{seconds:.1f}s"
    return f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _growth(growth: float | None) -> str:
    return "-" if growth is None else f"{growth:+.1%}"
