"""A server in a process of its own, on any free port."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

START_S = 300.0  # torch alone takes seconds to import on a busy machine
EXIT_S = 120.0
QUICK = ("--calibration-s", "1", "--compile", "off")  # to start


class ServerProcess:
    """`python -m server --port 0 FLAGS`, flags of QUICK first; its log goes to a file, or to the
    descriptor `stderr`. Ends with the `with` block.
    """

    def __init__(
        self,
        log: Path,
        *flags: str,
        module: str = "server",
        stderr: int | None = None,
        num_files: int = 0,
    ) -> None:
        """`module` is started in the place of `server`, with the same flags; with at most
        `num_files` descriptors, if any are named.
        """
        shell = ["sh", "-c", f'ulimit -n {num_files} && exec "$@"', "sh"] if num_files else []
        self._log = log
        self.address = ""
        with log.open("wb") as file:
            self.child = subprocess.Popen(
                [
                    *shell,
                    sys.executable,
                    "-m",
                    module,
                    "--port",
                    "0",
                    "--until-eof",
                    *QUICK,
                    *flags,
                ],
                stdin=subprocess.PIPE,  # held by nobody else: it ends with the tests
                stdout=subprocess.PIPE,
                stderr=file if stderr is None else stderr,
            )

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(EXIT_S)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.close()
        self.child.stdout.close()

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def said(self) -> list[str]:
        """The lines of its log, without the one that a start makes which takes long."""
        return [line for line in self.log.splitlines() if '"event": "starting"' not in line]

    def wait_line(self, of: Callable[[str], bool]) -> str:
        """The first line of the log of that kind; lines are written a little after the fact."""
        until = time.monotonic() + EXIT_S
        while True:
            for line in self.log.splitlines():
                if of(line):
                    return line
            assert time.monotonic() < until, f"no such line; log: {self.log}"
            time.sleep(0.005)

    def wait_ready(self) -> str:
        """Returns the ready line."""
        line = self._read_line()
        match = re.search(r"ready on (\S+):", line)
        assert match, f"no ready line but {line!r}; log: {self.log}"
        self.address = match[1]
        return line

    def wait_exit(self) -> int:
        return self.child.wait(EXIT_S)

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def _read_line(self) -> str:
        assert self.child.stdout is not None
        fd, data, until = self.child.stdout.fileno(), b"", time.monotonic() + START_S
        while not data.endswith(b"\n"):
            readable, _, _ = select.select([fd], [], [], max(0, until - time.monotonic()))
            assert readable, f"no ready line in {START_S} s; log: {self.log}"
            more = os.read(fd, 4096)
            if not more:
                break
            data += more
        return data.decode()
