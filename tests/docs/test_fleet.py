"""docs/fleet.md is followed to the letter, with the real gateway. What it has of Ray is run by
`tests/server/ray`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import pages
from tests.gateway.fleet import smg

PORTS = ("50052", "9465", "30000", "29000")


def test_no_call_is_lost_while_a_server_is_replaced(tmp_path: Path) -> None:
    if smg() is None:
        pytest.skip("no smg: pip install smg")
    said = pages.run(pages.ROOT / "docs" / "fleet.md", tmp_path, more_ports=PORTS)
    assert re.search(r"^ +200 200\n +\d+$", said, re.MULTILINE), said
    logs = [(tmp_path / f"decisions-{number}.jsonl").read_text() for number in (0, 1)]
    assert all('"kind": "arrived"' in log for log in logs)
