"""`--simulate` in every mode, as typed: the same flags, the same report, the same exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli import EXIT_GATE, EXIT_USAGE, main
from loadgen.reports.__main__ import main as make_again

SIMULATED = ("--simulate", "a100-llama3-8b", "--duration", "40s", "--prompt-tokens", "2000")


def report(tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "report.json"
    status = main([*SIMULATED, "--json", str(path), *flags])
    return status, json.loads(path.read_text())


def test_one_run_prints_the_report_of_a_live_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = report(tmp_path, "--rps", "2", "--mix", "interactive:0.6")
    (run,) = document["runs"]
    assert status == 0
    assert run["target"]["name"] == "simulated a100-llama3-8b"
    assert [tier["group"] for tier in run["by_tier"]] == ["interactive", "standard", "batch"]
    assert run["total"]["attainment"] == 1.0
    assert run["lag"]["max_s"] == 0.0
    printed = capsys.readouterr().out
    assert "schedule lag" in printed
    assert "policy niyama" in printed


def test_what_requests_state_as_max_tokens_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag goes over the file, and the file over the default."""
    load = tmp_path / "load.toml"
    load.write_text('stated_output = "300/900"\n')
    page, few = tmp_path / "page.html", ("--rps", "1", "--output-tokens", "20")
    asked = {"2048": (), "300/900": ("--workload", str(load))}
    asked["exact"] = (*asked["300/900"], "--stated-output", "exact")
    for stated, flags in asked.items():
        status, document = report(tmp_path, *few, *flags, "--html", str(page))
        assert (status, document["arguments"]["stated_output"]) == (0, stated)
        assert document["runs"][0]["target"]["stated_output"] == stated
        assert f"max_tokens stated: {stated}" in " ".join(capsys.readouterr().out.split())
        assert "max_tokens stated" in page.read_text()


def test_what_only_simulations_can_do_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for flags in (["--stated-output", "2048"], ["--fair-share"]):
        with pytest.raises(SystemExit, match=str(EXIT_USAGE)):
            main(flags)
        assert f"{flags[0]} is for --simulate" in capsys.readouterr().err


