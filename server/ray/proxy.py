"""Our services at Ray's gRPC proxy, which runs `add_services` (`grpc_servicer_functions`).

Ray gives every RPC a handler that sends it through Ray. Ours stands before it: it takes the message
as bytes, puts all of the call into one value, and gives the caller all of the answer's end. Where a
replica is lost before anything of the answer has come, another one serves the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc

from niyama.v1 import inference_pb2 as pb
from server import errors
from server.config import ServerConfig
from server.errors import CallError, Refusal, Refused
from server.listening.deliveries import Deliveries, Delivery
from server.listening.uploads import Uploads
from server.ray.messages import Call, End, Frame
from server.ray.services import RPCS

Context = grpc.aio.ServicerContext[Any, Any]
Serve = Callable[[Call, "Shown"], AsyncIterator[bytes]]  # Ray's handler of an RPC that streams
MOST_TRIES = 2  # a request that ends its replica does so once more, and no more
READ_BY_RAY = ("application", "traceparent")  # of metadata: which application, and a trace
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# With which status a call ends whose replica is lost: where its server says so, and where Ray does.
_LOST = ({grpc.StatusCode.UNAVAILABLE}, {grpc.StatusCode.INTERNAL})


def add_services(servicer: object, server: Any) -> None:
    """Adds the services to the server of Ray's proxy. `servicer` is Ray's and of no use."""
    server.add_generic_rpc_handlers((Relay(),))


class Relay(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """The handlers of all RPCs."""

    def __init__(self) -> None:
        # Under this name Ray looks for handlers, and puts its own in their place.
        self._method_handlers: dict[str, Any] = {
            path: grpc.unary_stream_rpc_method_handler(_nothing) for path in RPCS
        }
        config = ServerConfig()
        self._uploads = Uploads(config.receive_timeout_s, config.max_message_bytes)
        self._deliveries = Deliveries(config.write_timeout_s)
        self._sweeping: list[asyncio.Task[None]] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Returns the handler of an RPC; None of one that is not served."""
        handler = self._method_handlers.get(details.method)
        if handler is None:
            return None
        streams = RPCS[details.method]

        async def answer(_: object, context: Context) -> bytes | None:
            return await self._answer(details.method, handler.unary_stream, context, streams)

        kind = "stream_stream" if streams else "stream_unary"
        return getattr(grpc, f"{kind}_rpc_method_handler")(answer)

    async def _answer(
        self, method: str, serve: Serve, context: Context, streams: bool
    ) -> bytes | None:
        """Serves a call. Returns its response; where it `streams` writes each, and returns None."""
        if not self._sweeping:  # on the event loop that serves
            sweeps = self._uploads.run(), self._deliveries.run()
            self._sweeping = [asyncio.create_task(each) for each in sweeps]
        try:
            message = await self._uploads.receive(context)
        except CallError as error:
            await errors.abort(context, error)
        call = Call(
            method,
            message,
            tuple((key, value) for key, value in context.invocation_metadata() or ()),
            context.time_remaining(),
        )
        answer = Answer(context, self._deliveries.begin(context), streams)
        for _ in range(MOST_TRIES):
            shown = Shown(context)
            end = await answer.take(serve(call, shown))
            lost = shown.code() if end is None else _CODES[end.code]
            if lost not in _LOST[end is None] or not answer.can_be_elsewhere:
                break
            tried = call.tried if end is None else call.tried | {end.replica}
            call = call._replace(
                message=message + answer.addition(),
                timeout_s=context.time_remaining(),
                tried=tried,
            )
        if end is None:
            await shown.abort()
        code = _CODES[end.code]
        if code is not grpc.StatusCode.OK:
            await context.abort(code, end.details, end.trailing)
        context.set_trailing_metadata(end.trailing)
        return None if streams else answer.response


