"""The ports of a front end: what gRPC is told of each, and TLS where it is spoken.

gRPC does not say at which of its ports a call has come, so each has a gRPC server of its own. The
same services are behind all of them.
"""

from __future__ import annotations

import math

import grpc

from server.config import ServerConfig, StartError
from server.identity.certificates import Tls
from server.listening.addresses import host_port
from server.listening.descriptors import room_for_connections
from server.listening.handshakes import Handshakes

FOR_EVER_MS = (1 << 31) - 1
MOST_UNSEEN = 10_000  # calls, each of some kilobytes until it is looked at


class Port:
    """One port, at `number` (0: any free one); services are added to its `server` before it is
    started. `tier` is that of its calls that nobody states targets of, "" at the main port.
    """

    def __init__(
        self, config: ServerConfig, number: int, tier: str, tls: Tls | None, is_shared: bool
    ) -> None:
        """`is_shared` lets other front ends listen at it too. Raises StartError where there are too
        few file descriptors.
        """
        self.tier = tier
        self._address = host_port(config.host, number)
        self._handshakes = None if tls is None else Handshakes(tls)
        try:
            self.server = grpc.aio.server(options=_options(config, is_shared))
        except ValueError as error:
            raise StartError(str(error)) from error

    def listen(self) -> int:
        """Takes the port; returns its number. Raises StartError."""
        try:
            if self._handshakes is None:
                return self.server.add_insecure_port(self._address)
            return self.server.add_secure_port(self._address, self._handshakes.credentials())
        except RuntimeError as error:
            raise StartError(f"cannot listen on {self._address}: {error}") from error

    def take(self, tls: Tls | None) -> None:
        """Has the handshakes to come made with another certificate, key and authorities."""
        if self._handshakes is not None and tls is not None:
            self._handshakes.take(tls)


def ports_of(config: ServerConfig, tls: Tls | None, is_shared: bool) -> list[Port]:
    """Returns the ports of a front end, the main one first. Raises StartError."""
    numbers = ((each.port, each.tier) for each in config.tier_port)
    return [
        Port(config, number, tier, tls, is_shared) for number, tier in ((config.port, ""), *numbers)
    ]


def _milliseconds(seconds: float) -> int:
    """Returns them as gRPC counts, to which the highest number is for ever."""
    return FOR_EVER_MS if seconds == math.inf else int(seconds * 1000)


def _options(config: ServerConfig, is_shared: bool) -> list[tuple[str, int]]:
    """Returns gRPC's options. Raises ValueError where there are too few file descriptors."""
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # a unary answer is as long as was asked for
        # Only front ends of one server share a port: a second server on it should fail.
        ("grpc.so_reuseport", int(is_shared)),
        # gRPC itself drops calls at random, without a word, when more than 1,000 have come at once
        # and were not looked at yet: who is served is for admission to say, which refuses a call
        # in less time than it takes to read it.
        ("grpc.server.max_pending_requests", MOST_UNSEEN),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MOST_UNSEEN),
        # Gateways ping every 30 s, also when idle; gRPC's default answers "too many pings".
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        # Each takes a descriptor, from before it has said a word; more are closed at once.
        ("grpc.max_allowed_incoming_connections", _most_connections(config)),
        ("grpc.server_handshake_timeout_ms", int(config.handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", int(config.idle_s * 1000)),
        ("grpc.max_connection_age_ms", _milliseconds(config.age_s)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(config.age_grace_s)),
        ("grpc.max_concurrent_streams", config.most_streams),
        # A client that vanished without a word must not hold memory for ever.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def _most_connections(config: ServerConfig) -> int:
    """Returns how many connections each port may have: each counts its own. Raises ValueError."""
    num_ports = 1 + len(config.tier_port)
    most = room_for_connections(num_ports * config.max_connections) // num_ports
    if most < 1:
        raise ValueError(f"too few file descriptors for {num_ports} ports: raise `ulimit -n`")
    return most
