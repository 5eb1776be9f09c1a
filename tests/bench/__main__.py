"""`python -m tests.bench NAME [FLAGS]`: runs the benchmark of that name, a module beside this, in
the environment in which an engine computes.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.processes.environment import environment


def main(argv: Sequence[str]) -> int:
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = sorted(m.name for m in modules if not m.name.startswith(("_", "test_")))
    if not argv or argv[0] not in names:
        print(f"usage: python -m tests.bench {{{','.join(names)}}} [FLAGS]", file=sys.stderr)
        return 2
    status = int(importlib.import_module(f"tests.bench.{argv[0]}").main(argv[1:]) or 0)
    if status == 1:
        print(f"a goal was missed; tests/bench/{argv[0]}.py says which there are", file=sys.stderr)
    return status


if __name__ == "__main__":
    if dict(os.environ) != dict(environment()):
        command = [sys.executable, "-m", "tests.bench", *sys.argv[1:]]
        os.execve(sys.executable, command, dict(environment()))
    sys.exit(main(sys.argv[1:]))
