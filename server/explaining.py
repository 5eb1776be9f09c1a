"""The stories of requests: from the engine, or else from the decision log where there is one.

The log is searched by a thread, one search at a time, and after each it rests for RESTS times as
long: whoever asks for ids that nobody knows takes no more than that part of a core and of the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from engine import past
from engine.deciding.questions import Explain
from engine.deciding.timeline import Timeline
from engine.linking.errors import EngineLost, Unanswered
from engine.messages import Failure
from niyama.v1 import inference_pb2 as pb
from server import errors
from server.admission.quota import Caller, Quota
from server.convert import outbound

RESTS = 4  # times as long as a search took, until the next may begin
MOST_SEARCHES = 32  # that wait or are made

OPERATOR = Caller("", "")


class Stories:
    """Tells stories by an engine, and of those that it does not remember by the log at a path."""

    def __init__(self, ask: Callable[[Explain], Awaitable[Timeline]], log: Path | None) -> None:
        """`ask` raises Unanswered and EngineLost, as `EngineLink.ask` does."""
        self._ask = ask
        self._log = log
        self._turn = asyncio.Lock()
        self._searches = Quota("searches of the decision log", MOST_SEARCHES)

    async def tell(
        self,
        request_id: str,
        tenant: str | None,
        caller: Caller = OPERATOR,
        is_operator: bool = True,
    ) -> pb.ExplainResponse:
        """Returns the story of the request that a tenant (None: any) calls so, as the operator or
        the tenant may know it. Raises CallError.
        """
        try:
            timeline = await self._ask(Explain(request_id, tenant))
            return outbound.to_explanation(timeline, is_operator)
        except Unanswered as error:
            if error.failure is not Failure.NOT_FOUND:
                raise errors.unanswered(error.failure, str(error)) from error
            unknown = errors.not_remembered(request_id, tenant)
        except EngineLost as error:
            unknown = errors.engine_lost(str(error))
        if self._log is None:
            raise unknown
        try:
            with self._searches.hold(caller, 1):
                found = await self._search(self._log, request_id, tenant)
        except ValueError as error:
            raise errors.unanswered(Failure.INVALID, str(error)) from error
        except (LookupError, OSError):
            raise unknown from None
        return outbound.to_explanation(found, is_operator, from_decision_log=True)

    async def _search(self, log: Path, request_id: str, tenant: str | None) -> Timeline:
        """Returns what the log has, when it is this one's turn. Raises as `past.find`.

        A thread cannot be stopped: the turn is over when it has ended, though nobody waits for it
        any more. So a disk that hangs holds one thread, and not all that there are.
        """
        await self._turn.acquire()
        began_at = time.monotonic()
        search = asyncio.ensure_future(asyncio.to_thread(past.find, log, request_id, tenant))

        def rest(ended: asyncio.Future[Timeline]) -> None:
            if not ended.cancelled():
                ended.exception()  # it has been told, unless nobody waited
            rest_s = RESTS * (time.monotonic() - began_at)
            ended.get_loop().call_later(rest_s, self._turn.release)

        search.add_done_callback(rest)
        return await asyncio.shield(search)
