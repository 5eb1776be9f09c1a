"""Which target the flags ask for, and how it is opened and closed."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Iterator, Sequence

from engine.deciding.policies import POLICIES
from loadgen import flags, simulation_flags
from loadgen.targets import local_server
from loadgen.targets.live import LiveTarget
from loadgen.targets.simulated import SimulatedTarget
from loadgen.targets.target import Target

_LIVE_DRAIN_S = 60.0


@contextlib.contextmanager
def opened(arguments: argparse.Namespace, contender: str | None = None) -> Iterator[Target]:
    """The target while the block lasts.

    A contender of a comparison is NAME=HOST:PORT, a server that runs already, or the name of a
    policy, for which a server is started here, or simulated. Raises Unreachable, or ValueError.
    """
    if arguments.simulate is not None:
        yield _simulated(arguments, contender)
        return
    name, _, address = (contender or "").partition("=")
    if contender is None or address:
        yield _live(arguments, address or arguments.target)
        return
    with local_server.serving(["--policy", name, *shlex.split(arguments.server_flags)]) as own:
        yield _live(arguments, own)


def check(arguments: argparse.Namespace, contenders: Sequence[str]) -> None:
    """Before the first one runs: can each be opened? Raises ValueError."""
    for contender in contenders:
        if arguments.simulate is not None:
            _simulated(arguments, contender)
            continue
        name, _, address = contender.partition("=")
        if not address and name not in POLICIES:
            raise ValueError(
                f"unknown policy {name!r}: one of {', '.join(POLICIES)}, or NAME=HOST:PORT"
            )


def _live(arguments: argparse.Namespace, address: str) -> LiveTarget:
    drain_s = _LIVE_DRAIN_S if arguments.drain is None else arguments.drain
    return LiveTarget(address, arguments.channels, drain_s)


def _simulated(arguments: argparse.Namespace, contender: str | None) -> Target:
    spec = flags.to_spec(arguments)
    shared = any(tier.prefix is not None for tier in (spec.everyone, *spec.tiers.values()))
    setup = simulation_flags.setup(arguments, prefix_caching=shared)
    if contender is None:
        return SimulatedTarget(setup)
    return simulation_flags.contender(setup, contender, arguments.silo)
