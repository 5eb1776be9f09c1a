"""The command: what it says, writes and lists agree, and a name in a log is only a name."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loadgen.audit.__main__ import EXIT_USAGE, main
from tests.loadgen.audit import logs
from tests.loadgen.audit.logs import Sender
from tests.loadgen.chromium import opened

HOSTILE = "</script><script>nothing()"
WEIGHTS = {"acme": 1.0, "flood": 1.0}
SENT = [
    Sender("acme", 0.5, to_s=95.0),
    Sender("flood", 5.0, prompt=3000, from_s=60.0, to_s=90.0),
    Sender(HOSTILE, 0.1, logs.REPORT, to_s=95.0),
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """First come first served: a flood, and who comes behind it."""
    path = tmp_path_factory.mktemp("audit") / "decisions.jsonl"
    logs.write(path, logs.arrivals(SENT, WEIGHTS), WEIGHTS, policy="fcfs")
    return path


class Made(NamedTuple):
    """What the command made of the log."""

    page: Path
    html: str
    figures: dict[str, Any]


@pytest.fixture(scope="module")
def made(log: Path) -> Made:
    page, figures = log.with_name("audit.html"), log.with_name("audit.json")
    assert main([str(log), "--html", str(page), "--json", str(figures)]) == 0
    return Made(page, page.read_text(), json.loads(figures.read_text()))


def listed(log: Path, capsys: pytest.CaptureFixture[str], *where: str) -> list[dict[str, Any]]:
    flags = [part for each in where for part in ("--where", each)]
    assert main([str(log), *flags]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_sentences_name_who_suffered_and_for_whose_sake(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(log), "--simulated", "0"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"^\d+\.\d.% of \d+ requests with targets missed them", said)
    assert re.search(r"Those of tenant acme were there for .* of that for flood \(chat\)", said)
    assert re.search(r"the part of flood in the engine's work rose from", said)


def test_what_would_have_been(made: Made) -> None:
    """With its fair share alone acme is on time; first come first served is as it was."""
    found = {
        (each["tenant"], each["tier"]): each
        for each in made.figures["alternatives"]["by_tenant_and_tier"]
    }
    acme, flood = found["acme", "chat"], found["flood", "chat"]
    assert acme["alone"] > 0.8 > 0.75 > acme["simulated"]
    assert acme["simulated"] == acme["first_come_first_served"]
    assert acme["simulated"] == pytest.approx(acme["was"], abs=0.05)
    assert flood["alone"] < 0.5
    assert sum(made.figures["alternatives"]["fair_shares"].values()) == pytest.approx(1.0)
    assert "Worst off by the doing of others is acme" in made.html


def test_every_figure_is_that_of_the_requests_that_are_listed_for_it(
    log: Path, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = made.figures["cells"]
    everything = listed(log, capsys, "result=on_time") + listed(log, capsys, "harm=any")
    assert len({each["request_id"] for each in everything}) == sum(c["num_arrived"] for c in cells)
    for cell in cells:
        conditions = [f"{name}={cell[name]}" for name in ("tenant", "tier", "importance")]
        for harm, suffered in cell["harms"].items():
            found = listed(log, capsys, *conditions, f"harm={harm}")
            assert len(found) == suffered["count"]
            waited = sum(each["waited_s"] for each in found)
            assert waited == pytest.approx(suffered["waited_s"], abs=1e-3)
            examples = {each["request_id"] for each in suffered["examples"]}
            assert examples <= {each["request_id"] for each in found}
    one = everything[0]
    line = log.read_text().splitlines()[int(one["arrived"].rpartition(" ")[2]) - 1]
    assert json.loads(line)["kind"] == "arrived"
    assert json.loads(line)["request_id"] == one["request_id"]


def test_requests_are_listed_by_time_too(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = listed(log, capsys, "day=2025-11-30", "hour=0")
    late = listed(log, capsys, "from=2025-11-30T00:01:10")
    early = listed(log, capsys, "to=2025-11-30T00:01:10")
    assert Counter(e["request_id"] for e in late + early) == Counter(e["request_id"] for e in every)
    assert listed(log, capsys, "day=2025-12-01") == []


@pytest.mark.parametrize(
    "where", ["tenant", "colour=red", "result=never", "hour=24", "day=today", "from=noon"]
)
def test_a_condition_that_is_none_is_refused(
    log: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main([str(log), "--where", where])
    assert refused.value.code == EXIT_USAGE
    assert where.partition("=")[2] in capsys.readouterr().err


def test_the_page_is_complete_and_a_name_is_only_a_name(made: Made, tmp_path: Path) -> None:
    seen = opened(made.page, tmp_path / "profile")
    assert seen.console == []
    assert seen.html["data-ready"] == "yes"
    assert len(seen.figures) == 3
    assert all(figure["data-drawn"] == "yes" for figure in seen.figures)
    for said in (
        "What became of every arrival, by tenant",
        "On time, and what would have been, by tenant",
        "For whose sake, by tenant and tier",
        "By day (UTC)",
        "--where tenant=acme --where tier=chat --where harm=any",
        f"{made.page.with_name('decisions.jsonl')}, line ",
        HOSTILE,
    ):
        assert said in seen.text
    assert HOSTILE not in made.html


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no request is in it"),
        ("a,b\n", "line 1: not JSON"),
        ('{"kind": "arrived"}\n', "line 1: "),
    ],
)
def test_a_file_that_is_no_decision_log_is_told(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some"
    path.write_text(text)
    assert main([str(path)]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert str(path) in error
    assert said in error


def test_a_file_that_is_not_there_is_told(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none")]) == EXIT_USAGE
    assert "none: No such file or directory" in capsys.readouterr().err
    page = tmp_path / "none" / "page.html"
    assert main([str(log), "--simulated", "0", "--html", str(page)]) == EXIT_USAGE
    assert "page.html: No such file or directory" in capsys.readouterr().err


def test_an_engine_that_cannot_be_simulated_is_told_and_done_without(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = tmp_path / "later"
    later.write_text(log.read_text().replace('"policy": "fcfs"', '"policy": "of a later version"'))
    assert main([str(later)]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert f"{later}: policy must be one of" in said
    assert "Traceback" not in said
    assert main([str(later), "--simulated", "0"]) == 0
