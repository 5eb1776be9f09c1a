"""What is inferred for applications whose calls state nothing of what they need, on the live
service: how often it is what they mean, and what it does to each of them.

    python -m tests.bench inference [--slow 4] [--duration 120] [--load 1]

The service is real, but for an engine whose iterations last as long as a profile says, `--slow`
times as long as those of a quick one: so runs are alike on a busy machine, too. The same with the
embedded model is `python -m loadgen.inferring`, and in virtual time `--simulate PROFILE` of that;
its head says what is printed. Exit code 1 where an application fared worse with inference than
without, beyond chance.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from loadgen.inferring.__main__ import main as scored
from tests.bench._priced import SLOW


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench inference", description=__doc__, add_help=False
    )
    parser.add_argument("--slow", type=float, default=4.0)
    arguments, rest = parser.parse_known_args(argv)
    os.environ[SLOW] = str(arguments.slow)
    return scored(rest, module="tests.bench._priced")
