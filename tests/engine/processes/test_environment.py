"""The environment of a process that computes on its CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine.processes.environment import environment


def test_what_the_operator_says_is_kept_and_the_rest_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("SOME_OTHER", "x")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    found = environment()
    assert (found["GOMP_SPINCOUNT"], found["SOME_OTHER"]) == ("7", "x")
    assert "glibc.malloc" in found["GLIBC_TUNABLES"]
    assert "GLIBC_TUNABLES" not in os.environ  # it is for the process to be started


def test_the_c_library_takes_every_setting() -> None:
    """glibc warns on standard error of a tunable that it cannot read."""
    found = subprocess.run(
        [sys.executable, "-c", "print(len(bytearray(1 << 26)))"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (found.stdout, found.stderr) == (f"{1 << 26}\n", "")
