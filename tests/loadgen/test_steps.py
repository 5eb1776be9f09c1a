"""What is said of a step: in place on a terminal, and in few lines elsewhere."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import threading
import time

import pytest

from loadgen import steps
from loadgen.steps import step

WAIT_S = 60.0


def test_a_pipe_is_told_when_it_begins_and_when_it_has_ended() -> None:
    out = io.StringIO()
    with step("installing", lambda: "never told so soon", out):
        assert out.getvalue() == "installing ...\n"
    assert re.fullmatch(r"installing \.\.\.\ninstalling: \d+ s\n", out.getvalue())


def test_what_is_not_done_is_said_to_be() -> None:
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), step("installing", out=out):
        raise KeyboardInterrupt
    assert re.search(r"\ninstalling: not done, after \d+ s\n\Z", out.getvalue())


def test_a_pipe_is_told_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one microsecond on, at twice the time each: as many lines as doublings."""
    monkeypatch.setattr(steps, "PERIOD_S", 0.001)
    monkeypatch.setattr(steps, "FIRST_LINE_S", 1e-6)
    out, told, began_at = io.StringIO(), threading.Semaphore(0), time.monotonic()
    with step("compiling", lambda: told.release() or "half", out):
        for _ in range(3):
            assert told.acquire(timeout=WAIT_S)
    lines = out.getvalue().splitlines()[1:-1]
    assert re.fullmatch(r"  compiling \.\.\. \d+ s, half", lines[0])
    assert 3 <= len(lines) <= 1 + math.log2((time.monotonic() - began_at) / 1e-6)


def test_a_terminal_has_one_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PERIOD_S", 0.05)
    monkeypatch.setenv("COLUMNS", "30")
    ours, theirs = pty.openpty()
    drawn = threading.Semaphore(0)
    with os.fdopen(theirs, "w") as out:
        with step("measuring", lambda: drawn.release() or "and so much else to say of it", out):
            for _ in range(3):
                assert drawn.acquire(timeout=WAIT_S)
        shown = ""
        while not shown.endswith("\n"):
            shown += os.read(ours, 1 << 16).decode()
    os.close(ours)
    first, *others = shown.removesuffix("\r\n").split("\r\x1b[K")
    assert first == "measuring ... 0 s, and so muc"
    assert re.fullmatch(r"measuring: \d+ s", others[-1])
    assert "\n" not in "".join(others)
    assert all(len(each) < 30 for each in others)


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    ours, theirs = pty.openpty()
    raw = open(theirs, "wb", buffering=0)  # noqa: SIM115 - closed by what wraps it
    with io.TextIOWrapper(raw, write_through=True) as out:
        os.close(ours)
        with step("measuring", out=out):
            pass
