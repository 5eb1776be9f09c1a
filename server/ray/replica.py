"""A replica: one server, and the way of calls to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import grpc
from ray import serve

from server.config import ServerConfig
from server.ray.child import Child
from server.ray.messages import Call, End, Frame
from server.ray.services import METHODS
from server.ray.telling import Telling

REST_S = 10.0  # that a server may take to end, beyond its time to drain
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Replica:
    """A deployment's class. Ray calls the methods of its gRPC services, which are all `relay`."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, flags: Sequence[str], config: ServerConfig
    ) -> None:
        """Starts the server with those flags, of which `config` has come, and returns when it can
        serve. Raises ChildLost.
        """
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        self._config = config
        self._child = Child([*flags, *own_flags(config, context.rank)])
        address = await asyncio.to_thread(self._child.wait_ready)
        self._channel = grpc.aio.insecure_channel(address, options=UNLIMITED)
        self._telling = Telling(self._channel, config.admin_token_file)
        self._asking = asyncio.create_task(self._telling.run())

    async def check_health(self) -> None:
        """Raises ChildLost where the server is gone. That its engine is lost makes no replica
        unhealthy, as the server starts another.
        """
        self._child.check()

    def record_routing_stats(self) -> dict[str, Any]:
        """Returns what Ray is to tell routers of the replica."""
        return self._telling.for_routing()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns what Ray is to tell whoever decides how many replicas there are."""
        return self._telling.for_scaling()

    async def relay(self, call: Call) -> AsyncIterator[Frame]:
        """Yields the answer to a call, a frame for all that has come since the one before."""
        rpc = self._channel.unary_stream(call.method, None, None)(
            call.message, metadata=_sendable(call.metadata), timeout=call.timeout_s
        )
        answer = Answer(rpc)
        reading = asyncio.create_task(answer.read())
        try:
            while not (news := await answer.next()).is_over:
                yield Frame(news.messages)
            code, details = await rpc.code(), await rpc.details() or ""
            trailing = tuple((key, value) for key, value in await rpc.trailing_metadata() or ())
            yield Frame(news.messages, End(code.value[0], details, trailing, self._id))
        finally:
            rpc.cancel()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def __del__(self) -> None:
        """Ends the server, once Ray has seen all calls end or has waited for long enough."""
        self._asking.cancel()
        await self._channel.close(None)
        await asyncio.to_thread(self._child.end, self._config.drain_s + REST_S)


class News(NamedTuple):
    """Messages of an answer, and whether they are its last ones."""

    messages: tuple[bytes, ...]
    is_over: bool


class Answer:
    """What a server answers to one call, which `read` takes as it comes."""

    def __init__(self, rpc: Any) -> None:
        self._rpc = rpc
        self._come: list[bytes] = []
        self._more = asyncio.Event()
        self._is_over = False

    async def read(self) -> None:
        """Takes messages until the last one, or until the call is cancelled."""
        try:
            with contextlib.suppress(grpc.aio.AioRpcError):  # the call knows its status
                while isinstance(message := await self._rpc.read(), bytes):  # else grpc.aio.EOF
                    self._come.append(message)
                    self._more.set()
        finally:
            self._is_over = True
            self._more.set()

    async def next(self) -> News:
        """Waits for a message or for the end, and returns what has come since it last did."""
        await self._more.wait()
        self._more.clear()
        come, self._come = tuple(self._come), []
        return News(come, self._is_over)


def own_flags(config: ServerConfig, rank: Any) -> list[str]:
    """Returns the flags of what no two replicas may share: a metrics port, by the replica's rank on
    its machine, and a decision log, by its rank in the fleet.
    """
    flags = []
    if config.metrics_port:
        flags.append(f"--metrics-port={config.metrics_port + rank.local_rank}")
    if config.engine.decision_log is not None:
        path = config.engine.decision_log
        flags.append(f"--decision-log={path.with_stem(f'{path.stem}-{rank.rank}')}")
    return flags


def _sendable(metadata: Any) -> list[tuple[str, str | bytes]]:
    return [(k, v) for k, v in metadata if k != "user-agent" and not k.startswith("grpc-")]


for _name in METHODS:
    setattr(Replica, _name, Replica.relay)
