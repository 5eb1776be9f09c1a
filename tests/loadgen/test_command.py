"""`python -m loadgen` as typed: reports, files, exit statuses. The real server where the figures
matter, a little one where a failure must happen on cue.
"""

from __future__ import annotations

import csv
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.deciding.policies import ORDERS
from loadgen.cli import EXIT_INVALID, main
from loadgen.reports.records import COLUMNS
from tests.loadgen.conftest import WAIT_S, LittleServer
from tests.server_process import ServerProcess

Capture = pytest.CaptureFixture[str]

NO_UTF_8 = "caf\udce9"  # as Python hands on an argument's bytes that are no UTF-8
SMALL = ("--prompt-tokens", "10", "--output-tokens", "3", "--drain", "20")


def read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    assert document["schema"] == "niyama.loadgen/1"
    assert isinstance(document, dict)
    return document


def test_a_mixed_load_on_the_real_server(
    server: ServerProcess, tmp_path: Path, capsys: Capture
) -> None:
    """Every request that was planned is answered with exactly the tokens it asked for."""
    figures, records = tmp_path / "run.json", tmp_path / "run.csv"
    load = ("--rps", "20", "--mix", "interactive:0.6", "--duration", "2", "--seed", "4")
    files = ("--json", str(figures), "--csv", str(records))
    assert main(["--target", server.address, *load, *SMALL, *files, "--max-lag", "10s"]) == 0

    document = read_json(figures)
    assert (document["mode"], document["arguments"]["target"]) == ("run", server.address)
    (run,) = document["runs"]
    assert (run["end"], run["errors"]) == ("complete", [])
    assert [tier["group"] for tier in run["by_tier"]] == ["interactive", "standard", "batch"]
    total = run["total"]
    assert total["num_sent"] == total["num_finished"] > 20
    assert total["output_tokens"] == 3 * total["num_sent"]
    assert 0 < total["ttft_s"]["p50"] <= total["ttft_s"]["p99"] <= total["ttlt_s"]["p99"]
    assert total["attainment"] == total["num_on_time"] / total["num_sent"]

    with records.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == total["num_sent"]
    assert {(row["outcome"], row["received_tokens"]) for row in rows} == {("finished", "3")}
    assert len({row["request_id"] for row in rows} - {""}) == len(rows)
    assert sum(int(row["on_time"]) for row in rows) == total["num_on_time"]
    assert all(0 < float(row["server_ttft_s"]) < float(row["ttft_s"]) for row in rows)

    printed = capsys.readouterr().out
    for word in ("interactive", "standard", "batch", "all", "TTFT", "on time", "schedule lag"):
        assert word in printed


def test_prefixes_timeouts_and_departures_on_the_real_server(
    server: ServerProcess, tmp_path: Path
) -> None:
    """The same server serves on afterwards: nothing that left holds anything."""
    figures = tmp_path / "run.json"
    load = ("--rps", "30", "--duration", "1", "--prompt-tokens", "5", "--output-tokens", "20")
    leaving = ("--cancel-rate", "0.5", "--shared-prefix", "64", "--timeout", "60s")
    kinds = ("--arrivals", "gamma", "--cv", "2", "--importance", "low:0.5,high:0.5")
    command = ["--target", server.address, *load, *leaving, *kinds, "--json", str(figures)]
    assert main(command) == 0
    (run,) = read_json(figures)["runs"]
    total = run["total"]
    assert total["num_cancelled"] > 0
    assert total["num_finished"] + total["num_cancelled"] == total["num_sent"]
    assert [each["group"] for each in run["by_importance"]] == ["high", "low"]
    assert main(["--target", server.address, "--rps", "10", "--duration", "1", *SMALL]) == 0


def test_each_tenant_has_a_score_and_a_prefix_cache_of_its_own(
    server: ServerProcess, little: LittleServer, tmp_path: Path
) -> None:
    figures = tmp_path / "run.json"
    load = ("--rps", "20", "--duration", "1", "--tenants", "a:0.7,b:0.3", *SMALL)
    assert main(["--target", server.address, *load, "--json", str(figures)]) == 0
    (run,) = read_json(figures)["runs"]
    assert [each["group"] for each in run["by_tenant"]] == ["a", "b"]
    a, b = (each["num_finished"] for each in run["by_tenant"])
    assert a + b == run["total"]["num_sent"]
    assert main(["--target", little.address, *load]) == 0
    assert Counter(little.servicer.tenants) == {"a": a, "b": b}


