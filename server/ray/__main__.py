"""`python -m server.ray`: a fleet of servers behind Ray's gRPC proxy, with one command.

Without an address it is a cluster of this machine alone, which ends with the command; its own ports
are on the loopback. It takes the flags of `python -m server` besides its own; `--port` is that of
Ray's proxy.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import NamedTuple

import ray
from ray import serve
from ray._private import ray_constants
from ray.serve.config import gRPCOptions

from engine.flags import add_flags, from_text, make, option_of
from server.config import ServerConfig, StartError
from server.ray import app
from server.ray.fleet import Fleet
from server.settings import FLAGS, Given, ask, end, started

OBJECT_STORE_BYTES = 128 << 20  # what crosses Ray is small
LOOPBACK = "127.0.0.1"
# What Ray's processes read when they start. The first is in seconds, between two reports of a
# replica to whoever decides how many there are; the others more than halve the time for a token.
OF_RAY = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
SIGNALS = {signal.SIGTERM, signal.SIGINT}


class Command(NamedTuple):
    """What the command was given. `flags` are those of each server, whoever stated them."""

    fleet: Fleet
    address: str
    flags: Sequence[str]
    config: ServerConfig


def read(argv: Sequence[str]) -> Command:
    """Returns what a command line asks for. Exits with a line for a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m server.ray",
        usage="python -m server.ray [FLAGS] [FLAGS OF python -m server]",
        description="Serves one model with several engines, behind Ray's gRPC proxy.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address", default="", help="of the Ray cluster, or auto (default: one of its own)"
    )
    add_flags(parser, Fleet, shows_defaults=True)
    typed, flags = parser.parse_known_args(argv)
    given = ask(flags, os.environ).given
    config = started(given).config
    try:
        fleet = make(Fleet, typed)
    except ValueError as error:
        name, _, what = str(error).partition(" ")
        parser.error(f"{option_of(name)} {what}")
    return Command(fleet, typed.address, [*flags, *of_variables(given)], config)


def of_variables(given: Given) -> list[str]:
    """Returns the flags that say what the environment does, where no flag says otherwise: replicas
    may be on other machines.
    """
    texts = {k: v for k, v in given.variables.items() if k not in given.flags}
    flags = []
    for name, text in texts.items():
        if FLAGS[name].kind is not bool:
            flags.append(f"{option_of(name)}={text}")
        elif from_text(bool, FLAGS[name].flag, text):
            flags.append(option_of(name))
        else:
            flags.append(option_of(f"no_{name}"))
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, then lets the running calls finish. Returns the exit code."""
    command = read(sys.argv[1:] if argv is None else argv)
    config = command.config
    try:
        app.check(config)
    except StartError as error:
        end(str(error), 1)
    # Beyond that Ray's proxy refuses a message, as the server would.
    os.environ.setdefault("RAY_SERVE_GRPC_MAX_MESSAGE_SIZE", str(config.max_message_bytes))
    for name, value in OF_RAY.items():
        os.environ.setdefault(name, value)
    _join(command)
    try:
        _serve(command)
    finally:
        if not command.address:
            serve.shutdown()
        ray.shutdown()
    return 0


def _join(command: Command) -> None:
    """Joins the cluster, or starts one of this machine alone, on the loopback: Ray takes no such
    address, but has a switch for it, which it reads as it is imported.
    """
    fleet = command.fleet
    if command.address:
        ray.init(address=command.address)
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray.init(
        num_cpus=math.ceil(fleet.cpus * fleet.most),
        num_gpus=math.ceil(fleet.gpus * fleet.most),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
    )


def _serve(command: Command) -> None:
    """Serves until a signal, or with `until_eof` until the standard input ends."""
    port = command.config.port or _free_port()
    serve.start(
        http_options={"host": LOOPBACK, "port": _free_port()},
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[app.SERVICES]),
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if command.config.until_eof:
        threading.Thread(target=_end_with_input, daemon=True).start()
    serve.run(app.application(command.flags, command.config, command.fleet), name=app.NAME)
    print(f"niyama ready on {LOOPBACK}:{port}: {command.fleet.replicas} replicas", flush=True)
    signal.sigwait(SIGNALS)
    serve.delete(app.NAME)


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):  # a file object's lock would be in the way at exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
