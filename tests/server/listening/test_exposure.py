"""What can be reached from other machines is said to be meant, or is not listened on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from server.app import Server
from server.config import ServerConfig, StartError
from server.listening.exposure import exposed, is_local, notes
from tests.engine.driving.engines import NULL

TLS = {"tls_certificate": Path("c"), "tls_key": Path("k")}
TOKENS = {"tokens_file": Path("t")}


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("[::]", False),
        ("", False),
        ("192.0.2.7", False),
        ("::ffff:192.0.2.7", False),
        ("fe80::1", False),
        ("no-such-name.invalid", False),
    ],
)
def test_an_address_is_local_if_no_other_machine_can_reach_it(host: str, local: bool) -> None:
    assert is_local(host) == local
    assert exposed(ServerConfig(host=host)) == "" or not local


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "allow_anonymous"),
        (TLS, "allow_anonymous"),  # encrypted, and anybody
        ({"allow_plaintext": True}, "allow_anonymous"),
        (TOKENS, "allow_plaintext"),
        (TOKENS | {"allow_anonymous": True}, "allow_plaintext"),
        ({"allow_anonymous": True}, ""),
        (TOKENS | {"allow_plaintext": True}, ""),
        (TOKENS | TLS, ""),
        (TLS | {"tls_client_ca": Path("a")}, ""),
    ],
)
def test_beyond_this_machine_callers_are_asked_and_heard_by_nobody_else(
    said: dict[str, Any], why: str
) -> None:
    told = exposed(ServerConfig(host="0.0.0.0", **said))
    assert why in told
    assert bool(told) == bool(why)
    assert exposed(ServerConfig(**said)) == ""


async def test_a_server_that_was_not_meant_to_be_reached_does_not_start() -> None:
    server = Server(ServerConfig(host="0.0.0.0", port=0, engine=EngineConfig(factory=NULL)))
    with pytest.raises(StartError, match=r"--host '0\.0\.0\.0' can be reached from other"):
        await server.start()


def test_what_others_can_reach_is_told_at_each_start() -> None:
    assert notes(ServerConfig(metrics_port=9464)) == []
    (anybody, unencrypted) = notes(ServerConfig(host="0.0.0.0", allow_anonymous=True))
    assert "as any tenant" in anybody
    assert "unencrypted" in unencrypted
    assert notes(ServerConfig(host="0.0.0.0", **TOKENS, **TLS)) == []
    (metrics,) = notes(ServerConfig(metrics_port=9464, metrics_host="0.0.0.0"))
    assert "metrics port" in metrics
    assert notes(ServerConfig(metrics_host="0.0.0.0")) == []
