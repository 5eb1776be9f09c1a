"""`python -m tests.null_server FLAGS`: `python -m server` before an engine without a model, which
is there at once: for tests of what is said to the server and not to the model.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import uvloop

from server import logs
from server.app import serve
from server.config import parse


def main() -> int:
    config = parse(sys.argv[1:])
    logs.configure(config.log_format, config.log_level)
    engine = replace(config.engine, factory="engine.driving.null:build")
    return uvloop.run(serve(replace(config, engine=engine)))


if __name__ == "__main__":
    sys.exit(main())
