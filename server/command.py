"""The server as a command. `server/config.py` states its flags."""

from __future__ import annotations

import sys
from dataclasses import replace

import uvloop

from engine.processes import standard_streams
from server import logs
from server.app import serve
from server.config import ServerConfig, StartError, parse
from server.ending import REST_S, Ending, block_signals
from server.listening.descriptors import raise_limit


def main(argv: list[str]) -> int:
    """Serves until a signal. Returns the exit code: 0 when drained, 1 when it could not start."""
    return run(parse(argv))


def run(config: ServerConfig) -> int:
    """Does as `main`, for a configuration. It takes this process's streams and signals over."""
    block_signals()
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
