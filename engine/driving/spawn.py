"""Starts a process of ours, an engine or a front end, and tells it what it is to do.

A fresh interpreter, not a fork: the parent may run gRPC's threads, and CUDA survives no fork. Each
process holds one end of a socket pair and exits when the other closes, so that no child outlives
its parent. Signals are the parent's to act on, so that one to the whole group still drains: a child
is born with them blocked, and ignores them from `leave_signals` on.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

from engine.driving.messages import pack

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# Room for the reports of many iterations, so that a busy front end does not hold up the engine.
_SOCKET_BYTES = 1 << 22


def spawn(
    module: str, first: object, num_sockets: int, environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], list[socket.socket]]:
    """`python -m MODULE FD...` with the far ends of so many socket pairs; `first` is sent through
    the first pair. Returns the child and the near ends. Raises OSError, and then nothing is left.
    """
    with contextlib.ExitStack() as failing, contextlib.ExitStack() as far:
        near, fds = [], []
        for _ in range(num_sockets):
            ours, theirs = socket_pair()
            near.append(failing.enter_context(ours))
            fds.append(far.enter_context(theirs).fileno())
        command = [sys.executable, "-m", module, *map(str, fds)]
        with _signals_blocked():
            child = subprocess.Popen(
                command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment
            )
        failing.callback(_end, child)
        far.close()  # so that a child that has died is noticed
        near[0].sendall(pack(first))
        failing.pop_all()
        return child, near


def leave_signals() -> None:
    """To be called by the child, first of all."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return pair


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """One that comes in the meantime is delivered afterwards. Children inherit what is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
