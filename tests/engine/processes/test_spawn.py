"""A child is started whole, whatever signals come, or not at all."""

from __future__ import annotations

import os
import signal
import socket
import sys

import psutil
import pytest

from engine.config import EngineConfig
from engine.messages import Ready
from engine.processes.frames import receive
from engine.processes.spawn import spawn
from tests.engine.driving.engines import NULL


def test_signals_to_a_child_that_is_just_starting_do_nothing() -> None:
    """Ctrl-C goes to the whole group, and only the parent acts on it."""
    child, (sock, door), pulse = spawn(
        "engine.driving", "engine", EngineConfig(factory=NULL), 2, os.environ
    )
    with child, sock, door:
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        sock.settimeout(60)
        assert isinstance(receive(sock), Ready)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        sock.shutdown(socket.SHUT_RDWR)
        assert child.wait(60) == 0
    pulse.close()


@pytest.mark.parametrize("program", ["/bin/true", "/no/such/program"])
def test_nothing_is_left_of_a_child_that_cannot_be_told(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not exist, and one that ends without having read all."""
    monkeypatch.setattr(sys, "executable", program)
    fds, children = os.listdir("/proc/self/fd"), psutil.Process().children()
    with pytest.raises(OSError):
        spawn("engine.driving", "engine", b"\0" * (64 << 20), 2, os.environ)
    assert os.listdir("/proc/self/fd") == fds
    assert psutil.Process().children() == children