class Answer:
    """What a caller gets, from one replica after another where one is lost.

    A stream begins with the event that its request was accepted. Where nothing follows, another
    replica can serve the request, under the id that the caller was told; that it has been accepted
    there, too, the caller is not told again.
    """

    def __init__(self, context: Context, delivery: Delivery, streams: bool) -> None:
        self._context = context
        self._delivery = delivery
        self._streams = streams
        self._num_come = 0  # of messages, from the replica that serves now
        self._num_passed = 0  # to the caller
        self._first = b""
        self.response = b""

    @property
    def can_be_elsewhere(self) -> bool:
        """Returns whether the caller would not notice."""
        return self._num_passed <= 1

    async def take(self, frames: AsyncIterator[bytes]) -> End | None:
        """Passes on what a replica answers; returns the answer's end, None where Ray lost it."""
        end, self._num_come = None, 0
        come: asyncio.Queue[Frame | None] = asyncio.Queue()
        # Ray hears that a call is cancelled only while it is waited for, and not where a write is.
        reading = asyncio.create_task(_read(frames, come))
        try:
            while (frame := await come.get()) is not None:
                for message in frame.messages:
                    await self._pass(message)
                end = frame.end
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        reading.result()  # raises what went wrong
        return end

    async def _pass(self, message: bytes) -> None:
        self._num_come += 1
        if not self._streams:
            self.response = message
        elif self._num_come > self._num_passed:
            self._first = self._first or message
            self._delivery.pending = message
            await self._context.write(message)
            self._delivery.pending = None
            self._num_passed += 1

    def addition(self) -> bytes:
        """Returns what makes the call's message, followed by it, one for another replica: with the
        id that its request has got, if the caller knows it.
        """
        request_id = pb.GenerateStreamResponse.FromString(self._first).accepted.request_id
        return pb.GenerateStreamRequest(request_id=request_id).SerializeToString()


class Shown:
    """What Ray is shown of a call's context, and tells it: of a call that Ray lost, why."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._code: grpc.StatusCode | None = None
        self._details = ""

    async def abort(self) -> NoReturn:
        """Ends a call that Ray lost."""
        code = self._code
        if code is grpc.StatusCode.CANCELLED:
            raise asyncio.CancelledError
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            message = "too many calls wait for a replica"
            await errors.abort(self._context, Refused(Refusal.QUEUE_FULL, message))
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            await self._context.abort(code, self._details)
        is_lost = code is grpc.StatusCode.INTERNAL
        message = "the replica that served the call was lost" if is_lost else "no replica serves"
        await errors.abort(self._context, errors.engine_lost(message))

    # What Ray calls, by gRPC's names.

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Returns what Ray reads of it; the call has all."""
        metadata = self._context.invocation_metadata() or ()
        return [(key, str(value)) for key, value in metadata if key in READ_BY_RAY]

    def peer(self) -> str:
        """Returns the caller's address."""
        return self._context.peer()

    def auth_context(self) -> dict[str, list[bytes]]:
        """Returns nothing."""
        return {}

    def peer_identities(self) -> None:
        """Returns nothing."""

    def peer_identity_key(self) -> None:
        """Returns nothing."""

    def trailing_metadata(self) -> tuple[()]:
        """Returns nothing."""
        return ()

    def set_trailing_metadata(self, metadata: object) -> None:
        """Takes no notice: they are ids of Ray's."""

    def set_compression(self, compression: object) -> None:
        """Takes no notice."""

    def code(self) -> grpc.StatusCode | None:
        """Returns the status that Ray has set."""
        return self._code

    def set_code(self, code: grpc.StatusCode) -> None:
        """Notes the status."""
        self._code = code

    def details(self) -> str:
        """Returns what Ray has said of the status."""
        return self._details

    def set_details(self, details: str) -> None:
        """Notes what Ray says of the status."""
        self._details = details


async def _read(frames: AsyncIterator[bytes], come: asyncio.Queue[Frame | None]) -> None:
    """Puts the frames into the queue as they come, and None when no more will."""
    try:
        async for data in frames:
            come.put_nowait(Frame.of(data))
    finally:
        come.put_nowait(None)


async def _nothing(request: object, context: object) -> AsyncIterator[bytes]:
    """Is where Ray puts its own."""
    return
    yield b""
