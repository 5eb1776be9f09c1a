"""docs/openai.md is followed to the letter, with the real gateway and OpenAI's own client."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs import pages
from tests.gateway.fleet import smg

PORTS = ("50052", "50061", "50062", "30000", "29000")


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    if smg() is None or find_spec("openai") is None:
        pytest.skip("no smg or no openai: pip install smg openai")
    said = pages.run(pages.ROOT / "docs" / "openai.md", tmp_path, more_ports=PORTS)
    assert re.search(r"^interactive;importance=high-[0-9a-f-]{36}$", said, re.MULTILINE)
    assert "TTLT 60,000.0 ms (from gateway: request id), importance low" in said
    chat = re.search(r"^chat: a first token after at most (\S+) s$", said, re.MULTILINE)
    batch = [line.split() for line in (tmp_path / "batch.txt").read_text().splitlines()]
    assert chat is not None
    assert {status for status, _ in batch} == {"200"}
    assert float(chat[1]) < max(float(seconds) for _, seconds in batch)
    for log in ("one.jsonl", "two.jsonl"):
        lines = [json.loads(line) for line in (tmp_path / log).read_text().splitlines()]
        assert {"interactive", "batch"} <= {line.get("tier") for line in lines}
