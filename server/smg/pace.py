"""A pace for work that the event loop does for callers who may ask for it as often as they like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager


class Pace:
    """Has one piece of work done after the other, in the order in which they were asked for, and
    after each rests so long that work takes no more than a share of the time.
    """

    def __init__(
        self,
        share: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`share` is above 0 and at most 1."""
        self._rest = 1 / share - 1  # after a second of work
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._rested_at = float("-inf")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Opens a block for one piece, once it is its turn. Who leaves before spares nobody the
        rest.
        """
        async with self._turn:
            if (rest_s := self._rested_at - self._clock()) > 0:
                await self._sleep(rest_s)
            yield

    @contextmanager
    def work(self) -> Iterator[None]:
        """Opens the block that counts as work."""
        begun = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            self._rested_at = now + self._rest * (now - begun)
