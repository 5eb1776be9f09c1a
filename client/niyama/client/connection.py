"""What both clients know of their server and send with every call: where it is, how it is reached,
who calls, and for how long.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import TypedDict, Unpack

from niyama.client import address, arguments, convert, credentials, tokens
from niyama.client.options import ConnectionOptions

DEFAULT_SERVER = "localhost:50051"
DEFAULT_TIMEOUT_S = 10.0  # of the calls that generate nothing

# What another try may help, and how often one is made: gRPC's own retries, of its proposal A6.
# Other languages' clients take the same text.
SERVICE_CONFIG = resources.files("niyama.client").joinpath("service_config.json").read_text("ascii")

# A call is tried again only as long as gRPC keeps its message: one as large as a server takes.
_RETRIED_BYTES = 4 << 20


class CallOptions(TypedDict):
    """The arguments that gRPC takes beside a message."""

    timeout: float | None
    metadata: tuple[tuple[str, str], ...] | None


class Connection:
    """How a client reaches its server, and what goes with its calls."""

    def __init__(self, server: str, **options: Unpack[ConnectionOptions]) -> None:
        """Raises InvalidRequest, which names the option, for one that cannot hold."""
        unknown = options.keys() - ConnectionOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"unknown argument: {', '.join(sorted(unknown))}")
        self.server = address.check(server)
        self._timeout = arguments.timeout(options.get("timeout", DEFAULT_TIMEOUT_S))
        self._tenant = arguments.tenant(options.get("tenant"), convert.TENANT_KEY)
        self.credentials = credentials.credentials(
            options.get("tls"), options.get("ca"), options.get("cert"), options.get("key")
        )
        token = options.get("token")
        self._token = None if token is None else tokens.source(token)
        is_local = address.is_local(self.server)
        is_safe = self.credentials is not None or is_local
        if token is not None and not (is_safe or options.get("allow_plaintext", False)):
            arguments.refuse(
                f"a token is not sent unencrypted to {self.server}: use TLS, or allow_plaintext",
                "token",
            )
        self.channel_options = _channel_options(options, self.credentials is not None)
        if is_local:  # by a proxy that the environment names, all would leave this machine
            self.channel_options.append(("grpc.enable_http_proxy", 0))

    def call_options(self) -> CallOptions:
        """Returns the options of a call that generates nothing."""
        return self._options(self._tenant or None, self._timeout)

    def generate_options(self, tenant: str | None, timeout: float | None) -> CallOptions:
        """Returns the options of a call that generates; `tenant` None is the client's. Raises
        InvalidRequest.
        """
        return self._options(_named(self._tenant if tenant is None else tenant), timeout)

    def explain_options(self, tenant: str | None) -> CallOptions:
        """Returns the options of a call that asks for the story of a request of that tenant; None
        is the client's. Raises InvalidRequest.

        Beside a token a tenant is named only where there is one, be it the nameless one: an
        operator's who names none asks for the request of any tenant.
        """
        named = _named(self._tenant if tenant is None else tenant)
        if tenant is not None and self._token is not None:
            named = named or ""
        return self._options(named, self._timeout)

    def _options(self, tenant: str | None, timeout: float | None) -> CallOptions:
        token = None if self._token is None else self._token()
        metadata = convert.to_metadata(tenant, token)
        return CallOptions(timeout=arguments.timeout(timeout), metadata=metadata)


def _named(tenant: object) -> str | None:
    """Returns the tenant's name as it is sent; None for the nameless one's."""
    return arguments.tenant(tenant, convert.TENANT_KEY) or None


def _channel_options(options: ConnectionOptions, is_encrypted: bool) -> list[tuple[str, object]]:
    # A queue can be long: notice a dead peer by pings, not by the absence of tokens. The interval
    # is the shortest that a gRPC server allows by default (5 minutes), or its ping strikes add up.
    chosen: list[tuple[str, object]] = [
        ("grpc.keepalive_time_ms", 300_000),
        ("grpc.max_receive_message_length", -1),
    ]
    if arguments.truth(options.get("retries", True), "retries"):
        chosen.append(("grpc.service_config", SERVICE_CONFIG))
        chosen.append(("grpc.per_rpc_retry_buffer_size", _RETRIED_BYTES))
    name = options.get("server_name")
    if name is not None:
        if not is_encrypted:
            arguments.refuse("server_name is for TLS", "server_name")
        checked = arguments.text(name, "server_name")
        chosen.append(("grpc.ssl_target_name_override", checked))
    given: Sequence[tuple[str, object]] = options.get("channel_options", ())
    return [*given, *chosen]  # gRPC takes the first of a name
