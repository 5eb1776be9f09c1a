"""A run that is told to end, or killed: what was recorded is reported, and no process is left."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.loadgen.conftest import LittleServer
from tests.loadgen.targets.test_local_server import NEVER_READY
from tests.server.frontends.test_frontends import free_port

WAIT_S = 60.0
# `python -m loadgen` and its demo, but the servers that they start are of the module named first.
LOADGEN = "import sys; from loadgen.cli import main; sys.exit(main(sys.argv[2:], sys.argv[1]))"
DEMO = """
import sys
from pathlib import Path
from loadgen.demo.command import main
sys.exit(main([], folder=Path(sys.argv[2]), server=sys.argv[1]))
"""
STREAMED = 'outcome="OK",rpc="GenerateStream"'
# What an evaluation does whose answers take long.
POOL = """
import sys, time
from loadgen import interrupts
from loadgen.paper.jobs import worker_pool
try:
    with interrupts.handled(interrupts.interrupt), worker_pool(2) as pool:
        futures = [pool.submit(time.sleep, 1000) for _ in range(2)]
        [future.result() for future in futures]
except interrupts.Interrupted as interrupt:
    sys.exit(interrupts.exit_status(interrupt.number))
"""


def until(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


@contextmanager
def started(script: str, *argv: str) -> Iterator[psutil.Popen]:
    """And whatever it has started is gone at the end, in any case."""
    command = [sys.executable, "-c", script, *argv]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        for each in (*process.children(recursive=True), process) if process.is_running() else ():
            each.kill()
        process.wait()
        process.stderr.close()


def ended(process: psutil.Popen, number: int) -> tuple[int, str]:
    """Sends it the signal: its exit status, and what it said. Its children end, too."""
    children = process.children(recursive=True)
    assert children
    process.send_signal(number)
    try:
        status = process.wait(WAIT_S)
        _, alive = psutil.wait_procs(children, WAIT_S)
        assert not alive
    finally:
        for child in children:
            if child.is_running():
                child.kill()
    return status, process.stderr.read().decode()


@contextmanager
def comparing(report: Path) -> Iterator[psutil.Popen]:
    """In the middle of the first run, before the second contender."""
    port = free_port()
    flags = ("--compare", "fcfs,edf", "--server-flags", f"--metrics-port {port}", "--rps", "50")
    long = ("--duration", "1h", "--output-tokens", "5", "--json", str(report))
    with started(LOADGEN, "tests.null_server", *flags, *long) as process:

        def is_serving() -> bool:
            assert process.poll() is None, process.stderr.read()
            try:
                url = f"http://127.0.0.1:{port}/metrics"
                with urllib.request.urlopen(url, timeout=WAIT_S) as response:
                    return f"niyama_rpcs_total{{{STREAMED}}}" in response.read().decode()
            except OSError:
                return False

        until(is_serving)
        yield process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_comparison_with_its_report_and_its_server(
    tmp_path: Path, number: signal.Signals
) -> None:
    with comparing(tmp_path / "report.json") as process:
        assert ended(process, number) == (128 + number, "")
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert (run["contender"], run["end"]) == ("fcfs", "interrupted")
    assert run["total"]["num_finished"] > 0


def test_one_that_is_killed_leaves_no_server(tmp_path: Path) -> None:
    with comparing(tmp_path / "report.json") as process:
        assert ended(process, signal.SIGKILL)[0] == -signal.SIGKILL


@pytest.mark.parametrize("script", [LOADGEN, DEMO])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_waits_for_its_server_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, number: signal.Signals
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', os.getcwd())}")
    (tmp_path / "little.py").write_text(NEVER_READY)
    temporary, report = tmp_path / "temporary", tmp_path / "report"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    argv = ("--compare", "fcfs") if script == LOADGEN else (str(report),)
    with started(script, "little", *argv) as process:
        until(lambda: len(process.children(recursive=True)) == 2)  # it, and what it has started
        status, said = ended(process, number)
    assert status == 128 + number
    assert "Traceback" not in said
    assert not list(temporary.iterdir())


def test_a_demo_that_is_interrupted_while_it_sends_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, report = tmp_path / "temporary", tmp_path / "report"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with started(DEMO, "tests.null_server", str(report)) as process:
        for line in process.stderr:
            if line.startswith(b"sending under fcfs"):
                break
        status, said = ended(process, signal.SIGINT)
    assert status == 128 + signal.SIGINT
    assert re.fullmatch(r"(  .*\n)*sending under fcfs: not done, after \d+ s\n", said)
    assert not list(temporary.iterdir())
    assert not report.exists()


def test_a_demo_that_is_interrupted_while_it_imports_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", os.getcwd()))
    command = [sys.executable, "-X", "importtime", "-m", "loadgen.demo"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path) as process:
        for line in process.stderr:
            if line.rstrip().endswith(" google.protobuf"):  # of much that it needs
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=WAIT_S)
        status = process.returncode
    assert status in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_of_an_evaluation_end_with_it(number: signal.Signals) -> None:
    with started(POOL) as process:
        until(lambda: len(process.children(recursive=True)) >= 2)
        status, said = ended(process, number)
    assert status == (128 + number if number == signal.SIGTERM else -number)
    assert "Traceback" not in said


def test_a_terminal_that_goes_away_takes_the_report_with_it_and_not_the_files(
    little: LittleServer, tmp_path: Path
) -> None:
    """The run goes on: what is drawn is for whoever watches."""
    ours, theirs = pty.openpty()
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "loadgen", "--target", little.address, "--rps", "20"]
    flags = ("--duration", "2s", "--json", str(report))
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen([*command, *flags], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    while b"sent" not in os.read(ours, 4096):
        pass
    os.close(ours)
    assert process.wait(WAIT_S) == 1
    (run,) = json.loads(report.read_text())["runs"]
    assert run["end"] == "complete"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_costs_what_is_on_it_and_nothing_else(
    little: LittleServer, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "loadgen", "--target", little.address, "--rps", "20"]
    flags = ("--duration", "200ms", "--csv", "/dev/full", "--json", str(tmp_path / "report.json"))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, *flags], stdout=full, stderr=subprocess.PIPE, timeout=WAIT_S, check=False
        )
    assert done.stderr == b"niyama-loadgen: /dev/full: No space left on device\n"
    assert done.returncode == 2
    assert json.loads((tmp_path / "report.json").read_text())["runs"]
