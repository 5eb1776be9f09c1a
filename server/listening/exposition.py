"""Exposes metrics over HTTP, at /metrics.

prometheus_client's own server starts a thread for each connection, which waits for the request for
ever. Here few connections are open at a time, and the oldest gives way to a new one, so that a
client that says nothing, or says it slowly, keeps nobody from reading.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections import deque
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

MOST_CONNECTIONS = 4
SILENCE_S = 10.0  # after which a connection that says or takes nothing is closed


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: scrapes are no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, family: int, address: tuple[str, int], registry: CollectorRegistry) -> None:
        self.address_family = family
        self._open: deque[socket.socket] = deque()  # oldest first
        self._lock = threading.Lock()
        super().__init__(address, _Handler)
        self.set_app(make_wsgi_app(registry))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection in a thread. Where too many are open, the oldest gives way."""
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS:
                _hang_up(self._open.popleft())
            self._open.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection that has been served."""
        with self._lock, contextlib.suppress(ValueError):  # it had to give way
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports an error, unless the client left in the midst of it, or had to."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Exposition:
    """Serves the metrics of a registry, from threads of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def serve(self, host: str, port: int) -> int:
        """Serves until `stop`. Returns the port, which matters for port 0. Raises OSError where the
        port is taken.
        """
        (family, *_, address), *_ = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        self._server = _Server(family, (str(address[0]), port), self._registry)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self._server.server_port

    def stop(self) -> None:
        """Stops serving, and waits for the thread; does nothing where it does not serve."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None


def _hang_up(connection: socket.socket) -> None:
    """Shuts the connection down: its thread then finds that nothing more comes, and closes it."""
    with contextlib.suppress(OSError):  # the client was quicker
        connection.shutdown(socket.SHUT_RDWR)
