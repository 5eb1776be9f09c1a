"""Whether what listens can be reached from other machines, and whether that was meant.

On this machine alone nobody needs to be asked. Beyond it callers must be asked who they are, and
speak TLS, unless the operator has said that they need not.
"""

from __future__ import annotations

import socket

from server.config import ServerConfig
from server.listening.addresses import is_loopback

ANONYMOUS = (
    "can be reached from other machines, and callers would not be asked who they are: set"
    " tokens_file or tls_client_ca, or say allow_anonymous"
)
PLAINTEXT = (
    "can be reached from other machines, and callers' tokens would travel unencrypted: set"
    " tls_certificate and tls_key, or say allow_plaintext (behind a proxy that ends TLS)"
)


# What a proxy tells by of whom it passes on: who asks is somewhere else, though it is here.
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def exposed(config: ServerConfig) -> str:
    """Returns why the server must not listen where it is told to, without more being said; "" where
    it may.
    """
    if is_local(config.host):
        return ""
    if not _asks(config):
        return "" if config.allow_anonymous else f"{config.host!r} {ANONYMOUS}"
    if config.tls_certificate is None and not config.allow_plaintext:
        return f"{config.host!r} {PLAINTEXT}"
    return ""


def notes(config: ServerConfig) -> list[str]:
    """Returns what the operator is to be told at each start of what others can reach."""
    found = []
    if not is_local(config.host):
        if not _asks(config):
            found.append("whoever reaches the port may call as any tenant: allow_anonymous")
        if config.tls_certificate is None:
            found.append("what callers say and are told travels unencrypted: no tls_certificate")
    if config.metrics_port and not is_local(config.metrics_host):
        found.append(
            "the metrics port can be reached from other machines, unencrypted: whoever does reads"
            " loads and names, and the operator's token travels so if it is shown there"
        )
    return found


def is_local(host: str) -> bool:
    """Returns whether an address is one of this machine that no other can reach. A name is what it
    stands for now; one that stands for nothing is no local one.
    """
    bare = host.strip("[]")
    if not bare:
        return False  # all addresses
    try:
        found = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(is_loopback(str(address[0])) for *_, address in found)


def _asks(config: ServerConfig) -> bool:
    return config.tokens_file is not None or config.tls_client_ca is not None
