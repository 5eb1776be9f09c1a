"""The audit in the terminal: the answer, and what became of every tenant's arrivals."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadgen.reports.html.page import Page
from loadgen.reports.html.text import WrittenTable

_LEAST_WIDTH = 8  # of the names of rows


def print_page(page: Page, out: Console) -> None:
    """Prints what comes first of a page, and its first table."""
    out.print(f"[bold]{escape(page.headline)}[/]", highlight=False)
    out.print(escape(page.subtitle), highlight=False)
    for notice in page.notices:
        out.print(f"[yellow]{escape(notice.title)}[/]: {escape(notice.text)}", highlight=False)
    for answer in page.answers:
        out.print(f"- {escape(answer)}", highlight=False)
    out.print(_shown(page.tables[0]))


def _shown(table: WrittenTable) -> Table:
    """Returns the table without the columns in which there is nothing but zeros."""
    shown = Table(title=escape(table.title), box=box.SIMPLE_HEAD, title_justify="left")
    shown.padding, shown.pad_edge = (0, 1, 0, 0), False
    told = [i for i in range(len(table.header)) if any(row[i] != "0" for row in table.rows)]
    for i in told:
        heading = escape(table.header[i])
        if not i:
            shown.add_column(heading, overflow="fold", min_width=_LEAST_WIDTH)
        else:  # its words are not broken
            heading = heading.replace(" ", "\n")
            shown.add_column(heading, justify="right", overflow="fold", no_wrap=True)
    for row in table.rows:
        shown.add_row(*(escape(row[i]) for i in told))
    return shown
