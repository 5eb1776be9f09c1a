"""The addresses of a service: whether they are free, who holds them, how they are named, whether
another machine can reach them.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from server.config import ServerConfig, StartError
from server.listening.exposition import Exposition


def listen_metrics(exposition: Exposition, config: ServerConfig) -> None:
    """Serves metrics at the port for them, if there is one. Raises StartError."""
    try:
        if config.metrics_port:
            exposition.serve(_bare(config.metrics_host), config.metrics_port)
    except OSError as error:
        raise _cannot_listen(config.metrics_host, config.metrics_port, error) from error


def reserve(host: str, port: int) -> socket.socket:
    """Returns a socket that holds the port for several front ends to share; it takes no
    connections. Raises StartError where another program has just taken the port.
    """
    family, kind, protocol, _, address = _addresses(host, port)[0]
    holder = socket.socket(family, kind, protocol)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        holder.bind(address)
    except OSError as error:
        holder.close()
        raise _cannot_listen(host, port, error) from error
    return holder


def refuse_taken(host: str, port: int) -> None:
    """Raises StartError where no address of the host can be bound, as gRPC does with a line of its
    own on stderr and without the reason.
    """
    refusal: OSError | None = None
    try:
        addresses = _addresses(host, port)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return
        except OSError as error:
            refusal = error
    if refusal is not None:
        raise _cannot_listen(host, port, refusal)


def host_port(host: str, port: int) -> str:
    """Returns the address as clients name it: an IPv6 one in brackets, with which or without it may
    be given.
    """
    bare = _bare(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def is_loopback(text: str) -> bool:
    """Returns whether a text is an IP address that no other machine can reach, be it an IPv4 one as
    IPv6 writes it; False for one that is no IP address.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    return list(socket.getaddrinfo(_bare(host) or None, port, type=socket.SOCK_STREAM))


def _bare(host: str) -> str:
    return host.strip("[]")


def _cannot_listen(host: str, port: int, error: OSError) -> StartError:
    reason = "address in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return StartError(f"cannot listen on {host_port(host, port)}: {reason}")
