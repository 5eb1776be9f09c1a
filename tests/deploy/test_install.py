"""`python -m deploy.install`, with an index of the test's own: what it says, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from deploy.install import main

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0


class Index(ThreadingHTTPServer):
    """An index that has nothing; one that `hangs` does not even say so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Nothing)
        self.hangs = False
        self.asked, self.left = threading.Event(), threading.Event()


class Nothing(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.asked.set()
        if self.server.hangs:
            self.server.left.wait(WAIT_S)
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def index() -> Iterator[Index]:
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.left.set()
        server.shutdown()
        thread.join(WAIT_S)


def installing(folder: Path, index: Index) -> psutil.Popen:
    """Starts it without any package, on a machine that seems to have an NVIDIA driver: then no
    other index is asked.
    """
    programs = folder.parent / "bin"
    programs.mkdir()
    driver = programs / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"http://127.0.0.1:{index.server_port}/simple",
    }
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        environment.pop(name, None)
    return psutil.Popen(
        [sys.executable, "-S", "-m", "deploy.install", folder, "hf"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupt_leaves_neither_a_process_nor_a_file(tmp_path: Path, index: Index) -> None:
    """In the midst of a download."""
    index.hangs = True
    process = installing(tmp_path / "venv", index)
    with process.stderr:
        assert index.asked.wait(WAIT_S)
        started = process.children(recursive=True)
        assert started
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 128 + signal.SIGINT
        _, alive = psutil.wait_procs(started, WAIT_S)
        assert not alive
        said = process.stderr.read().splitlines()
    assert [line.partition(":")[0] for line in said if "..." not in line] == [
        "making a virtual environment",
        "installing PyTorch, the largest part",
        "removing what was not finished",
    ]
    assert "not done" in said[-3]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_what_was_cut_short_is_made_anew_and_what_fails_is_told(
    tmp_path: Path, index: Index
) -> None:
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / ".unfinished").touch()
    process = installing(folder, index)
    with process.stderr:
        said = process.stderr.read()
        assert process.wait(WAIT_S) == 1
    assert said.startswith("removing what was not finished ...\n")
    assert "\ninstall: installing PyTorch, the largest part: exit status 1\n" in said
    assert "No matching distribution found for torch" in said.splitlines()[-1]
    assert (folder / "bin" / "python").stat().st_size
    assert not {path.name for path in folder.iterdir()} & {".unfinished", ".tmp"}


def test_a_folder_that_is_something_else_stays_as_it_is(tmp_path: Path, index: Index) -> None:
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    process = installing(folder, index)
    with process.stderr:
        said = process.stderr.read()
        assert process.wait(WAIT_S) == 1
    assert said == f"install: {folder} is there and is no virtual environment\n"
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_where_nothing_can_be_written_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/proc/venv", "hf"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("install: ")
    assert said.endswith("'/proc/venv'\n")