def test_a_comparison_sends_the_same_requests_to_each(
    server: ServerProcess, little: LittleServer, tmp_path: Path, capsys: Capture
) -> None:
    """The second has none of the first one's tiers, and is sent their targets."""
    figures, records = tmp_path / "compare.json", tmp_path / "compare.csv"
    contenders = f"real={server.address},little={little.address}"
    files = ("--json", str(figures), "--csv", str(records))
    load = ("--rps", "10", "--duration", "1", "--max-lag", "10s")
    assert main(["--compare", contenders, *load, *SMALL, *files]) == 0
    runs = read_json(figures)["runs"]
    assert [run["name"] for run in runs] == ["real", "little"]
    with records.open() as file:
        rows = list(csv.DictReader(file))
    real, small = (
        [
            (row["scheduled_at"], row["tier"], row["importance"])
            for row in rows
            if row["run"] == name
        ]
        for name in ("real", "little")
    )
    assert real == small
    assert {request.qos.tier for request in little.servicer.requests} == {""}
    assert "little" in capsys.readouterr().out


def test_a_comparison_of_servers_with_equal_tiers_names_them(little: LittleServer) -> None:
    """So what a tier says beside its targets holds, as it does without a comparison."""
    contenders = f"one={little.address},other={little.address}"
    load = ("--rps", "10", "--duration", "1", "--max-lag", "10s")
    assert main(["--compare", contenders, *load, *SMALL]) == 0
    asked = [request.qos for request in little.servicer.requests]
    assert asked
    assert all(qos.tier and qos.WhichOneof("targets") is None for qos in asked)


def test_a_contender_has_its_own_policy_whatever_the_flags_of_servers_say(tmp_path: Path) -> None:
    figures = tmp_path / "compare.json"
    started = ("--compare", "fcfs", "--server-flags", "--policy edf")
    load = ("--rps", "10", "--duration", "0.5", "--max-lag", "10s")
    files = ("--json", str(figures))
    assert main([*started, *load, *SMALL, *files], "tests.null_server") == 0
    (run,) = read_json(figures)["runs"]
    assert run["target"]["policy"] == "fcfs"


def test_a_sweep_is_a_run_at_each_rate(
    little: LittleServer, tmp_path: Path, capsys: Capture
) -> None:
    figures = tmp_path / "sweep.json"
    command = ["--target", little.address, "--sweep", "20,40", "--duration", "0.5s"]
    assert main([*command, "--json", str(figures), "--max-lag", "10s"]) == 0
    runs = read_json(figures)["runs"]
    assert [run["name"] for run in runs] == ["20/s", "40/s"]
    assert runs[0]["total"]["num_sent"] < runs[1]["total"]["num_sent"]
    assert "40/s" in capsys.readouterr().out


def test_a_server_that_refuses_everything_has_no_capacity(
    little: LittleServer, tmp_path: Path, capsys: Capture
) -> None:
    """Not even at the rate at which none arrives: 5/s, in 0.2 s."""
    little.servicer.acts_as = "full"
    figures = tmp_path / "capacity.json"
    load = ("--rps", "40", "--duration", "0.2s", "--repeats", "1", "--max-lag", "10s")
    command = ["--target", little.address, "--find-capacity", *load, "--json", str(figures)]
    assert main([*command, "--arrivals", "constant"]) == EXIT_INVALID
    document = read_json(figures)
    assert "capacity" not in document
    assert [run["total"]["num_sent"] for run in document["runs"]] == [7, 3, 1, 0]
    output = capsys.readouterr()
    assert "capacity:" not in output.out
    assert output.err == "niyama-loadgen: no request was due in the measured part\n"


