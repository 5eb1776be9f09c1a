"""A front end's link to the engine: submit, read, cancel, ask.

The link is handed sockets, one after another: each is a connection to an engine process that
somebody else starts and, when it is lost, starts again (`engine.linking.keeper`). Nothing here
blocks the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

from engine.deciding.entries import Unserved
from engine.deciding.prefix_journal import CacheBatch
from engine.deciding.questions import AnswerT, Question
from engine.deciding.request import Request
from engine.deciding.sequence import FinishReason
from engine.linking.errors import EngineLost, Unanswered
from engine.linking.streams import RequestStream, Streams
from engine.messages import (
    Ask,
    Cancel,
    Describe,
    EngineInfo,
    Failed,
    Ready,
    Reply,
    Report,
    Starting,
    Submit,
    Tell,
    Watch,
)
from engine.processes.wire import Wire, open_wire


class Questions:
    """Holds the questions of one front end that have no answer yet."""

    def __init__(self) -> None:
        self._futures: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)

    def __bool__(self) -> bool:
        return bool(self._futures)

    async def ask(self, wire: Wire, question: Question[AnswerT]) -> AnswerT:
        """Waits for the answer. Raises Unanswered with the reason, or EngineLost (`fail`)."""
        question_id = next(self._ids)
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._futures[question_id] = future
        try:
            wire.post(Ask(question_id, question))
            return await future
        finally:
            del self._futures[question_id]

    def settle(self, reply: Reply) -> None:
        """The engine has answered; whoever asked may have left."""
        future = self._futures.get(reply.question_id)
        if future is None or future.done():
            return
        if reply.failure is not None:
            future.set_exception(Unanswered(reply.error, reply.failure))
        else:
            future.set_result(reply.answer)

    def fail(self, why: str) -> None:
        """No question will be answered any more: whoever waits is told EngineLost."""
        for future in self._futures.values():
            if not future.done():
                future.set_exception(EngineLost(why))


class Waiting:
    """Holds the requests that wait for another engine, from when one is lost (`begin`) until the
    next one serves (`end`), or `rerun_s` are over.
    """

    def __init__(self, rerun_s: float, give_up: Callable[[list[Request]], None]) -> None:
        """`give_up` is told who has waited for too long."""
        self._rerun_s = rerun_s
        self._give_up = give_up
        self._requests: dict[str, Request] = {}
        self._lost_at = 0.0
        self._timer: asyncio.TimerHandle | None = None  # while somebody may wait

    @property
    def ids(self) -> Set[str]:
        return self._requests.keys()

    def begin(self) -> bool:
        """An engine has just been lost. Returns whether anybody may wait for the next one."""
        self._lost_at = time.monotonic()
        if self._rerun_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._rerun_s, self._end_in_vain)
        return self._timer is not None

    def takes(self, requests: Sequence[Request]) -> bool:
        """Says whether they may wait: they had all arrived before the engine was lost."""
        return self._timer is not None and all(r.arrived_at < self._lost_at for r in requests)

    def add(self, requests: Iterable[Request]) -> None:
        self._requests |= {request.id: request for request in requests}

    def drop(self, request_id: str) -> bool:
        """Returns whether it has waited."""
        return self._requests.pop(request_id, None) is not None

    def end(self) -> list[Request]:
        """Nobody waits any more: returns those who have, in the order of their arrival."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        requests, self._requests = self._requests, {}
        return sorted(requests.values(), key=lambda request: request.arrived_at)

    def _end_in_vain(self) -> None:
        if requests := self.end():
            self._give_up(requests)