def test_a_greedy_tenant_is_late_alone_and_the_small_ones_are_worse_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order of arrival, nearly all are late by the doing of one: Jain's index of that is
    0.86. A report made again from the records says the same.
    """
    load = ("--rps", "7", "--tier", "standard=5s", "--tier", "batch=5s", "--policy", "fcfs")
    tenants = ("--tenants", "big:0.8,small:0.1,tiny:0.1", "--fair-share")
    files = {name: tmp_path / f"report.{name}" for name in ("csv", "html")}
    written = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    _, document = report(tmp_path, *load, *tenants, *written)
    (run,) = document["runs"]
    assert run["fairness"] > 0.85
    portions = {each["tenant"]: each for each in run["portions"]}
    assert portions["big"]["worse_by"] < 0.1
    assert min(portions[name]["worse_by"] for name in ("small", "tiny")) > 0.8
    assert portions["small"]["alone"] == portions["tiny"]["alone"] > 0.9
    assert "alone: with its fair share" in capsys.readouterr().out
    assert "on time alone" in files["html"].read_text()
    again = tmp_path / "again.json"
    assert make_again([str(files["csv"]), "--json", str(again)]) == 0
    assert json.loads(again.read_text())["runs"][0]["portions"] == run["portions"]


def test_the_tenants_of_a_server_s_file_have_its_weights(tmp_path: Path) -> None:
    """A flag adds to those of the file, and goes over them."""
    path = tmp_path / "tiers.toml"
    path.write_text("[tenants.a]\nweight = 2\n[tenants.b]\n")
    _, document = report(tmp_path, "--rps", "1", "--tiers", str(path))
    assert document["runs"][0]["target"]["weights"] == {"a": 2.0, "b": 1.0}
    flags = ("--weights", "b:3,c:4", "--compare", "niyama,edf")
    _, document = report(tmp_path, "--rps", "1", "--tiers", str(path), *flags)
    for run in document["runs"]:
        assert run["target"]["weights"] == {"a": 2.0, "b": 3.0, "c": 4.0}


def test_a_comparison_names_the_worst_off_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tenants = ("--tenants", "big:0.8,small:0.2", "--fair-share", "--rps", "4")
    _, document = report(tmp_path, *tenants, "--compare", "niyama,fcfs")
    assert [len(run["portions"]) for run in document["runs"]] == [2, 2]
    assert "worse" in capsys.readouterr().out


def test_promises_are_counted_by_tier_and_in_all(tmp_path: Path) -> None:
    """Of an overload, in which some are told the one and some the other."""
    load = ("--rps", "20", "--tier", "standard=5s", "--policy", "fcfs", "--max-requests", "50")
    _, document = report(tmp_path, *load)
    (run,) = document["runs"]
    counts = ("kept", "broken", "needless", "foretold")
    total = run["total"]["promises"]
    for name in counts:
        assert total[name] == sum(tier["promises"][name] for tier in run["by_tier"])
    assert total["kept"] + total["needless"] == run["total"]["num_on_time"]
    assert sum(total[name] for name in counts) == (
        run["total"]["num_sent"] - run["total"]["num_rejected"]
    )
    assert total["foretold"] > 0
    assert total["recall_late"] == total["foretold"] / (total["foretold"] + total["broken"])


def test_the_gate_shuts_on_an_overloaded_replica_and_opens_with_enough(tmp_path: Path) -> None:
    gate = ("--rps", "20", "--slo-gate", "0.9", "--tier", "standard=5s", "--tier", "batch=5s")
    assert report(tmp_path, *gate)[0] == EXIT_GATE
    assert report(tmp_path, *gate, "--replicas", "8")[0] == 0


def test_capacity_grows_with_the_replicas(tmp_path: Path) -> None:
    """--precision 0.5: a factor of two is seen through it."""
    search = ("--find-capacity", "--precision", "0.5", "--repeats", "1", "--rps", "4")
    capacity = [
        report(tmp_path, *search, "--replicas", replicas)[1]["capacity"]["passed_rps"]
        for replicas in ("1", "4")
    ]
    assert capacity[1] >= 2 * capacity[0] > 0


def test_the_json_has_the_flags_as_typed_and_numbers_as_numbers(tmp_path: Path) -> None:
    """Seed, rate and duration even where no flag says them."""
    load = ("--rps", "1..2/20s", "--mix", "interactive:0.5", "--arrivals", "gamma", "--cv", "2")
    _, document = report(tmp_path, *load, "--warmup", "500ms", "--max-gap", "inf")
    given = document["arguments"]
    assert (given["rps"], given["seed"], given["duration"]) == ("square:1..2/20s", 0, 40.0)
    assert (given["mix"], given["arrivals"], given["cv"]) == ("interactive:0.5", "gamma", 2.0)
    assert (given["warmup"], given["max_gap"], given["replicas"]) == (0.5, "inf", 1)
    assert given["prompt_tokens"] == ["2000"]
    assert (
        report(tmp_path, "--seed", "7")[1]["arguments"].items() >= {"seed": 7, "rps": "10"}.items()
    )


def test_a_reader_that_leaves_early_costs_no_file_and_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    path = tmp_path / "report.json"
    command = (sys.executable, "-m", "loadgen", *SIMULATED, "--json", str(path))
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")
    assert json.loads(path.read_text())["runs"]


def test_a_sweep_has_a_run_for_each_rate(tmp_path: Path) -> None:
    _, document = report(tmp_path, "--sweep", "1,2")
    assert [run["name"] for run in document["runs"]] == ["1/s", "2/s"]


def test_a_comparison_serves_the_same_requests_by_each_policy(tmp_path: Path) -> None:
    _, document = report(tmp_path, "--rps", "4", "--compare", "niyama,fcfs,edf/512")
    assert [run["name"] for run in document["runs"]] == ["niyama", "fcfs", "edf/512"]
    assert len({run["total"]["num_sent"] for run in document["runs"]}) == 1
    assert [run["target"]["policy"] for run in document["runs"]] == ["niyama", "fcfs", "edf"]


def test_silos_are_sized_or_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = ("--rps", "4", "--compare", "niyama,silo")
    _, document = report(tmp_path, *compare)
    assert "the fewest silos that serve this load" in capsys.readouterr().out
    assert document["runs"][1]["total"]["attainment"] >= 0.99
    _, given = report(tmp_path, *compare, "--silo", "interactive:3,standard:1,batch:2/1024")
    sizes = "interactive 3/256 + standard 1/2048 + batch 2/1024"
    name = f"simulated a100-llama3-8b x 6 ({sizes})"
    assert given["runs"][1]["target"]["name"] == name


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--pin", "batch"), "'batch' is not TIER:REPLICA"),
        (("--slow-replica", "first:2"), "'first' is not a replica"),
        (("--replica-down", "1"), "'1' is not REPLICA@AT"),
        (("--replica-down", "1@9s-3s"), "it is back after it is lost"),
    ],
)
def test_what_is_no_fleet_is_refused_as_it_is_read(
    flags: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=str(EXIT_USAGE)):
        main([*SIMULATED, *flags])
    assert problem in capsys.readouterr().err


def test_a_fleet_is_reported_as_a_whole_and_by_replica_and_made_again_from_its_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two routings have the same requests; batch goes past both, to replica 0."""
    rows, again = tmp_path / "rows.csv", tmp_path / "again.json"
    fleet = ("--replicas", "3", "--pin", "batch:0", "--slow-replica", "1:2")
    lost = ("--replica-down", "2@20s-30s", "--rps", "4", "--csv", str(rows))
    status, document = report(tmp_path, *fleet, *lost, "--compare", "niyama@qos,edf@round-robin")
    assert status == 0
    printed = " ".join(capsys.readouterr().out.split())
    for run in document["runs"]:
        scores = run["by_replica"]
        assert [each["group"] for each in scores] == ["0", "1", "2"]
        assert sum(each["num_sent"] for each in scores) == run["total"]["num_sent"]
        assert sum(each["num_failed"] for each in scores[:2]) == 0
        assert run["target"]["name"].startswith("simulated a100-llama3-8b x 3, ")
    qos, turns = document["runs"]
    assert qos["total"]["num_sent"] == turns["total"]["num_sent"]
    spread = [[each["num_sent"] for each in run["by_replica"]] for run in (qos, turns)]
    assert spread[0] != spread[1]
    assert "niyama@qos" in printed
    assert make_again([str(rows), "--json", str(again)]) == 0
    remade = json.loads(again.read_text())["runs"]
    assert [run["by_replica"] for run in remade] == [run["by_replica"] for run in (qos, turns)]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--simulate", "nowhere.json"), "'nowhere.json' is no file"),
        (("--compare", "niyama,lifo"), "unknown policy 'lifo'"),
        (("--compare", "edf/x"), "POLICY/CHUNK"),
        (("--compare", "silo", "--silo", "q9:1"), "unknown tier 'q9'"),
        (("--replicas", "0"), "replicas"),
        (("--compare", "niyama@nearest"), "unknown routing 'nearest'"),
        (("--pin", "batch:2", "--replicas", "2"), "there is no replica 2"),
        (("--replica-down", "0@3s"), "one replica of 1 at least"),
        (("--max-gap", "0.5"), "max_gap"),
        (("--kv-tokens", "-5"), "kv_tokens must be at least 1, got -5"),
        (("--mix", "interactive:0.5,q9:0.5"), "unknown tier q9"),
    ],
)
def test_a_bad_flag_is_one_line(
    flags: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SIMULATED, *flags]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1


def test_a_policy_beside_a_comparison_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match=str(EXIT_USAGE)):
        main([*SIMULATED, "--policy", "edf", "--compare", "niyama,fcfs"])
    said = capsys.readouterr().err
    assert "--policy: not allowed with argument --compare" in said
    assert said.count("\n") == 1
