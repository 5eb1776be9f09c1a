"""The health service (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).

A watcher gets the newest status whenever its client has taken the one before. Nobody waits for a
watcher, neither whoever sets the status nor another watcher. grpcio-health-checking's own servicer
holds a lock of all watchers while one of them writes.

Nobody is asked who watches, and each watch takes memory for as long as its client likes. So there
are only so many: beyond them the connection that has the most gives up its oldest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from server import errors
from server.errors import Refused
from server.listening.deliveries import Deliveries

Status = pb.HealthCheckResponse
MOST_WATCHES = 4096  # of some 25 KB each; a client needs one, and many more than have connections


class Watches:
    """The watches of one front end, by connection, the oldest of each first. Not more than `most`
    go on.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._num = 0
        self._of: dict[str, dict[asyncio.Timeout, None]] = {}  # by the peer

    @contextlib.asynccontextmanager
    async def one(self, peer: str) -> AsyncIterator[None]:
        """Opens a block in which a peer watches. Raises Refused where that is one too many."""
        try:
            async with asyncio.timeout(None) as timeout:
                self._of.setdefault(peer, {})[timeout] = None
                self._num += 1
                try:
                    if self._num > self._most:
                        self._end_one()
                    yield
                finally:
                    self._leave(peer, timeout)
        except TimeoutError:
            raise errors.too_many_watches(self._most) from None

    def _end_one(self) -> None:
        peer, own = max(self._of.items(), key=lambda each: len(each[1]))
        oldest = next(iter(own))
        self._leave(peer, oldest)
        oldest.reschedule(asyncio.get_running_loop().time())

    def _leave(self, peer: str, watch: asyncio.Timeout) -> None:
        """Forgets a watch, unless that has been done."""
        own = self._of.get(peer, {})
        if watch in own:
            del own[watch]
            self._num -= 1
        if not own:
            self._of.pop(peer, None)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """The health of `services`, which have one status together. It is NOT_SERVING at first, and
    from `shut_down` on for good.
    """

    def __init__(
        self, services: Sequence[str], deliveries: Deliveries, most_watches: int = MOST_WATCHES
    ) -> None:
        self._deliveries = deliveries
        self._watches = Watches(most_watches)
        self._services = frozenset(services)
        self._status = Status.NOT_SERVING
        self._changed = asyncio.Event()  # another one for each change
        self._is_shut_down = False

    def set(self, *, serving: bool) -> None:
        """Sets the status, without waiting for those who watch it."""
        if self._is_shut_down:
            return
        self._status = Status.SERVING if serving else Status.NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    def shut_down(self) -> None:
        """Sets NOT_SERVING, whatever is set later."""
        self.set(serving=False)
        self._is_shut_down = True

    async def Check(
        self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.HealthCheckResponse:
        """Answers with the status now."""
        if request.service not in self._services:
            await errors.abort(context, errors.unknown_service(request.service))
        return Status(status=self._status)

    async def List(
        self, request: pb.HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.HealthListResponse:
        """Answers with the status of each service now."""
        now = Status(status=self._status)
        return pb.HealthListResponse(statuses=dict.fromkeys(self._services, now))

    async def Watch(
        self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Answers with the status now and with every one that follows, until the client leaves.

        A client that asks for a service that is not known is told so, and may wait for it.
        """
        try:
            async with self._watches.one(context.peer()):
                await self._tell(request, context)
        except Refused as error:
            await errors.abort(context, error)

    async def _tell(
        self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> NoReturn:
        delivery = self._deliveries.begin(context)
        is_known, told = request.service in self._services, None
        while True:
            changed = self._changed
            status = self._status if is_known else Status.SERVICE_UNKNOWN
            if status == told:
                await changed.wait()
            else:
                delivery.pending = news = Status(status=status)
                await context.write(news)
                delivery.pending, told = None, status
