"""Sets structlog up: lines go to stderr, as JSON unless a terminal reads them."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from engine.processes.standard_streams import DROPPED
from server.bounded import bound_values

_LEVELS = {name.lower(): level for name, level in logging.getLevelNamesMapping().items()}


class Threshold:
    """A processor for structlog that drops the lines below a level which may change. (That of
    structlog itself is fixed in each logger when it writes its first line.)
    """

    def __init__(self) -> None:
        self.level = logging.INFO

    def __call__(
        self, logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Returns the line. Raises DropEvent for one that is not to be written."""
        if _LEVELS[method] < self.level:
            raise structlog.DropEvent
        return event


_THRESHOLD = Threshold()


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
            _THRESHOLD,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            bound_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        logger_factory=lambda *_: Lines(sys.stderr),
        cache_logger_on_first_use=True,
    )
    set_level(level)
    DROPPED.on_resumed = _tell


def set_level(level: str) -> None:
    """Sets the least level that is written, for all lines to come."""
    _THRESHOLD.level = _LEVELS[level]


def _tell(num_lines: int) -> None:
    structlog.get_logger().warning("log lines dropped", lines=num_lines)
