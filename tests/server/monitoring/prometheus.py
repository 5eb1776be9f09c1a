"""Debian's Prometheus for the tests of what operators load into theirs; they skip without it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "server" / "monitoring"
RULES = (FOLDER / "recording.yml", FOLDER / "alerts.yml")
README = FOLDER.parent / "README.md"
LIMIT_S = 120.0
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
T = TypeVar("T")


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where there is none."""
    if found := shutil.which(name):
        return found
    pytest.skip(f"no {name} here (Debian: apt-get install prometheus)")


def promtool(*arguments: str, told: str = "") -> None:
    """Runs it, with `told` on standard input, and fails with what it said."""
    done = subprocess.run(
        [program("promtool"), *arguments],
        input=told,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> dict[str, dict]:
    """The alerts' rules by name, as they stand in the file."""
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    found = {rule["alert"]: rule for rule in rules}
    assert len(found) == len(rules), "an alert's name is taken twice"
    return found


def hurried(rules: str, times: int) -> str:
    """The text of rules with every window and wait so many times shorter."""

    def shorter(found: re.Match[str]) -> str:
        milliseconds = int(found[2]) * SECONDS[found[3]] * 1000 // times
        return f"{found[1]}{milliseconds}ms{found[4]}"

    return re.sub(r"(\[|\bfor: )(\d+)([smhd])(\]|$)", shorter, rules, flags=re.MULTILINE)


class Prometheus:
    """It scrapes one address every second, under the rules of the files in a hurry: an hour takes a
    minute. Ends with the `with` block, and with the tests.
    """

    def __init__(self, folder: Path, port: int, target: str) -> None:
        for path in RULES:
            (folder / path.name).write_text(hurried(path.read_text(), 60))
        example = (FOLDER / "prometheus.yml").read_text()
        example = re.sub(r"_interval: \d+s", "_interval: 1s", example)
        assert "localhost:9464" in example
        config = folder / "prometheus.yml"
        config.write_text(example.replace("localhost:9464", target))
        self.url = f"http://127.0.0.1:{port}"
        self._child = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", program("prometheus")),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
        )

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.terminate()
        self._child.wait(LIMIT_S)

    def wait_ready(self) -> None:
        until(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._child.poll() is None
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=LIMIT_S) as response:
                return response.status == 200
        except OSError:  # it does not listen yet, or says 503
            return False

    def get(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its API. Raises AssertionError with what it found wrong."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        return answer["data"]

    def query(self, expression: str) -> list[dict]:
        """The samples of an expression, now."""
        return list(self.get("query", query=expression)["result"])

    def firing(self) -> dict[str, list[dict]]:
        """The alerts that fire, by name."""
        found: dict[str, list[dict]] = {}
        for alert in self.get("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found


def until(look: Callable[[], T]) -> T:
    """Looks again and again, for what another process does and tells nobody of."""
    end = time.monotonic() + LIMIT_S
    while not (found := look()):
        assert time.monotonic() < end, look
        time.sleep(0.05)
    return found
