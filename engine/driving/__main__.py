"""The engine process: `python -m engine.driving FIRST DOOR PULSE NAME`, started by
`engine.linking.keeper`.

FIRST is its end of the first connection; through DOOR come those of further front ends; in PULSE, a
page of memory, a thread beats, whatever the loop does, so that a long iteration is no death. The
first message is an `EngineConfig`; the answers are what it does, as often as there is news of it
(`Starting`), and then `Ready`, or `Failed` with one line for the operator. The process ends when
who started it closes the first connection or dies, and leaves signals to that process, so that a
signal to the whole group still drains.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator

from engine.config import EngineConfig
from engine.driving.connections import Connections
from engine.driving.loop import Engine, EngineLoop
from engine.messages import Failed, Ready, Starting
from engine.processes import collector, standard_streams
from engine.processes.frames import receive, send
from engine.processes.pulse import Pulse, keep_beating
from engine.processes.spawn import leave_signals, parent_of


def build(config: EngineConfig) -> Engine:
    """Calls the factory that the configuration names."""
    module, _, function = config.factory.partition(":")
    engine = getattr(importlib.import_module(module), function)(config)
    assert isinstance(engine, Engine)
    return engine


class _Telling(logging.Handler):
    """Tells who started the engine what is logged."""

    def __init__(self, first: socket.socket) -> None:
        super().__init__()
        self._first = first

    def emit(self, record: logging.LogRecord) -> None:
        send(self._first, Starting(record.getMessage()))


@contextlib.contextmanager
def telling(first: socket.socket) -> Iterator[None]:
    """Tells who started the engine what is logged (`engine.driving`) while the block lasts. Logging
    raises EOFError where nobody is there any more.
    """
    logger, handler = logging.getLogger("engine.driving"), _Telling(first)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def serve(first: socket.socket, door: socket.socket, pulse: Pulse) -> None:
    """Builds the engine and runs its loop until the first connection is closed. Raises EOFError
    where that happens before the engine is built.
    """
    config: EngineConfig = receive(first)
    keep_beating(pulse, config.heartbeat_s)
    with telling(first):
        engine = build(config)
    collector.settle()
    send(first, Ready(engine.info, engine.pinned))
    with contextlib.ExitStack() as stack:
        if engine.decisions is not None:
            stack.callback(engine.decisions.close)
        loop = EngineLoop(
            engine.scheduler,
            engine.executor,
            Connections(first, door, engine.info),
            time.monotonic,
            engine.decisions,
            engine.looks_ahead,
            engine.learnt,
            pulse.work,
        )
        loop.run()


def describe(error: Exception) -> Failed:
    """Tells bad input in its own words; anything else is our bug and keeps its traceback."""
    if isinstance(error, (ValueError, OSError)):
        return Failed(str(error) or type(error).__name__)
    return Failed(f"{type(error).__name__}: {error}", traceback.format_exc())


def main(argv: list[str]) -> int:
    """Returns the exit code: 1 where the engine could not be built or broke."""
    # torch says at import that it lacks NumPy, which nothing here uses; the operator need not know.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    leave_signals()
    standard_streams.guard()
    (first, door), pulse = parent_of(argv[1:])
    with first, door:
        try:
            serve(first, door, pulse)
        except EOFError:
            return 0
        except Exception as error:
            send(first, describe(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
