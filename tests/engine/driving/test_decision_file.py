"""The decision log on disk."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

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


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--decision-log .*no-such-folder"):
        DecisionFile(tmp_path / "no-such-folder" / "log", 0.0)
