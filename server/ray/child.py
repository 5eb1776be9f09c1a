"""The server of a replica: `python -m server` in a child process, on a free port of the loopback.

It ends with this process, however that ends: its standard input is a pipe that nobody else holds.
What it logs goes where this process's errors go.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Sequence

START_TIMEOUT_S = 900.0  # the first start of a model measures and compiles it
_READY = re.compile(r"ready on (\S+:\d+)")


class ChildLost(Exception):
    """The server did not start, or has ended by itself; the message says which."""


class Child:
    """A server that has been started with those flags. All that waits is for a thread."""

    def __init__(self, flags: Sequence[str]) -> None:
        command = [sys.executable, "-m", "server", *flags]
        own = ["--host", "127.0.0.1", "--port", "0", "--until-eof"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*command, *own], stdin=pipe, stdout=pipe, text=True)

    def wait_ready(self) -> str:
        """Returns its HOST:PORT once it can serve. Raises ChildLost where it ends, or takes longer
        than START_TIMEOUT_S.
        """
        assert self._process.stdout is not None
        timer = threading.Timer(START_TIMEOUT_S, self._process.terminate)
        timer.start()
        try:
            for line in self._process.stdout:
                if match := _READY.search(line):
                    return match[1]
        finally:
            timer.cancel()
        raise ChildLost(f"the server did not start: it ended with status {self._process.wait()}")

    def check(self) -> None:
        """Raises ChildLost where it has ended."""
        status = self._process.poll()
        if status is not None:
            raise ChildLost(f"the server ended with status {status}")

    def end(self, timeout_s: float) -> int:
        """Asks it to drain and end, which it does within `timeout_s` or is killed; returns its
        status.
        """
        self._process.terminate()
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return status