def test_the_gate_is_an_exit_status(little: LittleServer, capsys: Capture) -> None:
    load = ("--rps", "50", "--duration", "1s", "--max-lag", "10s", "--mix", "standard:1")
    command = ["--target", little.address, *load, "--slo-gate"]
    assert main(command) == 0
    assert "gate open" in capsys.readouterr().out
    little.servicer.acts_as = "full"
    assert main([*command, "standard:0.5"]) == 3
    assert "GATE SHUT standard: 0.00% on time, 50.0% required" in capsys.readouterr().out


def test_a_gate_on_an_invalid_run_is_no_verdict(little: LittleServer, capsys: Capture) -> None:
    load = ("--rps", "50", "--duration", "0.2s", "--max-lag", "0ms", "--mix", "standard:1")
    assert main(["--target", little.address, *load, "--slo-gate", "all:0.01"]) == 4
    assert "INVALID the generator could not keep up" in capsys.readouterr().out


def test_a_server_that_dies_leaves_a_partial_report(
    little: LittleServer, tmp_path: Path, capsys: Capture
) -> None:
    figures = tmp_path / "partial.json"
    dying = threading.Thread(target=die_at, args=(little, 5))
    dying.start()
    command = ["--target", little.address, "--rps", "50", "--duration", "1h"]
    assert main([*command, "--json", str(figures)]) == 1
    dying.join(WAIT_S)
    printed = capsys.readouterr().out
    assert f"PARTIAL {little.address}: lost during the run" in printed
    (run,) = read_json(figures)["runs"]
    assert run["end"] == "target_lost"
    assert run["total"]["num_finished"] >= 4


def test_a_file_that_cannot_be_written_is_named_and_the_others_are_written(
    little: LittleServer, tmp_path: Path, capsys: Capture
) -> None:
    """As on a full disk."""
    page, table = tmp_path / "report.html", tmp_path / "records.csv"
    load = ["--target", little.address, "--rps", "50", "--duration", "0.2s", "--mix", "standard:1"]
    files = ["--json", "/dev/full", "--csv", str(table), "--html", str(page)]
    assert main([*load, *files]) == 2
    assert capsys.readouterr().err == "niyama-loadgen: /dev/full: No space left on device\n"
    assert "standard" in table.read_text()
    assert "</html>" in page.read_text()