class EngineLink:
    """Links one front end to the engine that is at work on its requests and questions.

    It serves through one connection at a time, from when the engine at the other end says that it
    is ready (`on_ready`) until the connection ends (`on_lost`). `on_notice(line)` is told of what
    belongs in the log. An engine tells who started it what it does until it is ready
    (`on_starting`), and why it cannot go on (`on_failed`).

    When a connection is lost, requests of which nobody has seen a token wait for the next one, for
    up to `rerun_s`, and are run again: in flight all the while, in the order of their arrival, and
    once. So do those that had arrived before and are submitted only then; who arrives while there
    is no engine is told so and can go elsewhere.
    """

    def __init__(
        self,
        on_ready: Callable[[Ready], None],
        on_lost: Callable[[], None],
        on_notice: Callable[[str], None],
        rerun_s: float,
        on_failed: Callable[[Failed], None] = lambda failed: None,
        on_starting: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_notice = on_notice
        self._on_failed = on_failed
        self._on_starting = on_starting
        self._wire: Wire | None = None
        self._announced: Ready | None = None  # by an engine before its wire was ours to send by
        self._is_stopping = False
        self._streams = Streams()
        self._questions = Questions()
        self._waiting = Waiting(rerun_s, self._give_up)
        self._heard_at = 0.0  # last sign of life, or the moment from which one is due
        self._silent: set[str] = set()  # who shows no sign of life of those that serving needs
        self.info: EngineInfo | None = None  # of the engine that serves now; None while none does
        self.learnt: tuple[float, ...] = ()  # as an engine last told, to who started it
        self.on_cache: Callable[[CacheBatch], None] = lambda batch: None  # while it watches

    # Its connections

    async def attach(self, sock: socket.socket) -> None:
        """Takes the connection to an engine, new or the same, in the place of the one before."""
        await self.detach()
        self._wire = await open_wire(sock, self._received, self._closed)
        if self._announced is not None:
            self._serve(self._announced)

    async def detach(self) -> None:
        """Ends the connection, whereupon the engine ends what it is at work on for it."""
        if self._wire is not None:
            self._wire.close()
            await self._wire.closed.wait()

    async def stop(self) -> None:
        """Fails what is open with EngineLost, and ends the connection for good."""
        self._is_stopping = True
        self.info = None
        self._waiting.end()
        self._fail(self._streams.ids, "the server is stopping")
        await self.detach()

    # What may be expected of it

    @property
    def serves(self) -> bool:
        return self.info is not None and not self._silent

    def ready(self) -> EngineInfo:
        """Returns what the engine says of itself. Raises EngineLost where none serves now."""
        if self.info is None:
            raise EngineLost("the engine is starting")
        if self._silent:
            raise EngineLost(f"the {' and the '.join(sorted(self._silent))} may have stopped")
        return self.info

    def note_silence(self, who: str, is_silent: bool) -> bool:
        """Nothing new begins while somebody is silent. Returns whether that is news of them."""
        is_news = is_silent != (who in self._silent)
        if is_silent:
            self._silent.add(who)
        else:
            self._silent.discard(who)
        return is_news

    @property
    def waits_since(self) -> float | None:
        """Returns when the engine was last heard of, or the moment from which that was due; None
        while nothing is asked of it, since an idle engine may be silent.
        """
        return self._heard_at if self.info is not None and self._is_busy else None

    # Requests and questions

    @property
    def in_flight(self) -> Set[str]:
        """Returns the ids of the requests that the engine has neither finished nor been told to
        end.
        """
        return self._streams.in_flight

    def has(self, request_id: str) -> bool:
        return request_id in self._streams

    def submit(self, requests: Sequence[Request], is_seen_whole: bool = False) -> RequestStream:
        """Submits all or, raising EngineLost or DuplicateRequest, none of them. Another front end's
        request of the same id is found out by the engine: then reading the stream raises.
        `is_seen_whole` says that the caller sees nothing before all have ended.
        """
        wire = None if self._waiting.takes(requests) else self._serving_wire()
        self._expect_life()
        stream = self._streams.open(requests, self.cancel, is_seen_whole)
        if wire is None:
            self._waiting.add(requests)
        else:
            _submit(wire, requests)
        return stream

    def cancel(self, request_id: str, reason: FinishReason) -> None:
        """Asks the engine to end the request; its `Finished` will carry the reason."""
        if self._waiting.drop(request_id):  # no engine knows of it
            self._streams.drop(request_id)
        elif request_id in self._streams and self._wire is not None:
            self._streams.in_flight.discard(request_id)
            self._wire.post(Cancel(request_id, reason))

    def describe(self, service: dict[str, Any]) -> None:
        """Tells an engine that serves how the service is configured, for its decision log."""
        if self.info is not None and self._wire is not None:
            self._wire.post(Describe(service))

    def tell(self, call: Unserved) -> None:
        """Tells the engine's record of a call that ended before the engine had its requests. While
        no engine serves, nobody keeps a record.
        """
        if self.info is not None and self._wire is not None:
            self._wire.post(Tell(call))

    def watch(self, is_on: bool) -> None:
        """Has an engine that serves tell `on_cache` what its prefix cache comes to hold and loses,
        or no longer. The next engine is to be told anew.
        """
        if self.info is not None and self._wire is not None:
            self._wire.post(Watch(is_on))

    async def ask(self, question: Question[AnswerT]) -> AnswerT:
        """Returns the engine's answer. Raises EngineLost, or Unanswered with the reason."""
        self.ready()
        wire = self._serving_wire()
        self._expect_life()
        return await self._questions.ask(wire, question)

    @property
    def _is_busy(self) -> bool:
        return bool(self._streams or self._questions)

    def _expect_life(self) -> None:
        """Is to be called before work is added: an engine of which nothing was asked may have been
        silent until now.
        """
        if not self._is_busy:
            self._heard_at = time.monotonic()

    def _serving_wire(self) -> Wire:
        if self.info is None or self._wire is None:
            raise EngineLost("the engine is starting")
        return self._wire

    # What the engine says

    def _received(self, message: Ready | Report | Failed | Starting) -> None:
        self._heard_at = time.monotonic()
        if isinstance(message, Report):
            for line in message.notices:
                self._on_notice(line)
            if message.learnt:
                self.learnt = message.learnt
            if message.cache is not None:
                self.on_cache(message.cache)
            self._streams.deliver(message)
            for reply in message.replies:
                self._questions.settle(reply)
        elif isinstance(message, Failed):
            self._on_failed(message)
        elif isinstance(message, Starting):
            self._on_starting(message.doing)
        elif self._wire is None:
            self._announced = message
        else:
            self._serve(message)

    def _serve(self, ready: Ready) -> None:
        """An engine is there: those that wait come before all that are still to be submitted."""
        self._announced = None
        self.info = ready.info
        _submit(self._serving_wire(), self._waiting.end())
        self._on_ready(ready)

    def _closed(self) -> None:
        self._wire = self._announced = None
        if self._is_stopping:
            return
        if self.info is not None:  # else it never served, and those who wait go on waiting
            self._lose()
        self._on_lost()

    # When it is lost

    def _lose(self) -> None:
        self.info = None
        self.note_silence("engine", False)
        if self._waiting.begin():
            self._waiting.add(self._streams.restart())
        waiting = self._waiting.ids
        if waiting:
            self._on_notice(f"{len(waiting)} requests wait for the next engine")
        self._fail(self._streams.ids - waiting, "the engine was lost")

    def _give_up(self, waiting: list[Request]) -> None:
        self._on_notice(f"{len(waiting)} requests have waited too long for the next engine")
        ids = [request.id for request in waiting]
        self._fail(ids, "the engine was lost, and no other came in time")

    def _fail(self, ids: Iterable[str], why: str) -> None:
        """Ends the streams of these requests, and whatever was asked."""
        self._streams.fail(ids, why)
        self._questions.fail(why)


def _submit(wire: Wire, requests: Iterable[Request]) -> None:
    for request in requests:
        wire.post(Submit(request))
    wire.flush()
