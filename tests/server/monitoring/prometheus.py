"""Debian's Prometheus for the tests of what operators load into theirs; they skip without it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "server" / "monitoring"
RULES = (FOLDER / "recording.yml", FOLDER / "alerts.yml")


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where there is none."""
    if found := shutil.which(name):
        return found
    pytest.skip(f"no {name} here (Debian: apt-get install prometheus)")


def promtool(*arguments: str) -> None:
    """Runs it, and fails with what it said where it is not content."""
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> dict[str, dict]:
    """The alerts' rules by name, as they stand in the file."""
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    found = {rule["alert"]: rule for rule in rules}
    assert len(found) == len(rules), "an alert's name is taken twice"
    return found
