"""The processes of `bench engine`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
# A worker that says who it is and answers every line, in the hands of a bench that is ended by
# SIGTERM while it is stopped.
BENCH = """
import os, signal, sys
from tests.bench.engine import Worker
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
engine = '''
import json, os, sys
print(json.dumps({"engine": "e", "dtype": "d", "pid": os.getpid()}), flush=True)
for line in sys.stdin:
    print(line, flush=True)
'''
with Worker([sys.executable, "-c", engine], {}, dict(os.environ)) as worker:
    assert worker.serve([([1], 1)]) == [[[1], 1]]
    print(worker.about["pid"], flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_a_bench_that_is_ended_leaves_no_stopped_worker() -> None:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BENCH],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert found.returncode == 1, found.stderr
    assert not psutil.pid_exists(int(found.stdout))
