"""The server as a command. `server/config.py` and `engine/config.py` state its flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import structlog
import uvloop

from engine.processes import standard_streams
from server import check, logs
from server.app import serve
from server.config import ServerConfig, StartError
from server.configuration import Configuration
from server.ending import REST_S, Ending, block_signals
from server.identity import make_token
from server.listening.descriptors import raise_limit
from server.settings import Started, ask, started

log = structlog.get_logger()


def main(argv: list[str]) -> int:
    """Serves until a signal. Returns the exit code: 0 when drained, 1 when it could not start."""
    asked = ask(argv, os.environ)
    if asked.checks:
        return check.main(asked)
    if asked.token_of is not None:
        return make_token.main(asked.token_of, asked.as_json)
    begun = started(asked.given)
    return run(begun.config, begun, asked.notes)


def run(config: ServerConfig, begun: Started | None = None, notes: Sequence[str] = ()) -> int:
    """Does as `main`, for a configuration. It takes this process's streams and signals over.

    `begun` is what the configuration came of, where it is to be read again; `notes` go to the log.
    """
    block_signals()
    raise_limit()
    with standard_streams.relayed() as streams:
        ending = Ending(config.drain_s + REST_S, streams.flush)
        ending.watch()
        if config.until_eof:
            ending.follow_input()
        config = replace(config, log_format=logs.chosen(config.log_format))
        logs.configure(config.log_format, config.log_level)
        for note in notes:
            log.warning("environment", note=note)
        try:
            configuration = None if begun is None else _read(begun)
            return uvloop.run(serve(config, ending, configuration))
        except StartError as error:
            print(f"niyama-server: error: {error}", file=sys.stderr)
            return 1


def _read(begun: Started) -> Configuration:
    """Returns what has been read of the operator's file. Raises StartError where its tiers are no
    good.
    """
    text = None if begun.document is None else begun.document.text
    try:
        return Configuration(begun.config.config, text, config=begun.config, given=begun.given)
    except ValueError as error:
        raise StartError(str(error)) from error
