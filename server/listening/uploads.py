"""Bounds the messages that are on their way to this front end.

A call begins with its headers, and its message may come in drips, or never. gRPC keeps what has
come of each and takes the rest, up to the most bytes of a message for every stream of every
connection, and no queue counts such a call, since it asks for nothing yet. So each message has a
time in which it must come. While more are on their way than memory is meant for, those that take
long are ended: first those of the connections that have the most of them, the oldest first.
A message that comes with its headers, as nearly all do, is never one of these.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any

import grpc

from server import errors
from server.errors import CallError

MOST_BYTES = 256 << 20  # of messages on their way, were each as long as may be
LEAST = 16  # messages
SWEEP_S = 0.1
MOST_AT_ONCE = 256  # are ended: it takes the event loop a tenth of a second
SLOW_S = 0.5  # after which a message is slow


class Upload:
    """A message on its way, which the running task awaits within `timeout`."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.since = time.monotonic()
        self.timeout = asyncio.timeout(None)
        self.error: CallError | None = None  # what it was ended with

    def end(self, error: CallError) -> None:
        """Ends the waiting task's wait, with this error."""
        if self.error is None:
            self.error = error
            self.timeout.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """The messages on their way to one front end, which is to `run` this while it serves."""

    def __init__(self, timeout_s: float, max_message_bytes: int) -> None:
        self.timeout_s = timeout_s
        self._most = max(LEAST, MOST_BYTES // max_message_bytes)
        self._open: dict[Upload, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._open)

    async def receive(self, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """Returns the only message of a call. Raises CallError where it does not come."""
        raw = await self._next(context)
        if raw is None:
            # Of a client that left, or never meant to send any: gRPC does not say which.
            raise errors.no_message()
        return raw

    async def each(self, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        """Yields the messages of a call that may send many; each has the whole time to come.

        Raises CallError where one does not come.
        """
        while (raw := await self._next(context)) is not None:
            yield raw

    async def run(self) -> None:
        """Ends what takes too long, again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_S, self.timeout_s / 2))
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Ends the messages that have taken too long at `now`."""
        for upload in islice(self._open, MOST_AT_ONCE):
            if now - upload.since < self.timeout_s:
                break
            upload.end(errors.not_received(self.timeout_s))
        if (num_beyond := len(self._open) - self._most) > 0:
            for upload in self._slow(now)[: min(num_beyond, MOST_AT_ONCE)]:
                upload.end(errors.too_slow(self._most))

    def _slow(self, now: float) -> list[Upload]:
        """Returns the messages that take long, those that are to be ended first in front."""
        slow = [upload for upload in self._open if now - upload.since >= SLOW_S]
        num_of_peer = Counter(upload.peer for upload in slow)
        return sorted(slow, key=lambda upload: -num_of_peer[upload.peer])

    async def _next(self, context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
        """Returns the call's next message; None when the client has sent its last."""
        upload = Upload(context.peer())
        self._open[upload] = None
        try:
            async with upload.timeout:
                raw = await context.read()
        except TimeoutError:
            assert upload.error is not None
            raise upload.error from None
        finally:
            del self._open[upload]
        return raw if isinstance(raw, bytes) else None  # grpc.aio.EOF
