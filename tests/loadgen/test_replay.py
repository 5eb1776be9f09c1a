"""`--replay LOG`, as typed: what production got, on other engines, beside what became of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli import EXIT_USAGE, main
from loadgen.reports.__main__ import main as make_again
from loadgen.workload.logged import load


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tenants overload a simulated engine for twenty seconds, with a deadline each."""
    path = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    load = ["--rps", "8", "--duration", "15s", "--prompt-tokens", "2000", "--timeout", "30s"]
    who = ["--tenants", "acme:0.5,other:0.5", "--weights", "acme:2", "--importance", "high:1"]
    tiers = ["--tier", "interactive=2s/50ms", "--tier", "standard=8s", "--tier", "batch=25s"]
    simulated = ["--simulate", "a100-llama3-8b", "--decision-log", str(path)]
    assert main([*simulated, *load, *who, *tiers]) == 0
    return path


@pytest.fixture(autouse=True)
def fresh() -> None:
    load.cache_clear()


def replayed(log: Path, tmp_path: Path, *flags: str) -> dict[str, Any]:
    path = tmp_path / "report.json"
    assert main(["--replay", str(log), "--json", str(path), *flags]) == 0
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_on_the_log_s_own_engine_everything_is_as_it_was(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, records = tmp_path / "page.html", tmp_path / "run.csv"
    files = ("--html", str(page), "--csv", str(records))
    document = replayed(log, tmp_path, "--simulate", "log", *files)
    (run,) = document["runs"]
    assert run["target"]["weights"] == {"acme": 2.0}
    assert {t["name"]: t["ttlt_s"] for t in run["target"]["tiers"]}["batch"] == 25.0
    here = {each["group"]: each for each in (*run["by_tier"], run["total"])}
    assert run["log"]["files"] == [str(log)]
    assert len(run["log"]["by_tier"]) == 4
    for then in run["log"]["by_tier"]:
        assert sum(then["fates"].values()) == here[then["group"]]["num_sent"]
        assert then["attainment"] == pytest.approx(here[then["group"]]["attainment"], abs=0.05)
    assert 0.1 < here["all"]["attainment"] < 0.95
    assert {each["group"] for each in run["by_tenant"]} == {"acme", "other"}
    assert {each["group"] for each in run["by_importance"]} == {"high"}
    printed = capsys.readouterr().out
    assert "max_tokens stated: as logged" in printed
    assert "difference" in printed
    assert "of the log " in printed
    assert "Replayed from a decision log" in page.read_text()
    assert "Against the log" in page.read_text()
    assert make_again([str(records), "--json", str(tmp_path / "again.json")]) == 0
    (again,) = json.loads((tmp_path / "again.json").read_text())["runs"]
    assert again["total"] == run["total"]


def test_other_tiers_policies_rates_and_parts_are_tried_on_it(log: Path, tmp_path: Path) -> None:
    simulated = ("--simulate", "log")
    total = replayed(log, tmp_path, *simulated)["runs"][0]["total"]
    tiers = ("--tier", "interactive=60s/500ms", "--tier", "standard=60s", "--tier", "batch=60s")
    generous = replayed(log, tmp_path, *simulated, *tiers)["runs"][0]
    assert generous["total"]["num_sent"] == total["num_sent"]
    assert generous["total"]["attainment"] > total["attainment"]
    scaled = replayed(log, tmp_path, *simulated, "--scale", "1.5")["runs"][0]
    assert scaled["total"]["num_sent"] == pytest.approx(1.5 * total["num_sent"], rel=0.05)
    assert scaled["log"]["factor"] == pytest.approx(1.5)
    assert scaled["total"]["attainment"] < total["attainment"]
    part = replayed(log, tmp_path, *simulated, "--duration", "5s")["runs"][0]
    assert sum(part["log"]["by_tier"][-1]["fates"].values()) == part["total"]["num_sent"]
    assert 5 < part["total"]["num_sent"] < 70
    both = replayed(log, tmp_path, *simulated, "--compare", "niyama,fcfs")["runs"]
    assert [run["contender"] for run in both] == ["niyama", "fcfs"]
    assert both[0]["total"]["attainment"] == pytest.approx(total["attainment"])
    alone = replayed(log, tmp_path, *simulated, "--fair-share")["runs"][0]
    assert all(each["alone"] is not None for each in alone["portions"])


def test_how_many_engines_next_month(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    flags = ("--simulate", "log", "--scale", "1.5", "--find-replicas", "--html", str(page))
    document = replayed(log, tmp_path, *flags)
    count = document["replicas"]
    assert document["mode"] == "find-replicas"
    assert count > 1
    printed = capsys.readouterr().out
    assert f"{count} engines serve it" in printed
    verdicts = {line.split(" x ")[0].strip(): line for line in printed.splitlines()}
    assert verdicts[f"{count}"].endswith("passes")
    assert verdicts[f"{count - 1}"].endswith("fails")
    assert "Search for the fewest engines" in page.read_text()
    assert f"{count} engines serve it" in page.read_text()


def test_several_logs_are_one_load_and_the_files_of_one_are_read_in_turn(
    log: Path, tmp_path: Path
) -> None:
    lines = log.read_text().splitlines(keepends=True)
    cut = len(lines) // 2
    (tmp_path / "d.jsonl.1").write_text("".join(lines[:cut]))
    (tmp_path / "d.jsonl").write_text(lines[0] + "".join(lines[cut:]))
    whole = replayed(log, tmp_path, "--simulate", "log")["runs"][0]
    split = replayed(tmp_path / "d.jsonl", tmp_path, "--simulate", "log")["runs"][0]
    assert split["total"] == whole["total"]
    two = f"{log},{tmp_path / 'd.jsonl'}"
    twice = replayed(Path(two), tmp_path, "--simulate", "log", "--replicas", "2")["runs"][0]
    assert twice["total"]["num_sent"] == 2 * whole["total"]["num_sent"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--mix", "batch:1"), "argument --mix: not allowed with a decision log"),
        (("--tenants", "a:1"), "argument --tenants: not allowed with a decision log"),
        (("--stated-output", "9"), "argument --stated-output: not allowed with a decision log"),
        (("--cv", "3"), "argument --replay: not allowed with --arrivals or --cv"),
        (("--scale", "2", "--rps", "3"), "argument --scale: not allowed with argument --rps"),
        (("--scale", "0"), "'0' is not a factor"),
    ],
)
def test_what_the_log_says_is_not_said_again(
    log: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert status(["--replay", str(log), "--simulate", "log", *flags]) == EXIT_USAGE
    assert said in capsys.readouterr().err


def status(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: no column TIMESTAMP"),
        ('{"kind": "engine"}\n', "line 1: at is to be a number"),
        ('{"kind": "arrived"', "no request arrived in it"),
        ('{"when": 1}\n', "line 1: not a line of a decision log"),
        ('[{"kind": "engine"}]\n', "line 1: no column TIMESTAMP"),
        ("\x00\x01", "line 1: no column TIMESTAMP"),
    ],
)
def test_what_is_no_log_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "foreign"
    path.write_text(text)
    assert status(["--replay", str(path), "--simulate", "a100-llama3-8b"]) == EXIT_USAGE
    err = capsys.readouterr().err
    assert said in err
    assert str(path) in err
    assert err.count("\n") == 1


def test_log_is_a_profile_of_a_log_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(["--simulate", "log"]) == EXIT_USAGE
    assert "it needs --replay" in capsys.readouterr().err
    assert status(["--find-replicas"]) == EXIT_USAGE
    assert "only with --simulate" in capsys.readouterr().err


def test_a_log_without_an_end_is_replayed_with_calls_that_had_no_time_left(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "torn"
    entries = [json.loads(line) for line in log.read_text().splitlines()[:200]]
    begun = [each for each in entries if each["kind"] in ("engine", "arrived")]
    begun[1]["timeout_s"] = 0.0
    torn.write_text("".join(json.dumps(each) + "\n" for each in begun))
    (run,) = replayed(torn, tmp_path, "--simulate", "log")["runs"]
    assert [each["attainment"] for each in run["log"]["by_tier"]][-1] is None
    assert "difference" in capsys.readouterr().out
