"""How the process that the operator started ends, whatever its event loop does.

The first SIGTERM or SIGINT asks the process to end. It leaves at once at a second signal, and when
the time that the first one gave is over: a client that does not read, an engine that hangs or a
thread that computes on can delay the end, and no more. A thread waits for the signals, which are
blocked everywhere else, so that they are seen even if the event loop is busy for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger()

STDIN, MOST_BYTES = 0, 1 << 16
SIGNALS = {signal.SIGTERM, signal.SIGINT}
EXIT_AT_ONCE = 128 + signal.SIGTERM
REST_S = 15.0  # beyond the time to drain, for the end of processes
KILL_S = 10.0  # a GPU's memory takes a process seconds to give back
LAST_LINES_S = 0.2  # that a slow reader of the log gets when this process leaves at once


def _nothing() -> None: ...


class Ending:
    """The end of this process. Call `watch` before any thread is started.

    `on_asked` is called when the first signal comes, and `kill`, which is to end the other
    processes, when this process leaves without waiting; both from a thread, and both may be set
    later.
    """

    def __init__(self, patience_s: float, flush: Callable[[float], None]) -> None:
        """`patience_s` is the time from the first signal to the end of the process, in seconds, and
        may be changed until then; `flush(seconds)` writes what is left of the log, for at most so
        long.
        """
        self.on_asked: Callable[[], None] = _nothing
        self.kill: Callable[[], None] = _nothing
        self.is_asked = False
        self.patience_s = patience_s
        self._flush = flush

    def watch(self) -> None:
        """Waits for the signals, in a thread."""
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def follow_input(self) -> None:
        """Takes the end of standard input for a signal, too."""
        threading.Thread(target=self._read_input, name="input", daemon=True).start()

    def _read_input(self) -> None:
        with contextlib.suppress(OSError):  # it is closed, or a terminal that is gone
            while os.read(STDIN, MOST_BYTES):
                pass
        if not self.is_asked:
            os.kill(os.getpid(), signal.SIGTERM)

    def _run(self) -> None:
        signal.sigwait(SIGNALS)
        self.is_asked = True
        self.on_asked()
        if signal.sigtimedwait(SIGNALS, self.patience_s) is None:
            log.error("not ended in time", seconds=self.patience_s)
            self._leave(0)
        log.warning("leaving at once", note="a second signal came: what runs is ended")
        self._leave(EXIT_AT_ONCE)

    def _leave(self, code: int) -> None:
        killing = threading.Thread(target=self.kill, daemon=True)
        try:
            killing.start()
            killing.join(KILL_S)
            self._flush(LAST_LINES_S)
        finally:
            os._exit(code)


def block_signals() -> None:
    """Blocks the signals that `Ending` waits for. Call it before any thread is started: threads
    inherit it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
