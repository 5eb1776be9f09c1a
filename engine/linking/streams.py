"""The events of requests, as their reader gets them; and what may go wrong with an engine.

An engine report wakes each stream that it concerns at most once, and only when somebody waits
there; a stream whose reader is slow piles its tokens up (at most `max_tokens` of them) and hands
them over together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.deciding.plan import Accepted, Finished, Relegated, Token
from engine.deciding.request import Request
from engine.deciding.sequence import FinishReason
from engine.messages import Failure

MOST_ATTEMPTS = 2  # one that ends every engine that has it must not go on for ever


@dataclass(frozen=True, slots=True)
class Restarted:
    """The engine was lost and the next one begins the request anew: its tokens so far are void."""


Item = Accepted | Relegated | Token | Finished | Restarted


class EngineError(Exception):
    """Root of what callers should catch.

    EngineError
     |- EngineLost       the engine is starting, was lost, or is stopped: try again
     |- EngineStartError it cannot start: the line says why
     |- DuplicateRequest a request of that id is in flight
     |- Unanswered       the engine has no answer; `failure` says why
    """


class EngineLost(EngineError):
    pass


class EngineStartError(EngineError):
    pass


class DuplicateRequest(EngineError):
    pass


class Unanswered(EngineError):
    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


class RequestStream:
    """The events of a group of requests submitted together, in order, each with its index.

    Given the requests, those that have not finished can be run again by another engine until the
    reader has taken a token; where it shows nothing before all have ended (`is_seen_whole`), until
    then.
    """

    __slots__ = (
        "_again",
        "_cancel",
        "_error",
        "_is_seen_whole",
        "_items",
        "_loop",
        "_open",
        "_waiter",
    )

    def __init__(
        self,
        ids: Sequence[str],
        cancel: Callable[[str, FinishReason], None],
        requests: Sequence[Request] = (),
        is_seen_whole: bool = False,
    ) -> None:
        self._open = dict(enumerate(ids))  # index -> id, of those that have not finished
        self._again: list[Request] | None = list(requests) or None  # by index
        self._is_seen_whole = is_seen_whole
        self._cancel = cancel
        self._items: list[tuple[int, Item]] = []
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether every request has finished and been handed over."""
        return not self._open and not self._items and self._error is None

    async def next(self) -> list[tuple[int, Item]]:
        """All that has come since the last call; waits for the first. Raises EngineError."""
        while not (items := self.take()):
            await self.arrival()
        return items

    def take(self) -> list[tuple[int, Item]]:
        """All that has come since the last call, perhaps nothing. Raises EngineError."""
        items = self._items
        if items:
            self._items = []
            if self._again is not None and not self._is_seen_whole:
                self._forget_if_seen(items)
        elif self._error is not None:
            raise self._error
        return items

    def arrival(self) -> asyncio.Future[None]:
        """Done when `take` has something to tell that it has not told yet. For one reader."""
        waiter = self._waiter = self._loop.create_future()
        if self._items or self._error is not None:
            self._wake(waiter)
        return waiter

    def cancel(self, index: int, reason: FinishReason) -> None:
        """Asks the engine to end one request; its `Finished` still comes, with this reason."""
        if index in self._open:
            self._cancel(self._open[index], reason)

    def close(self, reason: FinishReason) -> None:
        """Cancels what has not finished. For the reader's `finally`: nobody reads on."""
        for request_id in self._open.values():
            self._cancel(request_id, reason)
        self._items.clear()
        self._again = None

    def restart(self) -> list[Request]:
        """The engine is lost: what another one is to be given, now with one attempt more. Nothing,
        and nothing changes, where somebody has seen a token or has had the attempts there are.
        """
        if self._again is None or not self._open:
            return []
        again = [self._again[i] for i in self._open]
        if any(request.attempt >= MOST_ATTEMPTS for request in again):
            return []
        for index in self._open:
            known = self._again[index]
            self._again[index] = replace(known, attempt=known.attempt + 1)
        self._items = [
            (index, item)
            for index, item in self._items
            if index not in self._open or isinstance(item, Accepted)
        ]
        for index in self._open:
            self.put(index, Restarted())
        return [self._again[i] for i in self._open]

    def abandon(self, error: Exception, reason: FinishReason) -> None:
        """Cancels what has not finished; the reader is told of the error instead."""
        self.close(reason)
        self._open.clear()
        self._fail(error)

    def put(self, index: int, item: Item) -> None:
        if self._error is not None:  # the reader is not to hear of what comes after
            return
        self._items.append((index, item))
        if self._waiter is not None:
            self._wake(self._waiter)

    def end(self, index: int, finished: Finished) -> None:
        self._open.pop(index, None)
        self.put(index, finished)

    def refuse(self, index: int, error: EngineError) -> None:
        """The engine did not take that request in, and the whole group fails with it."""
        self._open.pop(index, None)
        self._fail(error)

    def fail(self, error: EngineLost) -> None:
        """No request of the group has an engine any more."""
        self._open.clear()
        self._fail(error)

    def _forget_if_seen(self, items: list[tuple[int, Item]]) -> None:
        if any(type(item) is Token for _, item in items):
            self._again = None

    def _fail(self, error: Exception) -> None:
        """The first error is what it failed with, whatever comes after."""
        if self._error is None:
            self._error = error
        if self._waiter is not None:
            self._wake(self._waiter)

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)
