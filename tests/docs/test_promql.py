"""The queries of docs/promql.md are queries, of metrics that exist.

tests/server/monitoring/test_live.py has a real Prometheus answer them.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.docs.pages import ROOT, blocks
from tests.server.monitoring.prometheus import promtool

PAGE = ROOT / "docs" / "promql.md"


def queries() -> list[str]:
    """Returns the queries of the page."""
    found = [block.text for block in blocks(PAGE) if block.language == "promql"]
    assert len(found) > 10
    return found


def test_the_queries_can_be_read(tmp_path: Path) -> None:
    rules = [{"record": f"q{i}", "expr": query} for i, query in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": rules}]}))
    promtool("check", "rules", str(file))
