"""A little real server in a thread of its own, so that a test can drive the generator itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from tests.client.little_server import LittleInference, serving

WAIT_S = 10.0


class LittleServer:
    """Serves from `start` until `stop`, which cuts every call off, as a crash would."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.address = ""

    def start(self) -> None:
        self.thread.start()
        self.servicer = self._call(self._make())
        self._context = serving(self.servicer)
        self.address = self._call(self._context.__aenter__())

    async def _make(self) -> LittleInference:
        return LittleInference()

    def stop(self) -> None:
        """May be called twice."""
        if self.thread.is_alive():
            self._call(self._context.__aexit__(None, None, None))
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(WAIT_S)
            self.loop.close()

    def next_end(self) -> str:
        """Waits until one more call is over; returns its request's id."""
        return str(self._call(self.servicer.ended.get()))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)


@pytest.fixture
def little() -> Iterator[LittleServer]:
    server = LittleServer()
    server.start()
    yield server
    server.stop()
