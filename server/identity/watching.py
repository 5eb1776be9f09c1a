"""Watches files, so that a certificate, a token or a configuration that is renewed counts.

A file may be seen half written, or a certificate before its key. So what has changed is read once
it has been the same at two looks; while it is no good it is tried at every look, and told once.
Files are looked at and not subscribed to: volumes of the network and of Kubernetes tell of no
change.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog

from server.identity.certificates import Tls, day

log = structlog.get_logger()

LOOK_S = 5.0
NEAR_S = 14 * 86400.0  # before a certificate ends, in which the operator is told
TOLD_AGAIN_S = 86400.0

State = tuple[tuple[int, ...], ...]


class Watch:
    """`paths` returns the files, and `read` reads them anew and has them hold; it raises
    ValueError.
    """

    def __init__(
        self, paths: Callable[[], Iterable[Path]], read: Callable[[], Awaitable[None]]
    ) -> None:
        self._paths = paths
        self._read = read
        self._told = ""  # of what is no good now

    async def run(self) -> None:
        """Watches until it is cancelled."""
        taken = seen = await asyncio.to_thread(self._state)
        while True:
            await asyncio.sleep(LOOK_S)
            before, seen = seen, await asyncio.to_thread(self._state)
            if seen != before or (seen == taken and not self._told):
                continue
            try:
                await self._read()
            except ValueError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    log.error("identity not read", reason=self._told)
            else:
                taken, self._told = seen, ""

    def _state(self) -> State:
        return tuple(map(_state, self._paths()))


class Expiry:
    """Tells the operator that a certificate is about to end, or has ended, once a day."""

    def __init__(self) -> None:
        self._of: Tls | None = None
        self._told_at = 0.0

    def tell(self, tls: Tls | None, now: float) -> None:
        """Looks at the certificate that holds at `now`, in Unix time."""
        if tls is None or (tls is self._of and now - self._told_at < TOLD_AGAIN_S):
            return
        self._of, self._told_at = tls, now
        if now >= tls.expires_at:
            log.error("certificate has expired", since=day(tls.expires_at))
        elif now >= tls.expires_at - NEAR_S:
            log.warning("certificate expires soon", at=day(tls.expires_at))

    async def run(self, now_held: Callable[[], Tls | None]) -> None:
        """Tells, until it is cancelled."""
        while True:
            self.tell(now_held(), time.time())
            await asyncio.sleep(LOOK_S)


def _state(path: Path) -> tuple[int, ...]:
    """Returns what tells a file from what it was: none of it where there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode
