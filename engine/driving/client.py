"""The asyncio side of the pipe: submit, read a request's events, cancel, ask, recover.

One engine report wakes each stream that it concerns at most once, and only when somebody waits
there; a stream whose reader is slow piles its tokens up (at most `max_tokens` of them) and hands
them over together. Nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from engine.deciding.plan import Accepted, Finished, Relegated, Token
from engine.deciding.request import Request
from engine.deciding.sequence import FinishReason
from engine.driving.config import EngineConfig
from engine.driving.messages import (
    Call,
    Cancel,
    Command,
    EngineInfo,
    Failed,
    Failure,
    Ready,
    Report,
    Submit,
    Unpacker,
    pack,
    token_of,
)
from engine.driving.process import EngineProcess

FIRST_DELAY_S = 0.1  # before a lost engine is started again; doubled for each quick loss
LONGEST_DELAY_S = 30.0
STABLE_AFTER_S = 10.0  # an engine that lived this long is not one that fails at once
EXIT_PATIENCE_S = 5.0

Item = Accepted | Relegated | Token | Finished


class EngineError(Exception):
    """Root of what callers should catch.

    EngineError
     |- EngineLost       the engine is starting, was lost, or is stopped: try again
     |- EngineStartError it cannot start: the line says why
     |- DuplicateRequest a request of that id is in flight
     |- CallFailed       the engine has no answer; `failure` says why
    """


class EngineLost(EngineError):
    pass


class EngineStartError(EngineError):
    pass


class DuplicateRequest(EngineError):
    pass


class CallFailed(EngineError):
    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


class RequestStream:
    """The events of a group of requests submitted together, in order, each with its index."""

    __slots__ = ("_cancel", "_error", "_items", "_loop", "_open", "_waiter")

    def __init__(self, ids: Sequence[str], cancel: Callable[[str, FinishReason], None]) -> None:
        self._open = dict(enumerate(ids))  # index -> id, of those that have not finished
        self._cancel = cancel
        self._items: list[tuple[int, Item]] = []
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._error: EngineLost | None = None

    @property
    def is_done(self) -> bool:
        """Whether every request has finished and been handed over."""
        return not self._open and not self._items and self._error is None

    async def next(self) -> list[tuple[int, Item]]:
        """All that has come since the last call; waits for the first. Raises EngineLost."""
        while not (items := self.take()):
            await self.arrival()
        return items

    def take(self) -> list[tuple[int, Item]]:
        """All that has come since the last call, perhaps nothing. Raises EngineLost."""
        items = self._items
        if items:
            self._items = []
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

    def put(self, index: int, item: Item) -> None:
        self._items.append((index, item))
        if self._waiter is not None:
            self._wake(self._waiter)

    def end(self, index: int, finished: Finished) -> None:
        self._open.pop(index, None)
        self.put(index, finished)

    def fail(self, error: EngineLost) -> None:
        self._open.clear()
        self._error = error
        if self._waiter is not None:
            self._wake(self._waiter)

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)


class _Wire(asyncio.Protocol):
    """Frames in, frames out; commands of one turn of the event loop leave in one write."""

    def __init__(self, receive: Callable[[Any], None], on_closed: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._on_closed = on_closed
        self._unpacker = Unpacker()
        self._outbox: list[Command] = []
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, which is one

    def data_received(self, data: bytes) -> None:
        for message in self._unpacker.feed(data):
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._on_closed()

    def post(self, command: Command) -> None:
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(command)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(outbox))

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()


class EngineClient:
    """Owns an engine process: starts it, talks to it, starts it again when it is lost.

    `on_lost(line)` and `on_ready(info)` are told of each later loss and recovery, `on_failed` of an
    engine that reports why it cannot go on, and `on_notice(line)` of what belongs in the log. An
    engine that has work and gives no sign of life for `config.patience_s` is killed, hence lost.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_ready: Callable[[EngineInfo], None] = lambda info: None,
        on_lost: Callable[[str], None] = lambda line: None,
        on_failed: Callable[[Failed], None] = lambda failed: None,
        on_notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._config = config
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_failed = on_failed
        self._on_notice = on_notice
        self._streams: dict[str, tuple[RequestStream, int]] = {}
        # Id to tenant, without those that the engine has been told to end: they are gone before it
        # looks at anything submitted after.
        self._in_flight: dict[str, str] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count(1)
        self._process: EngineProcess | None = None
        self._wire: _Wire | None = None
        self._first: asyncio.Future[Ready | Failed | None] | None = None
        self._tasks: list[asyncio.Task[None]] = []  # while the engine is kept alive
        self._started_at = 0.0
        self._heard_at = 0.0  # last sign of life, or the moment from which one is due
        self.info: EngineInfo | None = None  # of the engine that serves now; None while none does

    async def start(self) -> EngineInfo:
        """Returns when the engine can serve. Raises EngineStartError when it cannot."""
        info = await self._launch()
        self._tasks = [
            asyncio.create_task(self._supervise()),
            asyncio.create_task(self._watch()),
        ]
        return info

    async def stop(self) -> None:
        """Ends the engine process; streams still open fail with EngineLost."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self.info is None:  # it is still loading, and looks at the pipe only when it is done
            await asyncio.to_thread(self.kill)
        self._fail_all("the server is stopping")
        await self._end_process()

    def kill(self) -> None:
        """Ends the engine process from any state and waits for its end, which blocks: for a front
        end that leaves at once, and for threads.
        """
        if self._process is not None:
            self._process.kill()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def num_in_flight(self) -> int:
        """Requests that the engine has neither finished nor been told to end."""
        return len(self._in_flight)

    def in_flight_by_tenant(self) -> Counter[str]:
        """The same, for each tenant that has any."""
        return Counter(self._in_flight.values())

    def has(self, request_id: str) -> bool:
        return request_id in self._streams

    def submit(self, requests: Sequence[Request]) -> RequestStream:
        """All or, raising EngineLost or DuplicateRequest, none of them."""
        wire = self._serving_wire()
        for request in requests:
            if request.id in self._streams:
                raise DuplicateRequest(request.id)
        self._expect_life()
        stream = RequestStream([r.id for r in requests], self.cancel)
        for index, request in enumerate(requests):
            self._streams[request.id] = (stream, index)
            self._in_flight[request.id] = request.tenant
            wire.post(Submit(request))
        return stream

    def cancel(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self._streams and self._wire is not None:
            self._in_flight.pop(request_id, None)
            self._wire.post(Cancel(request_id, reason))

    async def call(self, name: str, **arguments: Any) -> Any:
        """Asks the engine loop's `name`. Raises EngineLost or CallFailed."""
        wire = self._serving_wire()
        call_id = next(self._call_ids)
        future = asyncio.get_running_loop().create_future()
        self._expect_life()
        self._calls[call_id] = future
        try:
            wire.post(Call(call_id, name, arguments))
            return await future
        finally:
            self._calls.pop(call_id, None)

    def _expect_life(self) -> None:
        """To be called before work is added: an idle engine is silent, and may be."""
        if not self._streams and not self._calls:
            self._heard_at = time.monotonic()

    async def _watch(self) -> None:
        """Kills an engine that has work and hangs; the supervisor then starts another."""
        patience_s = self._config.patience_s
        while True:
            await asyncio.sleep(patience_s / 4)
            is_busy = self.info is not None and (self._streams or self._calls)
            if is_busy and time.monotonic() - self._heard_at > patience_s:
                self._on_notice(f"no sign of life from the engine for {patience_s:g} s")
                await asyncio.to_thread(self.kill)

    def _serving_wire(self) -> _Wire:
        if self.info is None or self._wire is None:
            raise EngineLost("the engine is starting")
        return self._wire

    async def _launch(self) -> EngineInfo:
        loop = asyncio.get_running_loop()
        first = self._first = loop.create_future()
        try:
            self._process = process = EngineProcess(self._config)
        except OSError as error:  # no memory or no file descriptors, at the moment
            raise EngineStartError(f"the engine process cannot be started: {error}") from error
        self._started_at = time.monotonic()
        _, self._wire = await loop.create_unix_connection(
            lambda: _Wire(self._received, self._closed), sock=process.socket
        )
        outcome = await first
        if isinstance(outcome, Ready):
            self.info = outcome.info
            self._config = replace(self._config, recalibrate=False)  # once is enough
            return outcome.info
        code = await self._end_process()
        line = outcome.line if outcome else f"the engine process ended with code {code}"
        raise EngineStartError(line)

    async def _end_process(self) -> int | None:
        if self._wire is not None:
            self._wire.close()
            await self._wire.closed.wait()
            self._wire = None
        process, self._process = self._process, None
        return None if process is None else await process.ended(EXIT_PATIENCE_S)

    async def _supervise(self) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            assert self._wire is not None
            await self._wire.closed.wait()
            lived_s = time.monotonic() - self._started_at
            self._fail_all("the engine was lost")
            code = await self._end_process()
            self._on_lost(f"the engine process ended with code {code}")
            if lived_s > STABLE_AFTER_S:
                delay_s = FIRST_DELAY_S
            info = None
            while info is None:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LONGEST_DELAY_S)
                try:
                    info = await self._launch()
                except EngineStartError as error:
                    self._on_lost(str(error))
            self._on_ready(info)

    def _fail_all(self, why: str) -> None:
        self.info = None
        streams, self._streams = self._streams, {}
        self._in_flight.clear()
        for stream, _ in streams.values():
            stream.fail(EngineLost(why))
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineLost(why))

    def _received(self, message: Report | Ready | Failed) -> None:
        self._heard_at = time.monotonic()
        if isinstance(message, Report):
            self._deliver(message)
            return
        if isinstance(message, Failed):
            self._on_failed(message)
        self._settle_start(message)

    def _closed(self) -> None:
        self._settle_start(None)

    def _settle_start(self, outcome: Ready | Failed | None) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(outcome)

    def _deliver(self, report: Report) -> None:
        streams = self._streams
        for line in report.notices:
            self._on_notice(line)
        for event in report.news:
            if found := streams.get(event.request_id):
                found[0].put(found[1], event)
        for sampled in report.sampled:
            if found := streams.get(sampled[0]):
                found[0].put(found[1], token_of(sampled))
        for finished in report.finished:
            self._in_flight.pop(finished.request_id, None)
            if found := streams.pop(finished.request_id, None):
                found[0].end(found[1], finished)
        for reply in report.replies:
            future = self._calls.get(reply.call_id)
            if future is None or future.done():
                continue
            if reply.failure is not None:
                future.set_exception(CallFailed(reply.error, reply.failure))
            else:
                future.set_result(reply.value)
