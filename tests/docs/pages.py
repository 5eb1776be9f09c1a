"""The pages under docs/ as a reader runs them: their commands one after the other, in one shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.server.frontends.test_frontends import free_port

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0
PORTS = ("50051", "9464")  # that pages name: the server's, and that of its metrics
QUICK = {"NIYAMA_CALIBRATION_S": "1", "NIYAMA_COMPILE": "off"}  # to start
# What takes minutes or depends on how fast this machine is just now.
_SHORTER = (
    (r"--duration \d+[smh]", "--duration 2s"),
    (r" --slo-gate \S+", ""),
)


class Block(NamedTuple):
    """A fenced piece of a page: in `language`, from that line on."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Returns the fenced pieces of a page, in their order."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    text = page.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in found]


def run(page: Path, folder: Path, before: str = "", more_ports: Sequence[str] = ()) -> str:
    """Runs what a page has of `sh` and `python`, in a folder that has the repository's, after the
    commands `before`. Returns what it printed; fails with the line that failed.

    Nothing is changed but ports, and how long a load lasts.
    """
    for name in ("deploy", "docs", "loadgen", "server"):
        (folder / name).symlink_to(ROOT / name)
    ports = {named: str(free_port()) for named in (*PORTS, *more_ports)}
    port, metrics_port = (ports[named] for named in PORTS)
    script = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", before]
    for block in blocks(page):
        text = re.sub("|".join(ports), lambda named: ports[named[0]], block.text)
        script.append(f"echo 'line {block.line} of {page.name}'")
        if block.language == "sh":
            for long, short in _SHORTER:
                text = re.sub(long, short, text)
            script.append(text)
        elif block.language == "python":
            path = folder / f"line_{block.line}.py"
            path.write_text(text)
            script.append(f"python {path.name}")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("NIYAMA_")},
        **QUICK,
        "NIYAMA_CALIBRATION_CACHE": str(folder / "profiles"),
        "NIYAMA_PORT": port,
        "NIYAMA_METRICS_PORT": metrics_port,
        "NIYAMA_SERVER": f"localhost:{port}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
    }
    done = subprocess.run(
        ["setpriv", "--pdeathsig", "TERM", "bash", "-c", "\n".join(script)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout
