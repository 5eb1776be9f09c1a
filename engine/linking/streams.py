"""Streams: the events of requests, as their readers get them.

An engine report wakes each stream that it concerns at most once, and only when somebody waits
there; a stream whose reader is slow piles its tokens up (at most `max_tokens` of them) and hands
them over together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, KeysView, Sequence
from dataclasses import dataclass, replace

from engine.deciding.plan import Accepted, Finished, Relegated, Token
from engine.deciding.request import Request, named_by
from engine.deciding.sequence import FinishReason
from engine.linking.errors import DuplicateRequest, EngineError, EngineLost
from engine.messages import Report, token_of

MOST_ATTEMPTS = 2  # one that ends every engine that has it must not go on for ever


@dataclass(frozen=True, slots=True)
class Restarted:
    """The engine was lost and the next one begins the request anew: its tokens so far are void."""


Item = Accepted | Relegated | Token | Finished | Restarted


class RequestStream:
    """Hands its reader the events of requests that were submitted together, in order, each with the
    index of its request.

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
        """Returns whether every request has finished, and the reader has been told."""
        return not self._open and not self._items and self._error is None

    async def next(self) -> list[tuple[int, Item]]:
        """Waits for what comes next, and returns it all. Raises EngineError."""
        while not (items := self.take()):
            await self.arrival()
        return items

    def take(self) -> list[tuple[int, Item]]:
        """Returns what has come since the last call, perhaps nothing. Raises EngineError."""
        items = self._items
        if items:
            self._items = []
            if self._again is not None and not self._is_seen_whole:
                self._forget_if_seen(items)
        elif self._error is not None:
            raise self._error
        return items

    def arrival(self) -> asyncio.Future[None]:
        """Returns a future that is done when `take` has something new to tell. For one reader."""
        waiter = self._waiter = self._loop.create_future()
        if self._items or self._error is not None:
            self._wake(waiter)
        return waiter

    def cancel(self, index: int, reason: FinishReason) -> None:
        """Asks the engine to end one request; its `Finished` still comes, with this reason."""
        if index in self._open:
            self._cancel(self._open[index], reason)

    def close(self, reason: FinishReason) -> None:
        """Cancels what has not finished. It is for the reader's `finally`: nobody reads on."""
        for request_id in self._open.values():
            self._cancel(request_id, reason)
        self._items.clear()
        self._again = None

    def restart(self) -> list[Request]:
        """The engine is lost: returns what another one is to be given, now with one attempt more.
        That is nothing, and nothing changes, where somebody has seen a token or the requests have
        had all the attempts there are.
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
        """Fails the whole group: the engine did not take that request in."""
        self._open.pop(index, None)
        self._fail(error)

    def fail(self, error: EngineLost) -> None:
        """Fails the whole group: none of its requests has an engine any more."""
        self._open.clear()
        self._fail(error)

    def _forget_if_seen(self, items: list[tuple[int, Item]]) -> None:
        if any(type(item) is Token for _, item in items):
            self._again = None

    def _fail(self, error: Exception) -> None:
        """Tells the reader; what it failed with is the first error, whatever comes after."""
        if self._error is None:
            self._error = error
        if self._waiter is not None:
            self._wake(self._waiter)

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)


class Streams:
    """Finds the streams of one front end by the ids of their requests, until those have ended."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[RequestStream, int]] = {}
        # Without those that the engine has been told to end: they are gone before it looks at
        # anything submitted after.
        self.in_flight: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._found

    @property
    def ids(self) -> KeysView[str]:
        return self._found.keys()

    def open(
        self,
        requests: Sequence[Request],
        cancel: Callable[[str, FinishReason], None],
        is_seen_whole: bool,
    ) -> RequestStream:
        """Makes one stream of them all. Raises DuplicateRequest, and then nothing has changed."""
        for request in requests:
            if request.id in self._found:
                raise DuplicateRequest(request.name)
        ids = [request.id for request in requests]
        stream = RequestStream(ids, cancel, requests, is_seen_whole)
        for index, request_id in enumerate(ids):
            self._found[request_id] = (stream, index)
            self.in_flight.add(request_id)
        return stream

    def drop(self, request_id: str) -> None:
        """Forgets a request of which nothing will come any more."""
        del self._found[request_id]
        self.in_flight.discard(request_id)

    def deliver(self, report: Report) -> None:
        """Puts every event of the report into its stream."""
        streams, find = self._found, self._found.get
        for event in report.news:
            if found := find(event.request_id):
                found[0].put(found[1], event)
        for sampled in report.sampled:
            if found := find(sampled[0]):
                found[0].put(found[1], token_of(sampled))
        for finished in report.finished:
            self.in_flight.discard(finished.request_id)
            if found := streams.pop(finished.request_id, None):
                found[0].end(found[1], finished)
        for request_id in report.refused:
            self.in_flight.discard(request_id)
            if found := streams.pop(request_id, None):
                found[0].refuse(found[1], DuplicateRequest(named_by(request_id)[1]))

    def restart(self) -> list[Request]:
        """The engine is lost: returns what another one is to be given. A stream of which the engine
        was told to end a request is not begun again.
        """
        groups: dict[RequestStream, list[str]] = {}
        for request_id, (stream, _) in self._found.items():
            groups.setdefault(stream, []).append(request_id)
        return [
            request
            for stream, ids in groups.items()
            if self.in_flight.issuperset(ids)
            for request in stream.restart()
        ]

    def fail(self, ids: Iterable[str], why: str) -> None:
        """Fails the streams of these requests with EngineLost."""
        for request_id in list(ids):
            stream, _ = self._found.pop(request_id)
            self.in_flight.discard(request_id)
            stream.fail(EngineLost(why))
