"""The application that Ray Serve runs: `build`, for a file of Ray's or `serve run`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from server.config import ServerConfig, StartError
from server.listening.exposure import exposed
from server.ray import fleet
from server.ray.fleet import Fleet
from server.ray.replica import REST_S, Replica
from server.settings import parse
from server.startup import read_configuration

NAME = "niyama"
SERVICES = "server.ray.proxy.add_services"  # of Ray's grpc_servicer_functions
STATS_S = 0.25  # between two looks at what a replica says; it says something new each second
STATS_TIMEOUT_S = 2.0
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
        **_number(fleet),
        request_router_config=_router(config, fleet.routing),
        ray_actor_options={"num_cpus": fleet.cpus, "num_gpus": fleet.gpus},
        # Never fewer than the server itself takes: who waits, and who gives way, is its decision.
        max_ongoing_requests=config.most_streams,
        max_queued_requests=config.max_requests,
        graceful_shutdown_timeout_s=config.drain_s + REST_S,
    )
    return deployment.bind(list(flags), config)


def _number(fleet: Fleet) -> dict[str, Any]:
    """Returns Ray's options of how many replicas there are."""
    if fleet.most == fleet.replicas:
        return {"num_replicas": fleet.replicas}
    scaling = AutoscalingConfig(
        min_replicas=fleet.replicas,
        max_replicas=fleet.most,
        upscale_delay_s=fleet.up_s,
        downscale_delay_s=fleet.down_s,
        policy=AutoscalingPolicy(policy_function="server.ray.scaling:decide"),
    )
    return {"num_replicas": None, "autoscaling_config": scaling}


def _router(config: ServerConfig, routing: str) -> RequestRouterConfig:
    """Returns Ray's configuration of who gets a call. Raises StartError."""
    text = None if config.config is None else read_configuration(config).text
    return RequestRouterConfig(
        request_router_class="server.ray.router:FleetRouter",
        request_router_kwargs={
            "routing": routing,
            "path": None if config.config is None else str(config.config),
            "text": text,
            "has_gateway": config.gateway_metadata,
        },
        request_routing_stats_period_s=STATS_S,
        request_routing_stats_timeout_s=STATS_TIMEOUT_S,
    )


def check(config: ServerConfig) -> None:
    """Raises StartError for what does not go through Ray's proxy, or must not."""
    if config.tls_certificate is not None or config.tls_client_ca is not None:
        raise StartError(
            "tls_certificate and tls_client_ca are of no use: Ray's proxy speaks no TLS; have it"
            " ended before, and say allow_plaintext"
        )
    if config.tokens_file is not None and config.admin_token_file is None:
        raise StartError(
            "admin_token_file is needed where callers show tokens: with it a replica asks its"
            " server how loaded it is"
        )
    if why := exposed(replace(config, host=ANY_HOST)):
        raise StartError(f"Ray's proxy listens on all addresses: {why}")
