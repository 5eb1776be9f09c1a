"""What the front end asks of an engine that is there: submit, read, cancel, ask.

Nothing here blocks the event loop. Who makes the connection, and makes it again when it is lost, is
an `EngineClient`, which owns the engine's process, or an `AttachedEngine`, which does not.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from engine.deciding.questions import AnswerT, Question
from engine.deciding.request import Request, named_by
from engine.deciding.sequence import FinishReason
from engine.linking.streams import DuplicateRequest, EngineLost, RequestStream, Unanswered
from engine.messages import Ask, Cancel, EngineInfo, Report, Submit, token_of
from engine.processes.wire import Wire


def _ignore(_: str) -> None: ...


class EngineLink:
    """The requests and questions of one front end that an engine is at work on.

    `on_notice(line)` is told of what belongs in the log. When the engine is lost, requests of which
    nobody has seen a token wait for the next one, for up to `rerun_s`, and are run again: in flight
    all the while, in the order of their arrival, and once. So do those that had arrived before and
    are submitted only then; who arrives while there is no engine is told so and can go elsewhere.
    """

    def __init__(
        self,
        on_notice: Callable[[str], None] = _ignore,
        rerun_s: float = 0.0,
    ) -> None:
        self._on_notice = on_notice
        self._rerun_s = rerun_s
        self._streams: dict[str, tuple[RequestStream, int]] = {}
        self._waiting: dict[str, Request] = {}  # for the next engine; in `_streams` too
        self._lost_at = 0.0
        self._giving_up: asyncio.TimerHandle | None = None  # while there is something to wait for
        # Without those that the engine has been told to end: they are gone before it looks at
        # anything submitted after.
        self._in_flight: set[str] = set()
        self._questions: dict[int, asyncio.Future[Any]] = {}  # not answered yet, by id
        self._question_ids = itertools.count(1)
        self._wire: Wire | None = None
        self._heard_at = 0.0  # last sign of life, or the moment from which one is due
        self.info: EngineInfo | None = None  # of the engine that serves now; None while none does
        self._silent: set[str] = set()  # who shows no sign of life of those that serving needs

    @property
    def serves(self) -> bool:
        return self.info is not None and not self._silent

    def ready(self) -> EngineInfo:
        """What the engine says of itself. Raises EngineLost where none serves now."""
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
    def num_in_flight(self) -> int:
        """Requests that the engine has neither finished nor been told to end."""
        return len(self._in_flight)

    def has(self, request_id: str) -> bool:
        return request_id in self._streams

    def submit(self, requests: Sequence[Request], is_seen_whole: bool = False) -> RequestStream:
        """All or, raising EngineLost or DuplicateRequest, none of them. Another front end's request
        of the same id is found out by the engine: then reading the stream raises. `is_seen_whole`
        says that the caller sees nothing before all have ended.
        """
        waits = self._giving_up is not None and all(r.arrived_at < self._lost_at for r in requests)
        wire = None if waits else self._serving_wire()
        for request in requests:
            if request.id in self._streams:
                raise DuplicateRequest(request.name)
        self._expect_life()
        stream = RequestStream([r.id for r in requests], self.cancel, requests, is_seen_whole)
        for index, request in enumerate(requests):
            self._streams[request.id] = (stream, index)
            self._in_flight.add(request.id)
        self._send(wire, requests)
        return stream

    def _send(self, wire: Wire | None, requests: Iterable[Request]) -> None:
        """To the engine, or where there is none, to be sent to the next."""
        if wire is None:
            self._waiting |= {request.id: request for request in requests}
            return
        for request in requests:
            wire.post(Submit(request))
        wire.flush()

    def cancel(self, request_id: str, reason: FinishReason) -> None:
        if self._waiting.pop(request_id, None) is not None:  # no engine knows of it
            del self._streams[request_id]
            self._in_flight.discard(request_id)
        elif request_id in self._streams and self._wire is not None:
            self._in_flight.discard(request_id)
            self._wire.post(Cancel(request_id, reason))

    async def ask(self, question: Question[AnswerT]) -> AnswerT:
        """The engine's answer to the question. Raises EngineLost, or Unanswered with the reason."""
        self.ready()
        wire = self._serving_wire()
        question_id = next(self._question_ids)
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._expect_life()
        self._questions[question_id] = future
        try:
            wire.post(Ask(question_id, question))
            return await future
        finally:
            self._questions.pop(question_id, None)

    @property
    def _is_busy(self) -> bool:
        return bool(self._streams or self._questions)

    def _expect_life(self) -> None:
        """To be called before work is added: an idle engine is silent, and may be."""
        if not self._is_busy:
            self._heard_at = time.monotonic()

    def _serving_wire(self) -> Wire:
        if self.info is None or self._wire is None:
            raise EngineLost("the engine is starting")
        return self._wire

    def _lose(self, why: str) -> None:
        """The engine is gone; another will come."""
        self.info = None
        self.note_silence("engine", False)
        self._lost_at = time.monotonic()
        self._stop_waiting()
        if self._rerun_s:
            loop = asyncio.get_running_loop()
            self._giving_up = loop.call_later(self._rerun_s, self._give_up)
            for stream, ids in self._groups().items():
                # One that was told to end, or whose end was asked for, is not begun again.
                if all(request_id in self._in_flight for request_id in ids):
                    self._waiting |= {request.id: request for request in stream.restart()}
        if self._waiting:
            self._on_notice(f"{len(self._waiting)} requests wait for the next engine")
        self._fail(self._streams.keys() - self._waiting.keys(), why)

    def _resume(self) -> None:
        """An engine is there: those that wait come before all that are still to be submitted."""
        waiting, self._waiting = self._waiting, {}
        self._stop_waiting()
        assert self._wire is not None
        self._send(self._wire, sorted(waiting.values(), key=lambda request: request.arrived_at))

    def _give_up(self) -> None:
        self._giving_up = None
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._on_notice(f"{len(waiting)} requests have waited too long for the next engine")
            self._fail(waiting.keys(), "the engine was lost, and no other came in time")

    def _stop_waiting(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _fail_all(self, why: str) -> None:
        """Nothing waits for another engine either."""
        self.info = None
        self._stop_waiting()
        self._waiting.clear()
        self._fail(self._streams.keys(), why)

    def _groups(self) -> dict[RequestStream, list[str]]:
        groups: dict[RequestStream, list[str]] = {}
        for request_id, (stream, _) in self._streams.items():
            groups.setdefault(stream, []).append(request_id)
        return groups

    def _fail(self, ids: Iterable[str], why: str) -> None:
        """These requests, all of their streams, and what was asked."""
        for request_id in list(ids):
            stream, _ = self._streams.pop(request_id)
            self._in_flight.discard(request_id)
            stream.fail(EngineLost(why))
        for future in self._questions.values():
            if not future.done():
                future.set_exception(EngineLost(why))

    def _deliver(self, report: Report) -> None:
        streams, find = self._streams, self._streams.get
        for line in report.notices:
            self._on_notice(line)
        for event in report.news:
            if found := streams.get(event.request_id):
                found[0].put(found[1], event)
        for sampled in report.sampled:
            if found := find(sampled[0]):
                found[0].put(found[1], token_of(sampled))
        for finished in report.finished:
            self._in_flight.discard(finished.request_id)
            if found := streams.pop(finished.request_id, None):
                found[0].end(found[1], finished)
        for request_id in report.refused:
            self._in_flight.discard(request_id)
            if found := streams.pop(request_id, None):
                found[0].refuse(found[1], DuplicateRequest(named_by(request_id)[1]))
        self._answer(report)

    def _answer(self, report: Report) -> None:
        for reply in report.replies:
            future = self._questions.get(reply.question_id)
            if future is None or future.done():
                continue
            if reply.failure is not None:
                future.set_exception(Unanswered(reply.error, reply.failure))
            else:
                future.set_result(reply.answer)
