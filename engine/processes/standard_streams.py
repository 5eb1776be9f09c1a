"""stdout and stderr of our processes, made so that whoever reads them can stop nobody.

A reader may stall, a pipe may be closed, a disk full. The process that an operator started
(`relayed`) therefore puts a pipe of its own before either descriptor, whose writing end never
blocks, and a thread that passes on what comes through it, however long that takes. Its children
inherit those pipes (`guard`), so that their last words arrive though they have died. What finds the
pipe full, or cannot be passed on, is dropped and counted. What libraries in C write to the
descriptors goes the same way; what they lose by a full pipe is not counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator

STDOUT, STDERR = 1, 2
MOST_BYTES = 1 << 16  # of one line
PIPE_BYTES = 1 << 20  # the most that Linux gives to anybody: some thousands of lines
FLUSH_S = 1.0  # the longest that the end waits for a slow reader


class Dropped:
    """Counts the lines of this process and its children that nobody will read, as far as it knows.

    `on_dropped(n)` is called for each that are added, `on_resumed(n)` where lines are taken again
    after `n` were not, both in whatever thread writes.
    """

    def __init__(self) -> None:
        self.on_dropped: Callable[[int], None] = lambda n: None
        self.on_resumed: Callable[[int], None] = lambda n: None
        self._lock = threading.Lock()
        self.total = 0

    def add(self, n: int) -> None:
        with self._lock:
            self.total += n
        self.on_dropped(n)


DROPPED = Dropped()  # one for a process, as the descriptors are


class Losses:
    """Counts the lines that one descriptor did not take, until it takes lines again."""

    def __init__(self) -> None:
        self._num_untold = 0

    def failed(self, num_lines: int) -> None:
        self._num_untold += num_lines
        if num_lines:
            DROPPED.add(num_lines)

    def worked(self) -> None:
        if self._num_untold:
            num_lines, self._num_untold = self._num_untold, 0
            DROPPED.on_resumed(num_lines)


class LineWriter(io.TextIOBase):
    """A text stream that never fails, and never blocks where its descriptor does not: each write
    of whole lines is taken or dropped. Any thread may write.
    """

    def __init__(self, fd: int, is_terminal: bool = False) -> None:
        self._fd = fd
        self._is_terminal = is_terminal
        self._begun = ""  # a line whose end has not come
        self._is_torn = False  # the descriptor was left in the middle of a line
        self._losses = Losses()
        self._lock = threading.RLock()  # a finalizer may write in the midst of a write

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return self._is_terminal

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            lines, newline, self._begun = (self._begun + text).rpartition("\n")
            if newline:
                self._send(lines + newline)
            if len(self._begun) > MOST_BYTES:
                begun, self._begun = self._begun, ""
                self._send(begun + "\n")
        return len(text)

    def _send(self, text: str) -> None:
        data = b"\n" * self._is_torn + text.encode("utf-8", "backslashreplace")
        if len(data) > MOST_BYTES:
            data = data[:MOST_BYTES] + b" [cut]\n"
        rest = memoryview(data)
        try:
            while rest:  # no more at once than is taken whole or not at all
                rest = rest[os.write(self._fd, rest[: select.PIPE_BUF]) :]
        except OSError:  # full for the moment, or broken
            self._is_torn |= len(rest) < len(data)
            self._losses.failed(text.count("\n"))
        else:
            self._is_torn = False
            self._losses.worked()


class Relay:
    """Puts a pipe in the place of a descriptor, and passes on what comes through it in a thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._target = os.dup(fd)
        self._source, entry = os.pipe()
        os.set_blocking(entry, False)
        with contextlib.suppress(OSError):  # where this user's pipes have it all
            fcntl.fcntl(entry, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.dup2(entry, fd, inheritable=True)
        os.close(entry)
        self._losses = Losses()
        self._passing = threading.Lock()  # held from reading to having passed on
        self._is_at_line = True  # what was passed on last ended a line
        self._is_torn = False  # a line was begun that is not to be gone on with
        self._is_skipping = False  # the rest of a line whose beginning was dropped
        threading.Thread(target=self._run, name=f"relay of {fd}", daemon=True).start()

    def flush(self, patience_s: float) -> None:
        """Returns when all has been passed on or dropped, or after `patience_s`."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if self._passing.acquire(timeout=max(0.0, until - time.monotonic())):
                num_waiting = self._num_waiting()
                self._passing.release()
                if not num_waiting:
                    return
                time.sleep(0.001)

    def end(self) -> None:
        """Leaves the descriptor as it was; what children still write is passed on."""
        self.flush(FLUSH_S)
        os.dup2(self._target, self._fd, inheritable=True)

    def _num_waiting(self) -> int:
        answer = fcntl.ioctl(self._source, termios.FIONREAD, struct.pack("i", 0))
        return int(struct.unpack("i", answer)[0])

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        while True:
            poll.poll()
            with self._passing:
                data = os.read(self._source, MOST_BYTES)
                if not data:  # no process is left that could write
                    os.close(self._source)
                    os.close(self._target)
                    return
                self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        if self._is_skipping:
            _, newline, data = data.partition(b"\n")
            self._is_skipping = not newline
            self._losses.failed(len(newline))
        if not data:
            return
        rest = memoryview(data)
        try:
            if self._is_torn:
                self._write(memoryview(b"\n"))
                self._is_torn, self._is_at_line = False, True
            while rest:
                num_taken = self._write(rest)
                self._is_at_line = rest[num_taken - 1] == ord("\n")
                rest = rest[num_taken:]
        except OSError:  # a closed pipe, a full disk, a terminal that is gone
            self._losses.failed(bytes(rest).count(b"\n"))
            self._is_skipping = not data.endswith(b"\n")
            self._is_torn = not self._is_at_line
        else:
            self._losses.worked()

    def _write(self, data: memoryview) -> int:
        """Waits for the reader, also where the descriptor is another's that does not block."""
        poll = select.poll()
        poll.register(self._target, select.POLLOUT)
        while True:
            try:
                return os.write(self._target, data)
            except BlockingIOError:
                poll.poll()


class Relays:
    """Relays stdout and stderr, for as long as this process is to."""

    def __init__(self) -> None:
        self._before = sys.stdout, sys.stderr
        self._relays: list[Relay] = []
        sys.stdout, sys.stderr = self._writer(STDOUT), self._writer(STDERR)

    def flush(self, patience_s: float) -> None:
        """Passes on what it can, before an end of this process that leaves no time for `end`."""
        for relay in self._relays:
            relay.flush(patience_s)

    def end(self) -> None:
        """Leaves all as it was. Waits for a slow reader, briefly."""
        sys.stdout, sys.stderr = self._before
        for relay in self._relays:
            relay.end()

    def _writer(self, fd: int) -> LineWriter:
        own = _open_descriptor(fd)
        is_terminal = os.isatty(own)
        if own == fd:
            self._relays.append(Relay(fd))
        return LineWriter(own, is_terminal)


@contextlib.contextmanager
def relayed() -> Iterator[Relays]:
    """Relays both streams in the process that an operator started."""
    relays = Relays()
    try:
        yield relays
    finally:
        relays.end()


def guard() -> None:
    """Guards the streams of a child, whose descriptors are its parent's pipes. Call it early on."""
    sys.stdout, sys.stderr = (LineWriter(_open_descriptor(fd)) for fd in (STDOUT, STDERR))


def _open_descriptor(fd: int) -> int:
    """Returns `fd`, or where it was closed when this process began and something else has taken it
    since, another one that goes nowhere.
    """
    began_closed = (sys.__stdout__ if fd == STDOUT else sys.__stderr__) is None
    if not began_closed:
        return fd
    nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    if nowhere == fd:
        os.set_inheritable(fd, True)
    return nowhere
