"""The application that Ray Serve runs: `build`, for a file of Ray's or `serve run`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve import Application

from server.config import ServerConfig, StartError
from server.listening.exposure import exposed
from server.ray import fleet
from server.ray.fleet import Fleet
from server.ray.replica import REST_S, Replica
from server.settings import parse

NAME = "niyama"
SERVICES = "server.ray.proxy.add_services"  # of Ray's grpc_servicer_functions
ANY_HOST = "0.0.0.0"  # where Ray's proxy listens, whatever it is told


def build(arguments: Mapping[str, Any]) -> Application:
    """Returns the application of a fleet with these arguments: those of `Fleet`, and `flags`, a
    text with the flags of each server. Raises StartError and ValueError.
    """
    rest = dict(arguments)
    flags = shlex.split(str(rest.pop("flags", "")))
    return application(flags, parse(flags, {}), fleet.of_arguments(rest))


def application(flags: Sequence[str], config: ServerConfig, fleet: Fleet) -> Application:
    """Returns the application whose replicas run servers with those flags, of which `config` has
    come. Raises StartError where Ray's proxy must not serve that.
    """
    check(config)
    deployment = serve.deployment(Replica).options(
        name=NAME,
        num_replicas=fleet.replicas,
        ray_actor_options={"num_cpus": fleet.cpus, "num_gpus": fleet.gpus},
        # Never fewer than the server itself takes: who waits, and who gives way, is its decision.
        max_ongoing_requests=config.most_streams,
        max_queued_requests=config.max_requests,
        graceful_shutdown_timeout_s=config.drain_s + REST_S,
    )
    return deployment.bind(list(flags), config)


def check(config: ServerConfig) -> None:
    """Raises StartError for what does not go through Ray's proxy, or must not."""
    if config.tls_certificate is not None or config.tls_client_ca is not None:
        raise StartError(
            "tls_certificate and tls_client_ca are of no use: Ray's proxy speaks no TLS; have it"
            " ended before, and say allow_plaintext"
        )
    if why := exposed(replace(config, host=ANY_HOST)):
        raise StartError(f"Ray's proxy listens on all addresses: {why}")
