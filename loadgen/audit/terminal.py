"""The audit in the terminal: the answer, and what became of every tenant's arrivals."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadgen.reports.html.page import Page
from loadgen.reports.html.text import WrittenTable


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
    shown = Table(title=escape(table.title), box=box.SIMPLE_HEAD, title_justify="left")
    for index, heading in enumerate(table.header):
        shown.add_column(escape(heading), justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown
