"""A real Prometheus scrapes a real server: an alert fires for requests that are late, every panel
of the dashboard has something to show, and the runbook's commands run as they are written.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from niyama.client import Client, NiyamaError, QueueFull
from niyama.client.options import GenerateOptions
from tests.docs.test_promql import queries
from tests.server.frontends.test_frontends import free_port
from tests.server.monitoring.dashboard import expressions, metrics
from tests.server.monitoring.prometheus import LIMIT_S, README, Prometheus, promtool, until
from tests.server_process import ServerProcess

MAX_REQUESTS = 6
NUM_CALLERS = 2 * MAX_REQUESTS
LATE: GenerateOptions = {"ttft": 0.001, "tbt": 0.001}  # seconds, which nobody can keep
CALLS: tuple[GenerateOptions, ...] = (
    {"tier": "interactive", "tenant": "acme"},
    {"tier": "batch", "importance": "low"},
    {"best_effort": True},
    {**LATE},
    {"tier": "standard", "timeout": 0.02},
    {**LATE, "importance": "high"},
)


class Traffic:
    """Callers who call again and again, of every kind, more than there is room for."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(NUM_CALLERS)

    def __enter__(self) -> Traffic:
        self._callers = [self._pool.submit(self._call, i) for i in range(NUM_CALLERS)]
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._pool.shutdown()
        for caller in self._callers:
            caller.result()

    def _call(self, number: int) -> None:
        with Client(self._address, retries=False) as client:
            for i in itertools.count(number):
                if self._is_over.is_set():
                    return
                with contextlib.suppress(NiyamaError):  # refused, expired
                    client.complete("Once upon a time", max_tokens=8, **CALLS[i % len(CALLS)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("monitoring")


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(folder: Path, metrics_port: int) -> Iterator[ServerProcess]:
    """Of two front ends, so that it has all metrics there are."""
    config = folder / "niyama.toml"
    config.write_text("[tenants.acme]\n[tiers.interactive]\nttft_s = 5\ntbt_s = 0.5\n")
    flags = ("--frontends", "2", "--torch-threads", "1", "--max-requests", str(MAX_REQUESTS))
    ports = ("--metrics-port", str(metrics_port))
    with ServerProcess(folder / "log", *flags, *ports) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="module")
def prometheus(folder: Path, service: ServerProcess, metrics_port: int) -> Iterator[Prometheus]:
    """Of a service that is called all the time."""
    with (
        Prometheus(folder, free_port(), f"localhost:{metrics_port}") as process,
        Traffic(service.address),
    ):
        process.wait_ready()
        yield process


def test_metrics_are_as_prometheus_wants_them(prometheus: Prometheus, metrics_port: int) -> None:
    url = f"http://127.0.0.1:{metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
        promtool("check", "metrics", told=response.read().decode())


def test_an_alert_fires_for_requests_that_are_late(prometheus: Prometheus) -> None:
    def burning() -> list[dict]:
        found = prometheus.firing().get("NiyamaObjectiveBurnsFast", [])
        return [alert for alert in found if alert["labels"]["tier"] == "explicit"]

    (alert,) = until(burning)
    assert alert["labels"]["severity"] == "ticket"
    assert alert["annotations"]["summary"].startswith("Tier explicit misses its objective: ")
    problems = [
        r for g in prometheus.get("rules")["groups"] for r in g["rules"] if r["health"] == "err"
    ]
    assert not problems


def test_every_panel_has_something_to_show(prometheus: Prometheus) -> None:
    known = set(prometheus.get("label/__name__/values"))
    for expression in expressions():
        unknown = metrics(expression) - known
        assert not unknown, expression
        until(lambda text=expression: prometheus.query(text))


def test_the_queries_of_the_page_are_answered(prometheus: Prometheus, request_id: str) -> None:
    """The request states no targets, which none of the others does."""
    for query in queries():
        recent = re.sub(r"\[\d+d:\d+m\]", "[1m:1s]", query)  # steps that have been
        until(lambda text=recent: prometheus.query(text))


def commands() -> list[str]:
    """Of "Woken at night"."""
    section = README.read_text().partition("\n## Woken at night\n")[2].partition("\n## ")[0]
    lines = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [line.partition(" #")[0].strip() for block in lines for line in block.splitlines()]


@pytest.fixture(scope="module")
def request_id(prometheus: Prometheus, service: ServerProcess) -> str:
    """Of a request that was served, once there was room for it."""
    with Client(service.address, retries=False) as client:

        def served() -> str:
            with contextlib.suppress(QueueFull):
                return client.complete("Once", max_tokens=2, importance="high").request_id
            return ""

        return until(served)


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_runbook_runs_as_it_is_written(
    command: str, request_id: str, service: ServerProcess, metrics_port: int
) -> None:
    """But for the address, and with the Python of the tests."""
    environment = {
        **os.environ,
        "ID": request_id,
        "NIYAMA_SERVER": service.address,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{README.parents[1]}:{README.parents[1] / 'client'}",
    }
    here = command.replace("localhost:9464", f"localhost:{metrics_port}")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", here],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
