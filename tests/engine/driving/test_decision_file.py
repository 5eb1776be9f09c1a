"""The decision log on disk."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from engine.decision_log import files_of
from engine.driving.decision_file import DecisionFile

ENTRY = {"request_id": "a", "at": 2.5, "kind": "admitted", "detail": "", "slack_s": math.inf}


def test_entries_are_lines_appended_when_flushed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("earlier\n")
    decisions = DecisionFile(path, unix_offset_s=100.0)
    decisions.write(ENTRY)
    assert path.read_text() == "earlier\n"
    assert decisions.flush() == ""
    line = path.read_text().splitlines()[1]
    assert json.loads(line) == ENTRY | {"unix_s": 102.5, "slack_s": None}
    decisions.close()
    decisions.write(ENTRY)
    assert decisions.flush() == ""


def test_a_full_disk_loses_entries_and_says_so_once() -> None:
    decisions = DecisionFile(Path("/dev/full"), 0.0)
    decisions.write(ENTRY)
    assert "No space left" in decisions.flush()
    decisions.write(ENTRY)
    assert decisions.flush() == ""


def test_a_reader_that_stalls_loses_entries_and_the_log_goes_on_when_it_reads(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    decisions, said = DecisionFile(path, 0.0), ""
    num_written = 0
    while not said:
        decisions.write(ENTRY | {"detail": 1000 * "x"})
        said, num_written = decisions.flush(), num_written + 1
    assert "loses entries" in said
    decisions.write(ENTRY | {"detail": 5000 * "x"})
    assert decisions.flush() == ""
    lines = os.read(reading, 1 << 20).splitlines()
    decisions.write(ENTRY)
    assert decisions.flush().endswith("goes on, without 2 entries")
    lines += os.read(reading, 1 << 20).splitlines()
    whole = [line for line in lines if line.endswith(b"}")]
    assert len(whole) == num_written  # without the last of them, and with the one at the end
    assert json.loads(lines[-1])["request_id"] == "a"
    os.close(reading)
    decisions.close()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_the_engine_is_comes_first_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    decisions = DecisionFile(path, 0.0, {"policy": "niyama", "tiers": []})
    decisions.describe({"tiers": ["chat"]}, at=1.0)
    decisions.describe({"tiers": ["chat"]}, at=2.0)
    decisions.write(ENTRY)
    decisions.describe({"tiers": ["chat", "batch"]}, at=3.0)
    decisions.flush()
    told = [(line["kind"], line["at"], line.get("tiers")) for line in read(path)]
    assert told == [
        ("engine", 1.0, ["chat"]),
        ("admitted", 2.5, None),
        ("engine", 3.0, ["chat", "batch"]),
    ]


@pytest.mark.parametrize("most_files", [1, 2, 4])
def test_full_files_are_numbered_and_the_oldest_deleted(tmp_path: Path, most_files: int) -> None:
    """Every file begins with what the engine is, none is larger than it may be, no line is cut, and
    those that are kept hold the last entries without a gap.
    """
    path, most_bytes = tmp_path / "log", 1000
    decisions = DecisionFile(path, 0.0, {"policy": "niyama"}, most_bytes, most_files)
    for i in range(100):
        decisions.write(ENTRY | {"at": float(i)})
        if i % 3 == 2:  # several entries to a flush
            assert decisions.flush() == ""
    assert decisions.flush() == ""
    files = files_of(path)
    assert [file.name for file in files] == [f"log.{n}" for n in range(most_files - 1, 0, -1)] + [
        "log"
    ]
    assert all(file.stat().st_size <= most_bytes for file in files)
    lines = [read(file) for file in files]
    assert [each[0]["kind"] for each in lines] == most_files * ["engine"]
    at = [int(line["at"]) for each in lines for line in each[1:]]
    assert at == list(range(100 - len(at), 100))
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(f.name for f in files)


def test_an_entry_that_fills_a_file_to_the_byte_does_not_turn_it_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    first = DecisionFile(path, 0.0)
    first.write(ENTRY)
    first.flush()
    size = path.stat().st_size
    decisions = DecisionFile(path, 0.0, None, 2 * size, 2)
    decisions.write(ENTRY)
    decisions.flush()
    assert path.stat().st_size == 2 * size
    decisions.write(ENTRY)
    decisions.flush()
    assert [file.stat().st_size for file in files_of(path)] == [2 * size, size]


def test_a_file_that_cannot_be_numbered_loses_entries_until_it_can(tmp_path: Path) -> None:
    """It does not grow in the meantime, and trying again deletes nothing."""
    path, in_the_way = tmp_path / "log", [tmp_path / "log.1", tmp_path / "log.2"]
    for each in in_the_way:
        (each / "full").mkdir(parents=True)
    decisions = DecisionFile(path, 0.0, {"policy": "niyama"}, 300, 3)
    while not (said := decisions.flush()):
        size = path.stat().st_size
        decisions.write(ENTRY)
    assert "loses entries: Directory not empty" in said
    for _ in range(10):
        decisions.write(ENTRY)
        assert decisions.flush() == ""
    assert path.stat().st_size == size <= 300
    for each in in_the_way:
        (each / "full").rmdir()
        each.rmdir()
    decisions.write(ENTRY)
    assert decisions.flush().endswith("goes on, without 11 entries")
    assert [len(read(file)) for file in files_of(path)] == [3, 2]


def test_a_file_that_was_left_in_the_middle_of_a_line_goes_on_with_a_new_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    path.write_text('{"kind": "adm')
    decisions = DecisionFile(path, 0.0)
    decisions.write(ENTRY)
    decisions.flush()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"kind": "adm'
    assert json.loads(whole)["request_id"] == "a"


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--decision-log .*no-such-folder"):
        DecisionFile(tmp_path / "no-such-folder" / "log", 0.0)


def test_a_file_that_another_engine_writes_is_told_once(tmp_path: Path) -> None:
    """One that has ended is no other."""
    path = tmp_path / "log"
    one, two = DecisionFile(path, 0.0), DecisionFile(path, 0.0)

    def said(decisions: DecisionFile) -> str:
        decisions.write(ENTRY)
        return decisions.flush()

    assert said(one) == ""
    assert "another engine's too" in said(two)
    assert said(two) == ""
    one.close()
    three = DecisionFile(path, 0.0)
    assert said(three) == ""
    assert len(read(path)) == 4
