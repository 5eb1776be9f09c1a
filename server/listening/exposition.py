"""Serves an application over HTTP, with threads and connections that are bounded.

wsgiref's own server starts a thread for each connection, which waits for the request for ever. Here
few connections are open at a time, and the oldest gives way to a new one, so that a client that
says nothing, or says it slowly, keeps nobody else from reading. What is served is not known here:
an application is a function as PEP 3333 has it.
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
from wsgiref.types import WSGIApplication

MOST_CONNECTIONS = 16
SILENCE_S = 10.0  # after which a connection that says or takes nothing is closed
STOPS_WITHIN_S = 0.1


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S
    server_version, sys_version = "niyama", ""

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: scrapes are no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 4 * MOST_CONNECTIONS  # wait to be accepted

    def __init__(self, family: int, address: tuple[str, int], application: WSGIApplication) -> None:
        self.address_family = family
        self._open: deque[socket.socket] = deque()  # oldest first
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Binds, without asking a name server for this machine's name, which nobody needs."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        host, port, *_ = self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection in a thread. Where too many are open, the oldest gives way, and its
        thread is waited for: what it may be in the midst of takes a bounded time.
        """
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS:
                _hang_up(self._open.popleft())
            self._open.append(request)
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system starts no thread at the moment
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection, and makes room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

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
    """Serves an application, from threads of its own."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def serve(self, host: str, port: int) -> int:
        """Serves until `stop`. Returns the port, which matters for port 0. Raises OSError where the
        port is taken.
        """
        (family, *_, address), *_ = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        self._server = _Server(family, (str(address[0]), port), self._application)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(STOPS_WITHIN_S,), daemon=True
        )
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
