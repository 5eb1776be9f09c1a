"""`python -m server`, with a note taken of every iteration (see `prediction.py`)."""

from __future__ import annotations

import sys
from dataclasses import replace

from server.command import run
from server.settings import parse


def main() -> int:
    config = parse(sys.argv[1:])
    engine = replace(config.engine, factory="tests.bench.prediction:build_noting")
    return run(replace(config, engine=engine))


if __name__ == "__main__":
    sys.exit(main())
