"""The demo: what it sends, what it says, and that all of it comes from its runs."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.demo import load, words
from loadgen.demo.command import PROMPT, _Demo, chosen, main
from loadgen.demo.load import BATCH, CHAT, REPORT, Size, drawn
from loadgen.scoring.modes import Measurement
from loadgen.targets.record import Outcome, Record
from loadgen.targets.target import Run
from loadgen.workload.plan import plan
from loadgen.workload.spec import build
from niyama.client.values import Importance, Targets
from tests.loadgen.examples import INFO, planned, record, summarised, workload

Capture = pytest.CaptureFixture[str]

LITTLE = Size(arrivals_s=1.0, work_s=1.2, batch_ttlt_s=0.75, probe_s=0.1)


def test_it_streams_a_story_and_sends_the_same_to_both_policies(
    tmp_path: Path, capsys: Capture
) -> None:
    """To real servers, before an engine without a model; every request that the load has is
    counted, under each policy.
    """
    folder = tmp_path / "report"
    assert main([], LITTLE, folder, "tests.null_server") == 0
    shown, said = capsys.readouterr()
    assert f"\n> {PROMPT}\n" in shown
    timings = r"^  \d+ tokens: the first after .*; asked for were .* and "
    assert re.search(timings, shown, re.MULTILINE)
    assert all(len(line) <= 100 for line in shown.splitlines() if str(tmp_path) not in line)

    with (folder / "load.csv").open() as file:
        sent = Counter(row["Tier"] for row in csv.DictReader(file))
    assert sent.keys() == {CHAT, REPORT, BATCH}
    assert re.findall(r"^(chat|reports|batch|all) +(\d+) +(\d+) ", shown, re.MULTILINE) == [
        (name, str(count), str(count))
        for name, count in (
            *(("chat", sent[CHAT]), ("reports", sent[REPORT]), ("batch", sent[BATCH])),
            ("all", sent.total()),
        )
    ]
    assert re.search(r"^fcfs +[\d.]+% .*\n^niyama +[\d.]+% ", shown, re.MULTILINE)
    (told,) = re.findall(r"^\$ python -m client explain (\S+) ", shown, re.MULTILINE)
    assert len(told) == 16
    assert re.search(r"^ +\S+ m?s  admitted ", shown, re.MULTILINE)

    report = (folder / "report.html").read_text()
    assert "On time: " in report
    assert f"\n         {(folder / 'report.html').as_uri()}\n" in shown
    assert [line.partition(":")[0] for line in said.splitlines() if "..." not in line] == [
        "starting a server, policy fcfs",
        "measuring what this engine serves",
        "sending under fcfs",
        "starting a server, policy niyama",
        "warming it up",
        "sending under niyama",
    ]


def test_one_whose_server_does_not_start_says_why_and_leaves_nothing(
    tmp_path: Path, capsys: Capture
) -> None:
    assert main(["--model", "/nowhere"], folder=tmp_path / "report") == 1
    error = capsys.readouterr().err
    assert "\ndemo: the server did not start: " in error
    assert "/nowhere" in error
    assert not list(tmp_path.iterdir())


def test_each_server_has_the_policy_that_it_is_called_by(tmp_path: Path, capsys: Capture) -> None:
    demo = _Demo(["--policy", "edf"], LITTLE, "tests.null_server", tmp_path, tmp_path)
    with demo._serving("fcfs") as target:
        assert target.info().policy == "fcfs"
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("python -m loadgen.demo [FLAG of python -m server]")


def test_one_that_cannot_write_its_report_says_so_before_it_starts_a_server(
    tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "report").touch()
    assert main([], folder=tmp_path / "report", server="nowhere") == 1
    assert capsys.readouterr().err == f"demo: [Errno 17] File exists: '{tmp_path}/report'\n"
    assert main([], folder=Path("/proc/report"), server="nowhere") == 1
    assert "'/proc/report'" in capsys.readouterr().err


@pytest.mark.parametrize("tokens_per_s", [500.0, 15e3, 60e3, 1e6])
def test_the_load_is_as_much_work_as_was_asked_for_whatever_the_machine(
    tokens_per_s: float,
) -> None:
    """On a fast machine in less time, as no more can be sent."""
    size = Size()
    sent = drawn(tokens_per_s, size)
    scale = sent.arrivals_s / size.arrivals_s
    assert (scale < 1) == (tokens_per_s > 40e3)
    assert len(sent.rows) <= load.MOST + 1
    tokens = tokens_per_s * size.work_s * scale
    assert load.num_tokens(sent.rows) == pytest.approx(tokens, rel=0.05, abs=1000)
    assert sent.count(CHAT) == pytest.approx(2 * sent.count(BATCH), abs=2.0)
    assert sent.batch_ttlt_s == pytest.approx(size.batch_ttlt_s * scale, rel=0.05)
    assert max(row.at for row in sent.rows if row.tier == BATCH) <= scale
    assert sent == drawn(tokens_per_s, size)


def test_what_is_written_is_what_is_sent(tmp_path: Path) -> None:
    sent = drawn(10e3, Size())
    workload = build(sent.write(tmp_path), INFO)
    requests = list(plan(workload))
    first_at = sent.rows[0].at
    assert [(r.at, r.tier) for r in requests] == [
        (pytest.approx(row.at - first_at, abs=2e-6), row.tier) for row in sent.rows
    ]
    (batch,) = {(r.targets, r.importance, r.explicit) for r in requests if r.tier == BATCH}
    assert batch == (Targets(ttlt=sent.batch_ttlt_s), Importance.LOW, True)
    assert {r.targets for r in requests if r.tier == CHAT} == {INFO.tiers[0].targets}


@given(st.lists(st.text(alphabet="ab \n", max_size=9), max_size=60))
def test_a_story_is_wrapped_whatever_its_pieces(pieces: list[str]) -> None:
    """It has all words, in lines that fit, and the lines that it had."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        text = words.Wrapped()
        for piece in pieces:
            text.add(piece)
        text.end()
    told, shown = "".join(pieces), printed.getvalue()
    assert shown.split() == told.split()
    assert all(len(line) <= words.WIDTH for line in shown.splitlines() if len(line.split()) > 1)
    assert all(line.startswith("  ") for line in shown.splitlines())
    assert not shown or shown.endswith("\n")
    wanted = [line.split() for line in told.split("\n") if line.split()]
    if all(sum(map(len, line)) + len(line) < words.WIDTH - 2 for line in wanted):
        assert [line.split() for line in shown.splitlines()] == wanted


