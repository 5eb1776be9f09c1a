"""Nobody stops a process by how its stdout and stderr are read: real processes, pipes and disks."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

NUM_LINES = 60_000  # more than all pipes of the way hold
WAIT_S = 120.0
# Writes its lines to stderr, then says on stdout how many were dropped.
WRITING = """
import sys, time
from engine.processes.standard_streams import DROPPED, relayed

def resumed(n): sys.stderr.write(f"dropped {n}\\n")

with relayed() as relays:
    DROPPED.on_resumed = resumed
    for i in range(NUM_LINES):
        print(f"line {i} " + 40 * "x", file=sys.stderr)
    relays.flush(PATIENCE)
    print("total", DROPPED.total)
"""


def writing_lines(patience_s: float) -> str:
    return f"NUM_LINES, PATIENCE = {NUM_LINES}, {patience_s}\n{WRITING}"


def start(code: str, stderr: int, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, **options)  # type: ignore[call-overload,no-any-return]


def total(child: subprocess.Popen[str]) -> int:
    """What it says that it dropped, once it has ended."""
    said, _ = child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    assert said.startswith("total "), said
    return int(said.split()[1])


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("broken", [closed_pipe, full_disk])
def test_lines_that_cannot_be_written_are_dropped_and_counted(broken: Callable[[], int]) -> None:
    stderr = broken()
    child = start(writing_lines(60), stderr)
    os.close(stderr)
    assert total(child) == NUM_LINES


def test_a_descriptor_that_is_not_open_is_none_that_another_file_could_get() -> None:
    """Else the log would be written into whatever is opened next."""
    code = (
        "import os, sys\n"
        "from engine.processes.standard_streams import relayed\n"
        "with relayed():\n"
        "    print('lost', file=sys.stderr)\n"
        "    reading, writing = os.pipe()\n"
        "    print('kept', min(reading, writing) > 2)\n"
    )
    shell = 'exec "$0" -c "$1" 2>&-'
    said = subprocess.check_output(["sh", "-c", shell, sys.executable, code], timeout=WAIT_S)
    assert said == b"kept True\n"


@pytest.mark.parametrize("blocks", [True, False])
def test_a_reader_that_stalls_stops_nobody_and_misses_only_whole_lines(blocks: bool) -> None:
    """Though the pipe be one that another process has made non-blocking."""
    reading, writing = os.pipe()
    os.set_blocking(writing, blocks)
    child = start(writing_lines(0.1), writing)
    os.close(writing)
    assert child.stdout is not None
    num_dropped = int(child.stdout.readline().split()[1])  # before anybody has read a line
    with open(reading, encoding="utf-8") as stderr:
        lines = [line for line in stderr.read().splitlines() if not line.startswith("dropped")]
    child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    expected = {f"line {i} " + 40 * "x" for i in range(NUM_LINES)}
    assert num_dropped > 0
    assert len(lines) >= NUM_LINES - num_dropped
    torn = [line for line in lines if line not in expected]
    assert len(torn) <= 1  # where the pipe was full in the midst of a line


def test_writing_again_is_told_with_the_number_of_lines_that_were_lost(tmp_path: Path) -> None:
    """A disk that is full for a while, played by a limit on the file's size."""
    code = """
import resource, sys
from engine.processes.standard_streams import DROPPED, relayed

def resumed(n): sys.stderr.write(f"dropped {n}\\n")

def say(text):
    print(text, file=sys.stderr)
    relays.flush(60)

with relayed() as relays:
    DROPPED.on_resumed = resumed
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
    for text in ("before", "cut in its midst", "lost"):
        say(text)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for text in ("after", "and on"):
        say(text)
"""
    path = tmp_path / "log"
    with path.open("wb") as stderr:
        child = start(code, stderr.fileno())
        child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    assert path.read_text().splitlines() == [
        *("before", "cut in its mi", "after", "dropped 2", "and on")
    ]


def test_the_last_words_of_a_child_that_died_arrive(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "from engine.processes.standard_streams import relayed\n"
        "child = 'import os; os.write(2, b\"dying\\\\n\"); os.abort()'\n"
        "with relayed():\n"
        "    subprocess.run([sys.executable, '-c', child])\n"
    )
    path = tmp_path / "log"
    with path.open("wb") as stderr:
        child = start(code, stderr.fileno())
        child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    assert path.read_text() == "dying\n"


def test_a_child_whose_parent_reads_no_more_goes_on() -> None:
    """Its descriptors are a pipe that does not block, and that is full."""
    code = (
        "import sys\n"
        "from engine.processes.standard_streams import DROPPED, guard\n"
        "guard()\n"
        "for i in range(2000): print('x' * 100, file=sys.stderr)\n"
        "sys.stderr.write('y' * (1 << 20))\n"
        "print('total', DROPPED.total)\n"
    )
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    child = start(code, writing)
    os.close(writing)
    num_dropped = total(child)
    with open(reading, encoding="utf-8") as stderr:
        lines = stderr.read().splitlines()
    assert lines.count("x" * 100) == 2000 - num_dropped + 1  # the long one counts too


def test_a_log_line_about_lost_lines_is_written_in_the_midst_of_another() -> None:
    """By the thread that logs, which must not wait for itself."""
    code = (
        "import os, structlog, sys\n"
        "from engine.processes.standard_streams import guard\n"
        "from server import logs\n"
        "guard()\n"
        "logs.configure('json', 'info')\n"
        "log = structlog.get_logger()\n"
        "for i in range(2000): log.info('x' * 100)\n"
        "print('full', flush=True)\n"
        "sys.stdin.readline()\n"
        "log.info('again')\n"
    )
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    child = start(code, writing, stdin=subprocess.PIPE)
    os.close(writing)
    assert child.stdout is not None
    assert child.stdout.readline() == "full\n"
    while len(os.read(reading, 1 << 16)) == 1 << 16:
        pass
    child.communicate("\n", timeout=WAIT_S)
    with open(reading, encoding="utf-8") as stderr:
        said = stderr.read()
    assert "again" in said
    assert "log lines dropped" in said


def test_a_full_pipe_of_a_reader_in_no_hurry_is_passed_on_whole() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    code = (
        "import sys\n"
        "from engine.processes.standard_streams import relayed\n"
        "with relayed() as relays:\n"
        "    for i in range(5000): print(i, file=sys.stderr)\n"
        "    relays.flush(60)\n"
    )
    child = start(code, writing)
    os.close(writing)
    with open(reading, encoding="utf-8") as stderr:
        assert stderr.read().split() == [str(i) for i in range(5000)]
    child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