def test_a_file_whose_name_is_no_utf_8_is_written_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of charts shows the command."""
    monkeypatch.chdir(tmp_path)
    page = Path(f"{NO_UTF_8}.html")
    load = ["--simulate", "a100-llama3-8b", "--rps", "1", "--duration", "2"]
    assert main([*load, "--html", str(page), "--json", f"{NO_UTF_8}.json"]) == 0
    assert "caf\\udce9.html" in page.read_text()


def die_at(little: LittleServer, num_ended: int) -> None:
    for _ in range(num_ended):
        little.next_end()
    little.stop()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mix", "interactive:0.7,batch:0.4"], "add up to 1.1, more than 1"),
        (["--mix", "gold:0.5"], "unknown tier gold; the target has interactive, standard, batch"),
        (["--trace", "/nowhere.csv"], "No such file or directory: '/nowhere.csv'"),
        (["--workload", "/nowhere.toml"], "No such file or directory: '/nowhere.toml'"),
        (["--prompt-tokens", "gold:5"], "unknown tier gold"),
        (["--tenants", "rare\xe9:0.001,usual:0.999"], "a tenant is printable ASCII, got "),
        (["--tenants", "x" * 129 + ":1"], "a tenant has at most 128 bytes, got 129"),
        (["--applications", NO_UTF_8 + ":1"], "applications is no Unicode text: "),
        (["--slo-gate", "gold:0.9,all:0.9"], "unknown tier gold in the gate; the load has inter"),
        (["--warmup", "20", "--cooldown", "10"], "leave nothing of the run to measure"),
        (["--duration", "0"], "the duration is positive, got 0"),
        (["--compare", "x=localhost:1,foo"], "unknown policy 'foo': one of niyama"),
        (["--channels", "0"], "at least 1 channel"),
    ],
)
def test_bad_input_is_one_line(
    little: LittleServer, capsys: Capture, flags: list[str], message: str
) -> None:
    assert main(["--target", little.address, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("niyama-loadgen: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_malformed_trace_row_is_one_line(
    little: LittleServer, tmp_path: Path, capsys: Capture
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,x,1\n")
    assert main(["--target", little.address, "--trace", str(trace)]) == 2
    assert capsys.readouterr().err == (
        f"niyama-loadgen: {trace}, line 2: 'x' is not a number of tokens (ContextTokens)\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mix", "interactive"], "'interactive' is not NAME:SHARE"),
        (["--rps", "-3"], "rates must be positive, got -3 ("),
        (["--rps", "fast"], "'fast' is not a rate"),
        (["--duration", "soon"], "'soon' is not a duration"),
        (["--sweep", "1,x"], "'1,x' is not a list of rates"),
        (["--sweep", "1,nan"], "'1,nan' is not a list of rates"),
        (["--compare", "a,a"], "not a list of different names"),
        (["--compare", "a=here:1,a=there:1"], "not a list of different names"),
        (["--compare", "=here:1"], "not a list of different names"),
        (["--server-flags", "--policy edf"], "--server-flags: only of servers that --compare"),
        (["--simulate", "x", "--silo", "interactive:3"], "--silo: only with silo in --compare"),
        (["--trace", "t.csv", "--prompt-tokens", "5"], "--trace: not allowed with lengths for all"),
        (["--replay", "t.csv", "--cv", "3"], "--replay: not allowed with --arrivals or --cv"),
        (["--arrivals", "poisson", "--cv", "3"], "--cv: only of gamma arrivals"),
        (["--slo-gate", "0.9", "--compare", "a"], "not allowed with"),
        (["--importance", "lo:0.2"], "lo is no importance: one of low, normal, high"),
        (["--shared-prefix", "0"], "a shared prefix has at least 1 token, got 0"),
        (["--shared-prefix", "8:1:0"], "there is at least 1 shared prefix, got 0"),
        (["--policy", "edf"], "is for --simulate; start the server with it, or use --compare"),
        (["--tier", "chat=1s/50ms"], "--tier is for --simulate ("),
        (["--replicas", "1"], "--replicas is for --simulate ("),
        (["--compare", "edf,fcfs", "--chunk-size", "256"], "get it by --server-flags"),
        (["--json", "/nowhere/run.json"], "--json: /nowhere/run.json cannot be written"),
        (["--html", "/"], "--html: / cannot be written"),
        (["--target", "host"], "--target: a server is named HOST:PORT"),
        (["--target", NO_UTF_8 + ":1"], "--target: server is no Unicode text"),
        (["--compare", "a=here:1,b=there"], "--compare: a server is named HOST:PORT"),
        (["--compare", NO_UTF_8 + "=here:1"], "a contender's name is no Unicode text"),
        (["--mix", NO_UTF_8], "is not NAME:SHARE"),
    ],
)
def test_flags_that_make_no_sense_say_why(capsys: Capture, flags: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("niyama-loadgen: ")
    assert error.count("\n") == 1


def test_help_says_the_defaults(capsys: Capture) -> None:
    """They stand with what they are for, not with the flags."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "connections (default 4)",
        "longest wait for the last answers (default 60s; simulated: none)",
        f"of {', '.join(ORDERS)} (default 256)",
        "requests/s (default 10)",
        "default 30s, or the replayed trace",
        "lengths and kinds of requests (default 0)",
        "default 60/150 with a TTFT target, else 100/240",
        "(default 0.99 of every tier)",
        "share allowed (default 0.01)",
        "relative (default 0.05)",
        "runs per rate (default 3)",
        "beyond which a run is invalid (default 50ms)",
    ):
        assert words in shown


def unreachable() -> tuple[socket.socket, str]:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held, f"127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize(
    "arguments", [lambda a: ["--target", a], lambda a: ["--compare", f"x={a}"]]
)
def test_an_unreachable_server_is_one_line(
    capsys: Capture, arguments: Callable[[str], list[str]]
) -> None:
    held, address = unreachable()
    with held:
        assert main(arguments(address)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"niyama-loadgen: {address}: ")
    assert error.endswith("is the server running? (python -m server)\n")
    assert error.count("\n") == 1
