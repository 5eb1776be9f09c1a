"""The pages under docs/ and deploy/: their commands run, their links lead somewhere, and the panels
that they name exist.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.pages import ROOT
from tests.server.monitoring.dashboard import dashboard

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *(ROOT / "deploy").glob("*.md")])


@pytest.mark.parametrize("name", ["capacity", "tenants", "upgrade"])
def test_the_commands_of_a_page_run(name: str, tmp_path: Path) -> None:
    assert pages.run(DOCS / f"{name}.md", tmp_path)


def names_of_panels() -> set[str]:
    """Returns what dashboard and status page call what they show."""
    page = (ROOT / "server" / "status" / "page.html").read_text()
    tables = re.findall(r"<h2>(.*?)</h2>", page)
    return {panel["title"] for panel in dashboard()["panels"]} | set(tables)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_panels_that_a_page_names_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    quoted = {" ".join(name.split()) for name in re.findall(r'"([A-Z][^"]{4,60})"', text)}
    unknown = {name for name in quoted if not any(p.startswith(name) for p in names_of_panels())}
    assert not unknown


def anchors(page: Path) -> set[str]:
    """Returns what a link into a page may name: its headings, as they are shown, and its own."""
    text = page.read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    shown = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return shown | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target
