"""What the server is told, and the defaults of its flags, which are repeated nowhere.

Every field marked with `Flag` is a flag (`max_requests` is `--max-requests`), the engine's own
included. Durations in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from engine.config import EngineConfig
from engine.flags import Flag
from server import tier_port
from server.tier_port import TierPort

MONITORING = Path(__file__).parent / "monitoring"  # what operators load into their own tools
LOG_FORMATS = ("auto", "console", "json")
GENERATION_CONFIG = ("auto", "none")
INFER = ("off", "shadow", "on")
KV_EVENTS = ("off", "local", "any")
LOG_LEVELS = ("debug", "info", "warning", "error")
QUEUED_TOKENS = 8192  # for each of `max_requests`
LONGEST_S = 1e6  # some days: what the system's timers can hold
SPARE_STREAMS = 100  # of a connection, for what is no request: health, questions
MOST_FRONTENDS = 64  # far more than one engine can use


class StartError(Exception):
    """The server cannot start; the message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """All that a server is told; every field marked with `Flag` is a flag.

    Raises ValueError, naming the field first, for a value out of range.
    """

    host: Annotated[str, Flag("address to listen on", section="listen")] = "127.0.0.1"
    port: Annotated[
        int, Flag("port (0: any free one; the ready line names it)", section="listen")
    ] = 50051
    tier_port: Annotated[
        Sequence[TierPort],
        Flag(
            "another port, for calls to be served with that tier where they state no targets; may"
            " be given several times (0: any free one; the ready line names it)",
            metavar="TIER=PORT",
            parse=tier_port.parse,
            is_repeated=True,
            section="listen",
        ),
    ] = ()
    config: Annotated[
        Path | None,
        Flag(
            "TOML file of tiers, applications and tenants, and of every flag below in the table of"
            " its section",
            section="configuration",
        ),
    ] = None
    admin_token_file: Annotated[
        Path | None,
        Flag(
            "file with the token whose bearer may explain every tenant's requests",
            section="identity",
            is_reloaded=True,
        ),
    ] = None
    gateway_metadata: Annotated[
        bool,
        Flag(
            "take targets, importance and tenant from a gateway's metadata, too, where a call's"
            " message states none",
            section="identity",
            is_reloaded=True,
        ),
    ] = False
    tokens_file: Annotated[
        Path | None,
        Flag(
            "TOML file of the callers' tokens, a line for each, as --make-token prints it; then"
            " every call must show one, or a certificate",
            section="identity",
        ),
    ] = None
    tls_certificate: Annotated[
        Path | None,
        Flag(
            "PEM file of the server's certificate and those that lead to its authority; the port"
            " then speaks TLS alone",
            section="identity",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        Flag("PEM file of the certificate's key", section="identity"),
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Flag(
            "PEM file of the authorities whose clients may connect: each must show a certificate"
            " (mutual TLS), which names its tenant where [tenants.NAME] says so",
            section="identity",
        ),
    ] = None
    allow_anonymous: Annotated[
        bool,
        Flag(
            "listen beyond this machine though callers are not asked who they are",
            section="identity",
        ),
    ] = False
    allow_plaintext: Annotated[
        bool,
        Flag(
            "listen beyond this machine though tokens and prompts travel unencrypted, as behind a"
            " proxy that ends TLS",
            section="identity",
        ),
    ] = False
    generation_config: Annotated[
        str,
        Flag(
            "sampling of requests that leave it out: auto, the checkpoint's"
            " generation_config.json, or none, the engine's own defaults",
            GENERATION_CONFIG,
            section="model",
        ),
    ] = "auto"
    infer: Annotated[
        str,
        Flag(
            "targets of calls that state none, from the history of their like: off, shadow (told"
            " and counted, not used) or on",
            INFER,
            section="scheduler",
            is_reloaded=True,
        ),
    ] = "shadow"
    max_requests: Annotated[
        int,
        Flag(
            "most requests waiting or running; the last of them are for the important",
            section="limits",
            is_reloaded=True,
        ),
    ] = 1024
    max_queued_tokens: Annotated[
        int,
        Flag(
            "most tokens of work waiting, prompt and output"
            f" (0: {QUEUED_TOKENS:,} for each of max_requests)",
            section="limits",
            is_reloaded=True,
        ),
    ] = 0
    max_message_bytes: Annotated[
        int, Flag("most bytes in one incoming message", section="limits")
    ] = 4 << 20
    max_connections: Annotated[
        int,
        Flag(
            "most connections of a front end, at each of its ports; fewer where file descriptors"
            " are few",
            section="listen",
        ),
    ] = 1000
    max_streams: Annotated[
        int,
        Flag(
            f"most calls at once on one connection (0: --max-requests and {SPARE_STREAMS} more)",
            section="listen",
        ),
    ] = 0
    idle_s: Annotated[
        float, Flag("seconds without a call after which a connection is closed", section="listen")
    ] = 300.0
    age_s: Annotated[
        float,
        Flag(
            "seconds, a tenth more or less, after which a connection takes no more calls, and its"
            " client makes another (inf: never)",
            section="listen",
        ),
    ] = 3600.0
    age_grace_s: Annotated[
        float,
        Flag(
            "seconds that the calls of such a connection may then go on before they are cut (inf:"
            " as long as they take)",
            section="listen",
        ),
    ] = math.inf
    handshake_s: Annotated[
        float,
        Flag(
            "seconds in which a new connection must have ended its TLS handshake, if any, and begun"
            " to speak HTTP/2",
            section="listen",
        ),
    ] = 10.0
    write_timeout_s: Annotated[
        float,
        Flag(
            "seconds in which a client must take a message, else its call ends",
            section="limits",
            is_reloaded=True,
        ),
    ] = 60.0
    receive_timeout_s: Annotated[
        float,
        Flag(
            "seconds in which a call's message must have come, else the call ends",
            section="limits",
            is_reloaded=True,
        ),
    ] = 60.0
    read_s: Annotated[
        float,
        Flag("CPU seconds that a message may take to parse, render and tokenize", section="limits"),
    ] = 5.0
    drain_s: Annotated[
        float,
        Flag("seconds that running calls get after SIGTERM", section="lifetime", is_reloaded=True),
    ] = 30.0
    until_eof: Annotated[
        bool,
        Flag(
            "drain when standard input ends, as with the program that holds its other end",
            section="lifetime",
        ),
    ] = False
    follow_config: Annotated[
        bool,
        Flag(
            "read the file of --config again by itself, some seconds after it has changed, as at"
            " SIGHUP",
            section="lifetime",
        ),
    ] = False
    frontends: Annotated[int, Flag("front-end processes that share the port", section="listen")] = 1
    metrics_port: Annotated[
        int, Flag("port of the Prometheus metrics (0: none)", section="metrics")
    ] = 0
    load_reports: Annotated[
        bool,
        Flag(
            "tell gRPC's balancers the load: in each call's trailers, and by ORCA's OpenRcaService",
            section="metrics",
        ),
    ] = False
    channelz: Annotated[
        bool,
        Flag(
            "answer the operator what gRPC knows of connections (extra channelz)",
            section="metrics",
        ),
    ] = False
    smg: Annotated[
        bool,
        Flag(
            "serve VllmEngine, too, by which the gateway SMG uses this server (extra gateway)",
            section="listen",
        ),
    ] = True
    kv_events: Annotated[
        str,
        Flag(
            "whether SMG is told what is cached, which has the tokens of prompts: of callers that"
            " are asked who they are those who speak for others; else who is on this machine"
            " (local), or anybody",
            KV_EVENTS,
            section="listen",
        ),
    ] = "local"
    metrics_host: Annotated[
        str,
        Flag("address of the metrics port, which speaks no TLS", section="metrics"),
    ] = "127.0.0.1"
    log_format: Annotated[
        str, Flag("auto: json unless a terminal reads", LOG_FORMATS, section="logs")
    ] = "auto"
    traces: Annotated[
        bool,
        Flag(
            "send spans of calls by OpenTelemetry (extra otel; its own OTEL_* variables say where)",
            section="logs",
        ),
    ] = False
    log_level: Annotated[
        str, Flag("least level logged", LOG_LEVELS, section="logs", is_reloaded=True)
    ] = "info"
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} must be between 0 and 65535, got {getattr(self, name)}")
        if self.follow_config and self.config is None:
            raise ValueError("follow_config wants a file to follow, --config")
        taken: dict[int, str] = {}
        for name, port in self._named_ports():
            if port and port in taken:
                raise ValueError(f"{name} must be another than {taken[port]}, got {port} for both")
            taken[port] = name
        for name in ("max_requests", "max_message_bytes", "max_connections", "frontends"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.generation_config not in GENERATION_CONFIG:
            raise ValueError(f"generation_config must be one of {', '.join(GENERATION_CONFIG)}")
        if self.kv_events not in KV_EVENTS:
            text = f"must be one of {', '.join(KV_EVENTS)}, got {self.kv_events!r}"
            raise ValueError(f"kv_events {text}")
        if self.infer not in INFER:
            raise ValueError(f"infer must be one of {', '.join(INFER)}, got {self.infer!r}")
        if self.max_queued_tokens < 0:
            raise ValueError(
                f"max_queued_tokens must not be negative, got {self.max_queued_tokens}"
            )
        if self.frontends > MOST_FRONTENDS:
            raise ValueError(f"frontends must be at most {MOST_FRONTENDS}, got {self.frontends}")
        if self.max_streams < 0:
            raise ValueError(f"max_streams must not be negative, got {self.max_streams}")
        for name in ("read_s", "receive_timeout_s", "write_timeout_s", "idle_s", "handshake_s"):
            if not 0 < getattr(self, name) <= LONGEST_S:
                raise ValueError(
                    f"{name} must be above 0 and at most {LONGEST_S:g}, got {getattr(self, name)}"
                )
        for name in ("age_s", "age_grace_s"):
            value = getattr(self, name)
            if not (0 < value <= LONGEST_S or value == math.inf):
                raise ValueError(
                    f"{name} must be above 0 and at most {LONGEST_S:g}, or inf, got {value}"
                )
        if not 0 <= self.drain_s <= LONGEST_S:
            raise ValueError(f"drain_s must be from 0 to {LONGEST_S:g}, got {self.drain_s}")

    def _named_ports(self) -> Iterator[tuple[str, int]]:
        yield "port", self.port
        yield "metrics_port", self.metrics_port
        for each in self.tier_port:
            yield f"tier_port {each.tier}", each.port

    @property
    def ports(self) -> tuple[int, ...]:
        """Returns the numbers of the ports that take calls, the main one's first."""
        return self.port, *(each.port for each in self.tier_port)

    def at(self, ports: Sequence[int]) -> ServerConfig:
        """Returns the configuration with these numbers of its `ports`."""
        main, *others = ports
        named = zip(self.tier_port, others, strict=True)
        bound = tuple(replace(each, port=number) for each, number in named)
        return replace(self, port=main, tier_port=bound)

    @property
    def most_queued_tokens(self) -> int:
        """Returns how many tokens of work may wait, prompt and output."""
        return self.max_queued_tokens or QUEUED_TOKENS * self.max_requests

    @property
    def most_streams(self) -> int:
        """Returns how many calls may be going on at once on one connection."""
        return self.max_streams or self.max_requests + SPARE_STREAMS
