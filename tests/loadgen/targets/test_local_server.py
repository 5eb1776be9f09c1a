"""A server of one's own, as it ends: here a process that says what a server says."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.targets import local_server
from loadgen.targets.local_server import doing, serving
from loadgen.targets.target import Unreachable

READY_UNTIL_TERMINATED = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit({status}))
print("niyama ready on 127.0.0.1:1: little", flush=True)
signal.pause()
"""

# With a child, as a server has an engine: it lives until its parent closes the pipe.
NEVER_READY = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
signal.signal(signal.SIGTERM, lambda *_: (child.kill(), sys.exit(0)))
signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("status", [0, 143])
def test_a_server_may_drain_or_leave_at_once(folder: Path, status: int) -> None:
    """At once: a Ctrl-C in the terminal reaches it too, and being asked to end is the second."""
    (folder / "little.py").write_text(READY_UNTIL_TERMINATED.format(status=status))
    with serving(module="little") as address:
        assert address == "127.0.0.1:1"


def test_a_server_that_ends_otherwise_is_an_error(folder: Path) -> None:
    (folder / "little.py").write_text(READY_UNTIL_TERMINATED.format(status=3))
    with (
        pytest.raises(Unreachable, match="the server ended with status 3: it said nothing"),
        serving(module="little"),
    ):
        pass


def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    (folder / "little.py").write_text("raise SystemExit('no such model')")
    with (
        pytest.raises(Unreachable, match="the server did not start: no such model"),
        serving(module="little"),
    ):
        pass


def test_a_server_that_takes_too_long_is_told_from_one_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is ended with what it has started, which holds its output open."""
    monkeypatch.setattr(local_server, "START_TIMEOUT_S", 0.5)
    (folder / "little.py").write_text(NEVER_READY)
    with (
        pytest.raises(Unreachable, match=r"the server was not ready after 0\.5 s; its log ends: "),
        serving(module="little"),
    ):
        pass


def test_what_a_server_does_until_it_is_ready_is_read_in_its_log(tmp_path: Path) -> None:
    """The last of it, whatever else the log says."""
    log = tmp_path / "server.log"
    assert doing(log) == ""
    log.write_text(
        '{"event": "starting", "doing": "loading"}\na warning of some library\n7\n'
        '{"event": "starting", "doing": "compiling"}\n{"event": "calibration"}\n{"event": "cut sh'
    )
    assert doing(log) == "compiling"
