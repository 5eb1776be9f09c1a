"""The engine process: `python -m engine.driving FD [DOOR] PULSE`, started by
`engine.linking.process`.

FD is its end of a socket pair; DOOR, of another one, by which further front ends are let in; PULSE,
the page in which a thread beats, whatever the loop does, so that a long iteration is no death. The
first message is an `EngineConfig`; the answer `Ready`, or `Failed` with one line for the operator.
It ends when who started it closes the pipe or dies, and leaves signals to that process, so that a
signal to the whole group still drains.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
import time
import traceback
import warnings

from engine.config import EngineConfig
from engine.driving.hub import Hub
from engine.driving.loop import Engine, EngineLoop
from engine.driving.pipe import SocketPipe
from engine.messages import Failed, Ready
from engine.processes import collector, standard_streams
from engine.processes.frames import receive, send
from engine.processes.pulse import Pulse, keep_beating
from engine.processes.spawn import leave_signals, parent_of


def build(config: EngineConfig) -> Engine:
    module, _, function = config.factory.partition(":")
    engine = getattr(importlib.import_module(module), function)(config)
    assert isinstance(engine, Engine)
    return engine


def serve(sock: socket.socket, door: socket.socket | None, pulse: Pulse) -> None:
    config: EngineConfig = receive(sock)
    keep_beating(pulse, config.heartbeat_s)
    engine = build(config)
    collector.settle()
    send(sock, Ready(engine.info, engine.pinned))
    ends = SocketPipe(sock) if door is None else Hub(sock, door, engine.info)
    with contextlib.ExitStack() as stack:
        if engine.decisions is not None:
            stack.callback(engine.decisions.close)
        loop = EngineLoop(
            engine.scheduler,
            engine.executor,
            ends,
            time.monotonic,
            engine.decisions,
            engine.looks_ahead,
            engine.learnt,
            pulse.work,
        )
        loop.run()


def describe(error: Exception) -> Failed:
    """Bad input is told in its own words; anything else is our bug and keeps its traceback."""
    if isinstance(error, (ValueError, OSError)):
        return Failed(str(error) or type(error).__name__)
    return Failed(f"{type(error).__name__}: {error}", traceback.format_exc())


def main(argv: list[str]) -> int:
    # torch says at import that it lacks NumPy, which nothing here uses; the operator need not know.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    leave_signals()
    standard_streams.guard()
    (sock, *doors), pulse = parent_of(argv[1:])
    with sock:
        try:
            serve(sock, doors[0] if doors else None, pulse)
        except EOFError:
            return 0
        except Exception as error:
            send(sock, describe(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
