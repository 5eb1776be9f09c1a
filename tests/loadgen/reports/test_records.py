"""Records as CSV and back: nothing that a figure depends on is lost."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.cli import main as loadgen
from loadgen.reports import records
from loadgen.reports.__main__ import EXIT_USAGE, main
from loadgen.scoring.modes import Measurement
from loadgen.scoring.summary import Measuring, summarise
from loadgen.targets.record import Outcome, Record
from loadgen.targets.target import End, Run
from loadgen.workload.plan import PlannedRequest
from loadgen.workload.served import TargetInfo
from niyama.client.values import Importance, Targets, Tier

Capture = pytest.CaptureFixture[str]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # what UTF-8 can hold
SECONDS = st.floats(0, 1e5)
MAYBE_SECONDS = st.none() | SECONDS
COUNTS = st.integers(1, 10_000)
TARGETS = st.builds(Targets, MAYBE_SECONDS, MAYBE_SECONDS, MAYBE_SECONDS)
TIER_NAMES = st.sampled_from(["interactive", "stan,dard", 'ba"tch\n'])
REQUESTS = st.builds(
    PlannedRequest,
    index=st.integers(0),
    at=SECONDS,
    tier=TIER_NAMES,
    targets=TARGETS,
    prompt_len=COUNTS,
    output_len=COUNTS,
    explicit=st.booleans(),
    importance=st.none() | st.sampled_from(Importance),
    tenant=TEXTS,
    application=TEXTS,
    prefix=st.none() | st.integers(0, 5),
    prefix_len=st.integers(0, 100),
    cancel_after=st.none() | COUNTS,
    timeout_s=MAYBE_SECONDS,
    seed=st.integers(0, 2**63 - 1),
)
RECORDS = st.builds(
    Record,
    REQUESTS,
    SECONDS,
    st.sampled_from(Outcome),
    st.lists(SECONDS, max_size=5).map(lambda instants: array("d", sorted(instants))),
    MAYBE_SECONDS,
    st.booleans(),
    MAYBE_SECONDS,
    TEXTS,
    st.none() | st.booleans(),
)
GAPS = st.none() | st.sampled_from((1.0, 1.1, math.inf))
TARGET_INFOS = st.builds(
    TargetInfo,
    TEXTS,
    TEXTS,
    TEXTS,
    st.lists(st.builds(Tier, TIER_NAMES, TARGETS, st.sampled_from(Importance), GAPS)).map(tuple),
    COUNTS,
    COUNTS,
    TEXTS,
)
MEASURINGS = st.builds(Measuring, SECONDS, SECONDS, SECONDS)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    done = draw(st.lists(RECORDS, min_size=1, max_size=6))
    duration_s, measuring = draw(SECONDS), draw(MEASURINGS)
    tiers = draw(st.lists(TIER_NAMES, unique=True))
    run = Run(done, end=draw(st.sampled_from(End)), problem=draw(TEXTS))
    return Measurement(
        draw(TEXTS),
        summarise(tiers, duration_s, draw(TARGET_INFOS), run, measuring),
        done,
        draw(TEXTS),
        draw(MAYBE_SECONDS),
        duration_s=duration_s,
        interrupted_by=draw(st.integers(0, 64)),
        measuring=measuring,
    )


@given(st.lists(measurements(), min_size=1, max_size=3))
def test_what_is_written_is_read_again_to_the_last_digit(runs: list[Measurement]) -> None:
    """Records and figures; two runs may have the same name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.csv"
        records.write(runs, path)
        assert records.read(path) == runs


def test_an_output_of_any_length_is_read(tmp_path: Path) -> None:
    """Its instants are more characters than csv takes by itself."""
    request = PlannedRequest(0, 0.0, "x", Targets(), 1, 20_000)
    long = Record(request, 0.0, Outcome.FINISHED, array("d", (n / 7 for n in range(20_000))), 9e3)
    info = TargetInfo("a", "b", "c", (), 1, 1)
    run = Measurement("", summarise(["x"], 10.0, info, Run([long])), [long], duration_s=10.0)
    records.write([run], tmp_path / "long.csv")
    assert records.read(tmp_path / "long.csv") == [run]


SIMULATED = ("--simulate", "a100-llama3-8b", "--duration", "20s", "--prompt-tokens", "2000")
SMALL_SEARCH = ("--find-capacity", "--precision", "1", "--repeats", "1", "--rps", "4")


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (
            ("--rps", "6", "--warmup", "2", "--cancel-rate", "0.2", "--tenants", "a:0.5,b:0.5"),
            "run",
        ),
        (("--sweep", "1,8"), "sweep"),
        (("--compare", "niyama,fcfs", "--rps", "4"), "compare"),
        (SMALL_SEARCH, "sweep"),
    ],
)
def test_a_report_is_made_again_with_the_same_figures(
    flags: tuple[str, ...], mode: str, tmp_path: Path, capsys: Capture
) -> None:
    rows, before, after = tmp_path / "run.csv", tmp_path / "before.json", tmp_path / "after.json"
    loadgen([*SIMULATED, *flags, "--csv", str(rows), "--json", str(before)])
    printed = capsys.readouterr().out.splitlines()
    page = tmp_path / "page.html"
    assert main([str(rows), "--json", str(after), "--html", str(page)]) == 0
    first, again = json.loads(before.read_text()), json.loads(after.read_text())
    assert again["runs"] == first["runs"]
    assert (again["mode"], again["arguments"]) == (mode, {"records": str(rows)})
    assert "Made again from records" in page.read_text()
    assert "<dd>not in the records</dd>" in page.read_text()
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"made again from {rows}"
    if mode == "run":
        assert told[:-1] == printed


def test_files_of_others_are_refused_in_one_line(tmp_path: Path, capsys: Capture) -> None:
    """A trace, columns of an older version, a cell that somebody changed, and nothing at all."""
    rows = tmp_path / "run.csv"
    loadgen([*SIMULATED, "--rps", "1", "--csv", str(rows)])
    capsys.readouterr()
    header, first, *others = rows.read_text().splitlines()
    column = {name: n for n, name in enumerate(records.COLUMNS)}

    def changed(name: str, cell: str) -> str:
        (cells,) = csv.reader([first])
        cells[column[name]] = cell
        line = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
        return "\n".join([header, line, *others])

    path = tmp_path / "other.csv"
    for text, problem in (
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no column run: not records"),
        (",".join(records.COLUMNS[:22]) + "\n", "no column promised"),
        (header + "\n", "there is no run in it"),
        (changed("outcome", "lost"), "line 2: 'lost' is not a valid Outcome"),
        (changed("promised", "soon"), "line 2: 'soon' is no promise"),
        (changed("token_at", "soon"), "line 2: could not convert string to float"),
        (changed("exact", "1.0"), "line 2: not enough values"),
        (changed("run_facts", ""), "the first row has no run_facts"),
        (changed("run_facts", "{}"), "run_facts of ''"),
        (f"{header}\n{first[:40]}", "the first row has no run_facts"),
        (f"{header}\n{first}\n{others[0][:40]}", "line 3: "),
        ("", "no column run"),
    ):
        path.write_text(text)
        assert main([str(path)]) == EXIT_USAGE
        said = capsys.readouterr().err
        assert said.startswith(f"loadgen.reports: {path}: ")
        assert problem in said
        assert said.count("\n") == 1
    path.write_bytes(b"\xff\xfe")
    assert main([str(path)]) == EXIT_USAGE
    assert main([str(tmp_path / "nowhere.csv")]) == EXIT_USAGE
    assert "No such file" in capsys.readouterr().err
