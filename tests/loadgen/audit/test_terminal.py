"""The audit in the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from loadgen.audit.terminal import print_page
from loadgen.reports.html.page import Page
from loadgen.reports.html.text import WrittenTable


def test_a_narrow_terminal_breaks_no_word_or_figure_and_shows_no_column_of_zeros() -> None:
    header = ["tenant", "arrived", "failed", "left by its caller", "share on time", "preempted"]
    rows = [["a tenant of a long name", "1,234,567", "0", "12", "99.9 %", "7"]]
    page = Page("", "", "", tables=[WrittenTable("Who", header, rows)])
    out = io.StringIO()
    print_page(page, Console(width=52, file=out))
    words = out.getvalue().split()
    assert {"arrived", "1,234,567", "caller", "12", "99.9", "share", "preempted", "7"} <= {*words}
    assert "failed" not in words
