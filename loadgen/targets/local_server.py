"""A server of the load generator's own, for a demo or a comparison: `python -m server` in a child
process, on a free port of the loopback.

Its log goes to a file, the end of which is shown where it fails. It ends with this process, however
that ends: its standard input is a pipe that nobody else holds.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from loadgen.targets.target import Unreachable

MODULE = "server"  # what `python -m` runs
START_TIMEOUT_S = 900.0  # on a busy machine the first start compiles for minutes
STOP_TIMEOUT_S = 60.0

# What a server says that was told twice to stop: a Ctrl-C of the terminal had reached it as well.
_LEFT_AT_ONCE = 128 + signal.SIGTERM

_READY = re.compile(r"ready on (\S+:\d+)")


@contextlib.contextmanager
def serving(
    flags: Sequence[str] = (), module: str = MODULE, log: Path | None = None
) -> Iterator[str]:
    """Serves while the block lasts, and yields HOST:PORT. `flags` are those of `python -m server`,
    or of another module that is started like it; its log goes to the file `log`, or to one that is
    removed with it.

    Raises Unreachable where the server does not come up, or does not end well.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = log or Path(folder) / "server.log"
        command = [sys.executable, "-m", module, "--port", "0", "--until-eof", *flags]
        pipe = subprocess.PIPE
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            try:
                yield _ready_address(process, process.stdout, log)
            finally:
                status = _end(process)
        if status not in (0, _LEFT_AT_ONCE):
            raise Unreachable(f"the server ended with status {status}: {_last_line(log)}")


def _ready_address(process: subprocess.Popen[str], output: IO[str], log: Path) -> str:
    """Waits for the ready line, the only one that a server prints, and returns its HOST:PORT.

    Raises Unreachable where none comes in time, or the server ends.
    """
    is_late = threading.Event()

    def end() -> None:
        """Terminates a server that is late: killed, it would leave its engine behind, which would
        keep the output open.
        """
        is_late.set()
        process.terminate()
        _wait(process)

    timer = threading.Timer(START_TIMEOUT_S, end)
    timer.start()
    try:
        for line in output:
            if match := _READY.search(line):
                return match[1]
    finally:
        timer.cancel()
    process.wait()
    if is_late.is_set():
        raise Unreachable(
            f"the server was not ready after {START_TIMEOUT_S:g} s; its log ends: {_last_line(log)}"
        )
    raise Unreachable(f"the server did not start: {_last_line(log)}")


def doing(log: Path) -> str:
    """Returns what a server that is starting says last of what it is doing; "" where nothing."""
    said = ""
    with contextlib.suppress(OSError):  # it has not begun to write
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # no line of a log, or not yet all of it
                entry = json.loads(line)
                said = entry.get("doing", said) if isinstance(entry, dict) else said
    return said


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _end(process: subprocess.Popen[str]) -> int:
    """Asks the server to end and returns its exit status.

    An interrupt meanwhile makes it leave at once.
    """
    process.terminate()
    try:
        return _wait(process)
    except KeyboardInterrupt:
        process.terminate()
        _wait(process)
        raise


def _wait(process: subprocess.Popen[str]) -> int:
    """Waits for the end of a process, which is killed if that takes too long."""
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
