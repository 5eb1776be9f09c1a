"""Sets structlog up: lines go to stderr, as JSON unless a terminal reads them."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from engine.processes.standard_streams import DROPPED
from server.bounded import bound_values


class Lines:
    """A logger for structlog that writes lines without holding a lock, as structlog's own writers
    do: the stream may itself log, in the midst of a write, that lines were dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._write = stream.write

    def msg(self, message: str) -> None:
        """Writes one line."""
        self._write(message + "\n")

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def chosen(log_format: str) -> str:
    """Returns the format that `auto` stands for, in this process and its children; any other as it
    is.
    """
    if log_format != "auto":
        return log_format
    return "console" if sys.stderr.isatty() else "json"


def configure(log_format: str, level: str) -> None:
    """Sets the format (auto, console, json) and the least level, a standard name in lower case."""
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if chosen(log_format) == "console"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            bound_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=lambda *_: Lines(sys.stderr),
        cache_logger_on_first_use=True,
    )
    DROPPED.on_resumed = _tell


def _tell(num_lines: int) -> None:
    structlog.get_logger().warning("log lines dropped", lines=num_lines)
