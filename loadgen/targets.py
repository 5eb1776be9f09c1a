"""Which target the flags ask for, and how it is opened and closed."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Iterator

from loadgen import local_server
from loadgen.live import LiveTarget
from loadgen.target import Target


@contextlib.contextmanager
def opened(arguments: argparse.Namespace, contender: str | None = None) -> Iterator[Target]:
    """The target while the block lasts.

    A contender of a comparison is NAME=HOST:PORT, a server that runs already, or the name of a
    policy, for which a server is started here. Raises Unreachable.
    """
    name, _, address = (contender or "").partition("=")
    if contender is None or address:
        yield _live(arguments, address or arguments.target)
        return
    with local_server.serving(["--policy", name, *shlex.split(arguments.server_flags)]) as own:
        yield _live(arguments, own)


def _live(arguments: argparse.Namespace, address: str) -> LiveTarget:
    return LiveTarget(address, arguments.channels, arguments.drain)
