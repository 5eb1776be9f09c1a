"""Asks the event loop from other threads, for a bounded time.

Pages are served by threads, and what they tell is kept by the event loop, which may be late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

AnswerT = TypeVar("AnswerT")

PATIENCE_S = 2.0


class LoopSilent(Exception):
    """The event loop has not answered in time, or has ended."""


class LoopLine:
    """A line to one event loop, for any thread but its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patience_s: float = PATIENCE_S) -> None:
        self._loop = loop
        self._patience_s = patience_s

    def ask(self, question: Callable[[], Coroutine[Any, Any, AnswerT]]) -> AnswerT:
        """Runs what `question` returns on the event loop, and returns its result, or raises what it
        raises; LoopSilent where that takes longer than the patience, and then it is cancelled.
        """
        asked = question()
        try:
            future = asyncio.run_coroutine_threadsafe(asked, self._loop)
        except RuntimeError:  # it is closed
            asked.close()
            raise LoopSilent("the server is stopping") from None
        try:
            return future.result(self._patience_s)
        except TimeoutError:
            future.cancel()
            raise LoopSilent(f"no answer within {self._patience_s:g} s") from None
