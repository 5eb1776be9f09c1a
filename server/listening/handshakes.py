"""TLS of the gRPC port, with a certificate that may be replaced while connections are open.

gRPC asks before each handshake whether there is another; connections that have made theirs go on.
It can ask every client for a certificate or none, and no client only perhaps.
"""

from __future__ import annotations

from typing import Any

import grpc

from server.identity.certificates import Tls


class Handshakes:
    """What the handshakes of one port are made with."""

    def __init__(self, tls: Tls) -> None:
        self._now = self._given = tls

    def take(self, tls: Tls) -> None:
        """Has the handshakes to come made with another certificate, key and authorities."""
        self._now = tls

    def credentials(self) -> grpc.ServerCredentials:
        """Returns what a port is to be opened with."""
        asks_clients = self._now.client_ca is not None
        another: Any = self._another  # None says that there is none, which its stubs do not know
        return grpc.dynamic_ssl_server_credentials(_configuration(self._now), another, asks_clients)

    def _another(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what has been taken since it was asked last, None where nothing has. gRPC's
        threads call it, one at a time.
        """
        now = self._now
        if now is self._given:
            return None
        self._given = now
        return _configuration(now)


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_ca)
