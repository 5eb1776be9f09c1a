"""Ends calls whose client does not take what it is sent.

A write waits while the client's window is full, for ever if the client so wishes, and the call
holds all that it has until then. So each call is looked at once a second, and one that has waited
with the same message for longer than the write timeout is ended. gRPC has no means to end such a
stream on its connection, so a connection on which all calls have been ended is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import os
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import grpc

SWEEP_S = 1.0
DISPLACED_S = 2.0  # of a call that gave its place and is not over: there may be only so many


class Delivery:
    """What one call sends. `pending` is the message that is being written, or None. Once the call's
    handler has ended, it stands for whatever gRPC still has to send.
    """

    __slots__ = ("_give_up", "_seen", "_since", "_task", "patience_s", "peer", "pending")

    def __init__(self, peer: str, give_up: Callable[[], None]) -> None:
        self.peer = peer
        self.pending: object = None
        self.patience_s = math.inf  # where it is less than the write timeout
        self._give_up = give_up
        self._task = asyncio.current_task()
        self._seen: object = None
        self._since = 0.0

    def waits_since(self, now: float) -> float:
        """Returns the instant from which the same message has been seen to wait; `now` if none
        is.
        """
        if self.pending is None or self.pending is not self._seen:
            self._seen, self._since = self.pending, now
        return now if self.pending is None else self._since

    def end(self) -> None:
        """Cancels the call's handler."""
        self._give_up()
        if self._task is not None:
            self._task.cancel()


class Deliveries:
    """The deliveries of one front end, which is to `run` this for as long as it serves."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._open: set[Delivery] = set()
        self._ended_peers: set[str] = set()  # of connections with streams that were ended

    def begin(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        give_up: Callable[[], None] = lambda: None,
    ) -> Delivery:
        """Returns a delivery for the running task's call, which is looked at until gRPC is done
        with it. `give_up()` is called before the delivery is ended.
        """
        delivery = Delivery(context.peer(), give_up)
        self._open.add(delivery)
        context.add_done_callback(lambda _: self._open.discard(delivery))  # type: ignore[arg-type]
        return delivery

    async def run(self) -> None:
        """Looks at all deliveries again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_S, self.timeout_s / 2))
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Ends the calls that have waited for too long at `now`, and closes connections on which no
        others are left.
        """
        for delivery in list(self._open):
            patience_s = min(self.timeout_s, delivery.patience_s)
            if now - delivery.waits_since(now) >= patience_s:
                self._open.discard(delivery)
                self._ended_peers.add(delivery.peer)
                delivery.end()
        for peer in self._ended_peers - {delivery.peer for delivery in self._open}:
            with contextlib.suppress(OSError):  # no descriptor is free: once more at the next sweep
                hang_up(peer)
                self._ended_peers.discard(peer)


def hang_up(peer: str) -> None:
    """Closes this process's connection with a peer, named as gRPC names it. No other descriptor is
    touched. Raises OSError where no descriptor is free, which looking for it takes.
    """
    wanted = address_of(peer)
    for name in os.listdir("/proc/self/fd") if wanted else ():
        with contextlib.suppress(OSError), _socket(int(name)) as connection:
            host, port, *_ = connection.getpeername()
            if (_plain(host), port) == wanted:
                connection.shutdown(socket.SHUT_RDWR)


def _socket(fd: int) -> socket.socket:
    """Returns the IP socket behind a descriptor, by a copy of it. Raises OSError where there is
    none.
    """
    duplicate = os.dup(fd)
    try:
        connection = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        return connection
    connection.close()
    raise OSError("no connection over IP")


def address_of(peer: str) -> tuple[str, int] | None:
    """Returns host and port of "ipv4:127.0.0.1:50051" or "ipv6:%5B::1%5D:50051"; None for a peer
    that is not connected over IP.
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    host, _, port = rest.rpartition(":")
    return _plain(host.strip("[]")), int(port)


def _plain(host: str) -> str:
    """Returns the address in one form: a socket for both kinds of IP names an IPv4 address as IPv6
    does.
    """
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
