"""`python -m tests.null_server FLAGS`: `python -m server` before an engine without a model, which
is there at once: for tests of what is said to the server and not to the model.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from server.command import run
from server.settings import ask, started


def main() -> int:
    asked = ask(sys.argv[1:], os.environ)
    begun = started(asked.given)
    engine = replace(begun.config.engine, factory="engine.driving.null:build")
    return run(replace(begun.config, engine=engine), begun, asked.notes)


if __name__ == "__main__":
    sys.exit(main())
