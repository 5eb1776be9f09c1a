"""`python -m server`: see `--help`, or `server/config.py` for what may be set."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace

import uvloop

from engine.driving import standard_streams
from server import logs
from server.app import serve
from server.config import ServerConfig, parse
from server.descriptors import raise_limit
from server.ending import REST_S, Ending, block_signals
from server.frontend import StartError


def main(argv: list[str] | None = None) -> int:
    """Serves until a signal. Returns the exit code: 0 drained, 1 could not start."""
    return run(parse(sys.argv[1:] if argv is None else argv))


def run(config: ServerConfig) -> int:
    """As `main`. Has this process, its streams and signals, to itself."""
    block_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    raise_limit()
    with standard_streams.relayed() as streams:
        ending = Ending(config.drain_s + REST_S, streams.flush)
        ending.watch()
        if config.until_eof:
            ending.follow_input()
        config = replace(config, log_format=logs.chosen(config.log_format))
        logs.configure(config.log_format, config.log_level)
        try:
            return uvloop.run(serve(config, ending))
        except StartError as error:
            print(f"niyama-server: error: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
