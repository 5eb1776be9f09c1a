"""`make demo`: a server, one completion as it streams, a mixed-tier load test. Exit status 0 when
all three worked.

The server is a child process on a free port of the loopback; its logs go to a file that is shown
where something failed.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from client.__main__ import main as client_main
from loadgen.cli import main as loadgen_main

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
PROMPT = "In the beginning"
LOAD = ("--rps", "40", "--mix", "interactive:0.6", "--duration", "12", "--drain", "30")

_READY = re.compile(r"ready on (\S+:\d+)")


class NotStarted(Exception):
    """The server did not come up; the message holds its last words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments are flags of `python -m server`."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        with serving(arguments) as address:
            print(f"server ready on {address}\n\n> {PROMPT}", flush=True)
            sample = ("--server", address, "--tier", "interactive", "--max-tokens", "64")
            failed = client_main([PROMPT, *sample, "--temperature", "0.7", "--seed", "1"])
            print(f"\n$ python -m loadgen {' '.join(LOAD)}", flush=True)
            return failed or loadgen_main([*LOAD, "--target", address])
    except NotStarted as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def serving(flags: Sequence[str] = ()) -> Iterator[str]:
    """A server in a child process while the block lasts; yields HOST:PORT. Raises NotStarted, also
    where the server does not end well."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        command = [sys.executable, "-m", "server", "--port", "0", *flags]
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        try:
            yield _ready_address(process, process.stdout, log)
        finally:
            process.send_signal(signal.SIGTERM)
            status = _wait(process)
        if status:
            raise NotStarted(f"the server ended with status {status}\n{log.read_text()}")


def _ready_address(process: subprocess.Popen[str], output: IO[str], log: Path) -> str:
    """Waits for the ready line; afterwards a thread keeps the pipe empty."""
    timer = threading.Timer(START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        for line in output:
            if match := _READY.search(line):
                threading.Thread(target=output.read, daemon=True).start()
                return match[1]
    finally:
        timer.cancel()
    raise NotStarted(f"the server did not start\n{log.read_text()}")


def _wait(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
