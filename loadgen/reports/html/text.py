"""Figures, targets and tables as the page writes them: shares in per cent, latencies in
milliseconds or, where one column has those of seconds and of minutes, with their unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, assert_never

from loadgen.reports.tables import Column, Figure, Kind, Table
from loadgen.scoring.score import Percentiles
from niyama.client.values import Targets

DASH = "–"
_NO_BREAK = "\N{NO-BREAK SPACE}"


class Trace(NamedTuple):
    """What a row was made from: some of it by name, and the command that lists all of it."""

    examples: Sequence[str]
    command: str


class WrittenTable(NamedTuple):
    """A table as it is read. The first cell of each row is its name. `traces`, if there are any,
    has one for each row.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    traces: Sequence[Trace] = ()


def written(table: Table) -> WrittenTable:
    """Writes every column of a table; percentiles become two, the median and p99."""
    header = [heading for column in table.columns for heading in _headings(column)]
    rows = [
        [
            cell
            for column, figure in zip(table.columns, row, strict=True)
            for cell in _cells(column.kind, figure)
        ]
        for row in table.rows
    ]
    return WrittenTable(table.title, header, rows)


def _headings(column: Column) -> Iterator[str]:
    if column.kind is Kind.PERCENTILES:
        yield f"{column.name} p50 ms"
        yield f"{column.name} p99 ms"
    else:
        yield column.name + (" ms" if column.kind is Kind.LATENCY else "")


def _cells(kind: Kind, figure: Figure) -> Iterator[str]:
    if isinstance(figure, Percentiles):
        yield milliseconds(figure.p50)
        yield milliseconds(figure.p99)
    elif isinstance(figure, str):
        yield figure
    elif figure is None:
        yield DASH
    else:
        yield _number(kind, figure)


def _number(kind: Kind, figure: float) -> str:
    match kind:
        case Kind.COUNT:
            return f"{figure:,}"
        case Kind.SHARE:
            return share(figure)
        case Kind.GROWTH:
            return _unbroken(f"{figure:+.1%}")
        case Kind.LOAD:
            return f"{figure:.4g}"
        case Kind.RATE:
            return f"{figure:.2f}"
        case Kind.DURATION:
            return duration(figure)
        case Kind.LATENCY:
            return milliseconds(figure)
        case Kind.TEXT | Kind.PERCENTILES:
            raise AssertionError(f"{kind} is no number")
    assert_never(kind)


def share(value: float | None) -> str:
    """Writes a share between 0 and 1 in per cent, to one decimal."""
    return DASH if value is None else _unbroken(f"{value:.1%}")


def _unbroken(percentage: str) -> str:
    return percentage.replace("%", f"{_NO_BREAK}%")


def milliseconds(seconds: float | None) -> str:
    """Writes seconds in milliseconds, without the unit; below ten of them to one decimal."""
    if seconds is None:
        return DASH
    return f"{seconds * 1e3:.1f}" if seconds < 0.01 else f"{seconds * 1e3:,.0f}"


def duration(seconds: float | None) -> str:
    """Writes seconds with their unit, to three digits: in milliseconds below a second."""
    if seconds is None:
        return DASH
    if seconds < 1:
        return f"{seconds * 1e3:.3g}{_NO_BREAK}ms"
    return (f"{seconds:.3g}" if seconds < 1000 else f"{seconds:,.0f}") + f"{_NO_BREAK}s"


def targets_text(targets: Targets) -> str:
    """Writes the targets of a tier, such as "TTFT 1 s, TBT 50 ms"."""
    named = (("TTFT", targets.ttft), ("TBT", targets.tbt), ("TTLT", targets.ttlt))
    return ", ".join(f"{name} {duration(s)}" for name, s in named if s is not None) or "best effort"
