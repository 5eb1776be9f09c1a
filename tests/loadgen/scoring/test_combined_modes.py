"""A sweep or a search of each contender of a comparison; and what is kept of a mode that fails."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli import EXIT_TARGET, main
from tests.loadgen.conftest import WAIT_S, LittleServer
from tests.loadgen.test_command import die_at

Capture = pytest.CaptureFixture[str]
SIMULATED = ("--simulate", "a100-llama3-8b", "--duration", "20s", "--prompt-tokens", "2000")


def runs(path: Path) -> Any:
    return json.loads(path.read_text())["runs"]


def test_each_contender_is_swept_over_the_same_rates(tmp_path: Path, capsys: Capture) -> None:
    figures = tmp_path / "figures.json"
    flags = ("--compare", "niyama,fcfs", "--sweep", "1,2", "--json", str(figures))
    assert main([*SIMULATED, *flags]) == 0
    done = [(run["contender"], run["rate"], run["name"]) for run in runs(figures)]
    assert done == [
        ("niyama", 1.0, "niyama 1/s"),
        ("niyama", 2.0, "niyama 2/s"),
        ("fcfs", 1.0, "fcfs 1/s"),
        ("fcfs", 2.0, "fcfs 2/s"),
    ]
    sent = [run["total"]["num_sent"] for run in runs(figures)]
    assert sent[:2] == sent[2:]
    assert "fcfs 2/s" in capsys.readouterr().out


def test_each_contender_has_a_capacity(tmp_path: Path, capsys: Capture) -> None:
    figures = tmp_path / "figures.json"
    search = ("--find-capacity", "--precision", "1", "--repeats", "1", "--rps", "4")
    assert main([*SIMULATED, "--compare", "niyama,fcfs", *search, "--json", str(figures)]) == 0
    capacities = json.loads(figures.read_text())["capacities"]
    assert list(capacities) == ["niyama", "fcfs"]
    assert capacities["niyama"]["passed_rps"] >= capacities["fcfs"]["passed_rps"] > 0
    assert "niyama capacity: " in capsys.readouterr().out


def test_a_search_whose_server_dies_keeps_its_runs(
    little: LittleServer, tmp_path: Path, capsys: Capture
) -> None:
    figures = tmp_path / "figures.json"
    dying = threading.Thread(target=die_at, args=(little, 5))
    dying.start()
    load = ("--find-capacity", "--rps", "50", "--duration", "1h", "--json", str(figures))
    assert main(["--target", little.address, *load]) == EXIT_TARGET
    dying.join(WAIT_S)
    (run,) = runs(figures)
    assert run["end"] == "target_lost"
    assert run["total"]["num_finished"] >= 4
    error = capsys.readouterr().err
    assert error.startswith(f"niyama-loadgen: {little.address}: lost during the run")
    assert error.count("\n") == 1


def test_a_contender_that_is_not_there_leaves_the_others_runs(
    little: LittleServer, tmp_path: Path, capsys: Capture
) -> None:
    figures = tmp_path / "figures.json"
    contenders = f"here={little.address},gone=127.0.0.1:1"
    load = ("--rps", "50", "--duration", "0.2s", "--max-lag", "10s", "--json", str(figures))
    assert main(["--compare", contenders, *load]) == EXIT_TARGET
    assert [run["name"] for run in runs(figures)] == ["here"]
    output = capsys.readouterr()
    assert output.err.startswith("niyama-loadgen: 127.0.0.1:1: ")
    assert "here" in output.out
