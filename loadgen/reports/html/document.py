"""A report as one HTML page that needs nothing else: its style, its script and its data are in it.

The text of the page is made here, the charts are drawn by its own script from the data beside it.
A policy in the page forbids it to load anything.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from loadgen.reports.html.chart import to_json
from loadgen.reports.html.page import Page

_SCRIPTS = ("svg.js", "pointer.js", "curves.js", "bars.js", "page.js")


def write(page: Page, path: Path) -> None:
    """Writes the page as one HTML file. Raises OSError."""
    path.write_text(to_html(page), encoding="utf-8")


def to_html(page: Page) -> str:
    """Returns the page as HTML."""
    environment = Environment(
        loader=FunctionLoader(_part), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("template.html").render(
        page=page,
        style=_part("style.css"),
        script="\n".join(_part(name) for name in _SCRIPTS),
        charts=_charts(page),
    )


def _part(name: str) -> str:
    return files("loadgen.reports.html").joinpath(name).read_text(encoding="utf-8")


def _charts(page: Page) -> list[list[Any]]:
    """Returns the charts of each section, as the script draws them."""
    return [[_rounded(to_json(chart)) for chart in section.charts] for section in page.sections]


def _rounded(value: Any) -> Any:
    """Rounds every number to five digits: nobody sees more, and the page is half as large."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
