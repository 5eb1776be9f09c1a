"""Servers that ask who calls, before an engine that computes nothing, and who calls them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from engine.config import EngineConfig
from server.app import Server
from server.config import ServerConfig
from server.identity import tokens
from server.startup import read_configuration
from tests.engine.driving.engines import NULL
from tests.server.conftest import Stubs, within
from tests.server.identity.authority import Authority, Issued

OPERATOR = "the-word-of-the-operator"
RIGHTS = """
default_tier = "gold"
deadline_is_target = true
[tiers.gold]
ttft_s = 0.5
tbt_s = 0.05
importance = "high"
[tiers.silver]
ttlt_s = 10
[tiers.bronze]
ttlt_s = 60
importance = "low"
[applications.golden]
tier = "gold"
[applications.own]
ttlt_s = 0.5
importance = "high"
[applications.hurried]
tier = "silver"
deadline_is_target = true
[tenants.acme]
certificates = ["spiffe://example.org/acme/*"]
[tenants.zen]
certificates = ["CN=zen"]
[tenants.free]
tiers = ["bronze", "silver"]
importance = "normal"
[tenants.edge]
speaks_for_others = true
certificates = ["edge.example.org"]
[tenants.ops]
admin = true
"""


class Walled:
    """A server that asks who calls; `tokens` are those of its tenants, by their names."""

    def __init__(self, server: Server, authority: Authority, tokens: dict[str, str]) -> None:
        self.server, self.tokens = server, tokens
        self.authority = authority
        self.address = f"localhost:{server.port}"

    def channel(self, client: Issued | None = None) -> grpc.aio.Channel:
        """A connection over TLS, with a client's certificate where one is given."""
        own = (None, None) if client is None else (client.key, client.certificate)
        credentials = grpc.ssl_channel_credentials(self.authority.certificate, *own)
        # Its own connection: else gRPC may lend it another channel's.
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(self.address, credentials, options)

    def shows(self, who: str) -> tuple[tuple[str, str], ...]:
        """What a call of that tenant shows."""
        return (("authorization", f"Bearer {self.tokens[who]}"),)


def write(path: Path, text: str) -> Path:
    """Writes a file for this user alone."""
    path.write_text(text)
    path.chmod(0o600)
    return path


def lines(tenants: Iterable[str], rest: str = "") -> tuple[dict[str, str], str]:
    """Tokens by tenant, and the file that knows them; `rest` goes into each line."""
    made = {tenant: tokens.make(tenant) for tenant in tenants}
    text = "".join(line.replace(" }", f"{rest} }}") + "\n" for _, line in made.values())
    return {tenant: token for tenant, (token, _) in made.items()}, text


@contextlib.asynccontextmanager
async def walled(
    folder: Path, authority: Authority, *, is_mutual: bool = False, **config: Any
) -> AsyncIterator[Walled]:
    """Such a server for the length of the block."""
    certificate, key = authority.issue().write(folder, "server")
    known, text = lines(["acme", "zen", "free", "edge", "ops", "unnamed"])
    over, old = lines(["late"], ", expires = 2020-01-01")
    settings: dict[str, Any] = {
        "port": 0,
        "drain_s": 0.0,
        "config": write(folder / "niyama.toml", RIGHTS),
        "tls_certificate": certificate,
        "tls_key": key,
        "tokens_file": write(folder / "tokens.toml", text + old),
        "admin_token_file": write(folder / "operator", OPERATOR),
        "engine": EngineConfig(factory=NULL),
    }
    if is_mutual:
        settings["tls_client_ca"] = write(folder / "ca.pem", authority.certificate.decode())
    complete = ServerConfig(**(settings | config))
    server = Server(complete, read_configuration(complete))
    try:
        await within(server.start())
        yield Walled(server, authority, known | over | {"operator": OPERATOR})
    finally:
        await within(server.stop())


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def asking(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> AsyncIterator[Walled]:
    """Knows callers by their tokens."""
    async with walled(tmp_path_factory.mktemp("asking"), authority) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mutual(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> AsyncIterator[Walled]:
    """Knows callers by their certificates or their tokens."""
    async with walled(tmp_path_factory.mktemp("mutual"), authority, is_mutual=True) as server:
        yield server


def stubs(channel: grpc.aio.Channel) -> Stubs:
    return Stubs(channel)