def known(took_s: float, is_relegated: bool, is_late: bool, name: str) -> Record:
    targets = Targets(ttlt=took_s / 2 if is_late else took_s * 2)
    made = record(planned(targets=targets, output_len=1), [took_s])
    made.relegated, made.request_id = is_relegated, name
    return made


def test_the_story_told_is_of_one_that_was_relegated_and_late_if_any_was() -> None:
    records = [
        known(9.0, False, True, "late"),
        known(5.0, True, False, "relegated"),
        known(3.0, True, True, "both"),
        known(2.0, True, True, "both, and sooner"),
        known(99.0, True, True, ""),  # the server never took it
    ]
    assert [chosen(records[i:]).request_id for i in (0, 3)] == ["both", "both, and sooner"]  # type: ignore[union-attr]  # there are some
    assert chosen(records[:2]).request_id == "relegated"  # type: ignore[union-attr]
    assert chosen(records[:1]).request_id == "late"  # type: ignore[union-attr]
    assert chosen(records[4:]) is None


def test_who_was_late_is_told_from_who_got_no_answer() -> None:
    served = record(planned(0, 0.0, tier=CHAT), [0.1])
    lost = record(planned(1, 0.0, tier=BATCH), outcome=Outcome.FAILED)
    lost.error = "the engine was lost"

    def said(*records: Record) -> str:
        summary = summarised(workload(), INFO, Run(list(records), 10.0))
        return words.late(Measurement("fcfs", summary, list(records)))

    assert said(served) == "Late under fcfs: nobody."
    assert said(served, lost) == (
        "Late under fcfs: 1 of 1 batch. Of 1 of them the answer did not come: the engine was lost"
    )


def test_the_command_that_sends_it_again_is_one_that_a_shell_reads() -> None:
    again = ["python", "-m", "loadgen", "--server-flags", f"--max-requests 4 --model {'x' * 60}"]
    text = words.written(Path("report.html"), [*again, "--seed", "1"])
    _, _, command = text.partition("Again    ")
    assert "\\\n" in command
    read = subprocess.check_output(["sh", "-c", f"printf '%s\n' {command}"], text=True)
    assert read.splitlines() == [*again, "--seed", "1"]
