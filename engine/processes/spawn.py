"""Starts a child of this process, and tells it what it is to do.

A fresh interpreter, not a fork: the parent may run gRPC's threads, and CUDA survives no fork. Each
process holds one end of a socket pair and exits when the other closes, so that no child outlives
its parent; one that is stopped at that moment is continued by the system, and exits then. Parent
and child share a page in which they show each other that they live (`pulse.py`). Signals are the
parent's to act on, so that one to the whole group still drains: a child is born with them blocked,
and ignores them from `leave_signals` on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from engine.processes.frames import pack
from engine.processes.pulse import Pulse, Side, shared_page

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# Room for many messages, so that a reader who is busy for a moment does not hold up the writer.
_SOCKET_BYTES = 1 << 22
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Child(NamedTuple):
    """A child is a process of ours, and the near ends of what connects it."""

    process: subprocess.Popen[bytes]
    sockets: list[socket.socket]
    pulse: Pulse


def spawn(
    module: str, name: str, first: object, num_sockets: int, environment: Mapping[str, str]
) -> Child:
    """Starts `python -m MODULE FD... PULSE NAME` with the far ends of so many socket pairs and the
    page of its pulse, and sends `first` through the first pair. The name is for who looks at the
    system's processes. Raises OSError, and then nothing is left.
    """
    with contextlib.ExitStack() as failing, contextlib.ExitStack() as far:
        near, fds = [], []
        for _ in range(num_sockets):
            ours, theirs = socket_pair()
            near.append(failing.enter_context(ours))
            fds.append(far.enter_context(theirs).fileno())
        page = shared_page()
        far.callback(os.close, page)
        fds.append(page)
        pulse = Pulse(page, Side.PARENT)
        failing.callback(pulse.close)
        command = [sys.executable, "-m", module, *map(str, fds), name]
        with _signals_blocked():
            child = subprocess.Popen(
                command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment
            )
        failing.callback(_end, child)
        far.close()  # so that a child that has died is noticed
        near[0].sendall(pack(first))
        failing.pop_all()
        return Child(child, near, pulse)


def leave_signals() -> None:
    """Leaves signals to the parent. It is to be called by the child, first of all."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # SIGCONT does nothing to a process that runs, so it does not matter that the system sends it
    # when the thread ends that started this process, not only with the parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def parent_of(arguments: list[str]) -> tuple[list[socket.socket], Pulse]:
    """Returns what the child has of its parent, by the arguments that `spawn` gave it."""
    *ends, page = map(int, arguments[:-1])
    pulse = Pulse(page, Side.CHILD)
    os.close(page)
    return [socket.socket(fileno=fd) for fd in ends], pulse


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Returns two ends of one connection, either of which has room for what is not read yet."""
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return pair


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks signals for as long as the block runs. One that comes in the meantime is delivered
    afterwards. Children inherit what is blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
