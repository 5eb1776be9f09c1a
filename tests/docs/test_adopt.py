"""docs/adopt.md is followed to the letter: every command and every piece of Python, in order."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs import pages

PAGE = pages.ROOT / "docs" / "adopt.md"


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    said = pages.run(PAGE, tmp_path)
    assert "1 engine serves it" in said
    assert "of 1000 users" in said
    assert "of the log decisions.jsonl" in said
    assert "20 answers" in said
    assert (tmp_path / "audit.html").stat().st_size > 1000
    assert (tmp_path / "all.html").stat().st_size > 1000
    for tier in ("chat", "completion", "nightly"):
        assert re.search(rf"^ {tier} +\d", said, re.MULTILINE), f"{tier} is in no report"
