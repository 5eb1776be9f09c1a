"""`python -m server`, with a note taken of every iteration (see `prediction.py`)."""

from __future__ import annotations

import sys
from dataclasses import replace

import uvloop

from server import logs
from server.app import serve
from server.config import parse


def main() -> int:
    config = parse(sys.argv[1:])
    engine = replace(config.engine, factory="tests.bench.prediction:build_noting")
    logs.configure(config.log_format, config.log_level)
    return uvloop.run(serve(replace(config, engine=engine)))


if __name__ == "__main__":
    sys.exit(main())
