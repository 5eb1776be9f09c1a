"""What the front end asks of an engine that is there: submit, read, cancel, ask.

Nothing here blocks the event loop. Who makes the connection, and makes it again when it is lost, is
an `EngineClient`, which owns the engine's process, or an `AttachedEngine`, which does not.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from engine.deciding.request import Request, named_by
from engine.deciding.sequence import FinishReason
from engine.driving.messages import Call, Cancel, EngineInfo, Report, Submit, token_of
from engine.driving.streams import CallFailed, DuplicateRequest, EngineLost, RequestStream
from engine.driving.wire import Wire


def _ignore(_: str) -> None: ...


class EngineLink:
    """The requests and questions of one front end that an engine is at work on.

    `on_freed(tenant)` is told of each request that the engine has finished or was told to end;
    `on_notice(line)` of what belongs in the log.
    """

    def __init__(
        self, on_notice: Callable[[str], None] = _ignore, on_freed: Callable[[str], None] = _ignore
    ) -> None:
        self._on_notice = on_notice
        self._on_freed = on_freed
        self._streams: dict[str, tuple[RequestStream, int]] = {}
        # Id to tenant, without those that the engine has been told to end: they are gone before it
        # looks at anything submitted after.
        self._in_flight: dict[str, str] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count(1)
        self._wire: Wire | None = None
        self._heard_at = 0.0  # last sign of life, or the moment from which one is due
        self.info: EngineInfo | None = None  # of the engine that serves now; None while none does

    @property
    def num_in_flight(self) -> int:
        """Requests that the engine has neither finished nor been told to end."""
        return len(self._in_flight)

    def has(self, request_id: str) -> bool:
        return request_id in self._streams

    def submit(self, requests: Sequence[Request]) -> RequestStream:
        """All or, raising EngineLost or DuplicateRequest, none of them. Another front end's request
        of the same id is found out by the engine: then reading the stream raises.
        """
        wire = self._serving_wire()
        for request in requests:
            if request.id in self._streams:
                raise DuplicateRequest(request.name)
        self._expect_life()
        stream = RequestStream([r.id for r in requests], self.cancel)
        for index, request in enumerate(requests):
            self._streams[request.id] = (stream, index)
            self._in_flight[request.id] = request.tenant
            wire.post(Submit(request))
        wire.flush()
        return stream

    def cancel(self, request_id: str, reason: FinishReason) -> None:
        if request_id in self._streams and self._wire is not None:
            self._free(request_id)
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

    @property
    def _is_busy(self) -> bool:
        return bool(self._streams or self._calls)

    def _expect_life(self) -> None:
        """To be called before work is added: an idle engine is silent, and may be."""
        if not self._is_busy:
            self._heard_at = time.monotonic()

    def _serving_wire(self) -> Wire:
        if self.info is None or self._wire is None:
            raise EngineLost("the engine is starting")
        return self._wire

    def _free(self, request_id: str) -> None:
        tenant = self._in_flight.pop(request_id, None)
        if tenant is not None:
            self._on_freed(tenant)

    def _fail_all(self, why: str) -> None:
        self.info = None
        streams, self._streams = self._streams, {}
        for request_id in list(self._in_flight):
            self._free(request_id)
        for stream, _ in streams.values():
            stream.fail(EngineLost(why))
        for future in self._calls.values():
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
            self._free(finished.request_id)
            if found := streams.pop(finished.request_id, None):
                found[0].end(found[1], finished)
        for request_id in report.refused:
            self._free(request_id)
            if found := streams.pop(request_id, None):
                found[0].refuse(found[1], DuplicateRequest(named_by(request_id)[1]))
        self._answer(report)

    def _answer(self, report: Report) -> None:
        for reply in report.replies:
            future = self._calls.get(reply.call_id)
            if future is None or future.done():
                continue
            if reply.failure is not None:
                future.set_exception(CallFailed(reply.error, reply.failure))
            else:
                future.set_result(reply.value)
