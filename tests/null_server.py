"""`python -m tests.null_server FLAGS`: `python -m server` before an engine without a model, which
is there at once: for tests of what is said to the server and not to the model.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from server.command import run
from server.config import parse


def main() -> int:
    config = parse(sys.argv[1:])
    engine = replace(config.engine, factory="engine.driving.null:build")
    return run(replace(config, engine=engine))


if __name__ == "__main__":
    sys.exit(main())
