"""`python -m server`: see `--help`, or `server/config.py` for what may be set."""

from __future__ import annotations

import sys

import uvloop

from server import logs
from server.app import serve
from server.config import parse
from server.frontend import StartError


def main(argv: list[str] | None = None) -> int:
    """Serves until a signal. Returns the exit code: 0 drained, 1 could not start."""
    config = parse(sys.argv[1:] if argv is None else argv)
    logs.configure(config.log_format, config.log_level)
    try:
        return uvloop.run(serve(config))
    except StartError as error:
        print(f"niyama-server: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
