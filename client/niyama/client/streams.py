"""A generation as it comes: a stream of tokens, beside which stands what else the server said.

A stream knows the protocol's events (accepted, tokens, relegated, finished), and not how they
travel. Leaving the loop early cancels the call, which frees what it holds on the server.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import cast

import grpc

from niyama.client import convert
from niyama.client.convert import Event
from niyama.client.errors import Cancelled, ServerError, translate
from niyama.client.values import Accepted, Finished, Relegated, Timings, Tokens
from niyama.v1 import inference_pb2 as pb

AsyncCall = grpc.aio.UnaryStreamCall[pb.GenerateStreamRequest, pb.GenerateStreamResponse]


class Heard:
    """What the server has said so far. The attributes are filled while the stream is read."""

    def __init__(self, num_completions: int = 1) -> None:
        self._num_completions = num_completions
        self.accepted: Accepted | None = None
        self.relegations: list[Relegated] = []
        self.completions: dict[int, Finished] = {}  # by index, where several were asked for
        self._texts: dict[int, list[str]] = {}

    @property
    def request_id(self) -> str | None:
        """Returns the request's id, given or made. None until the server has accepted the
        request.
        """
        return self.accepted.request_id if self.accepted else None

    @property
    def finished(self) -> Finished | None:
        """Returns how the (first) completion ended. None until then."""
        return self.completions.get(0)

    @property
    def timings(self) -> Timings | None:
        """Returns the server's timings of the (first) completion. None until its end."""
        return self.finished.timings if self.finished else None

    @property
    def on_time(self) -> bool | None:
        """Returns whether every target of every completion was met. None until all have ended."""
        if not self._is_complete:
            return None
        return all(each.on_time for each in self.completions.values())

    @property
    def _is_complete(self) -> bool:
        return all(index in self.completions for index in range(self._num_completions))

    @property
    def text(self) -> str:
        """Returns the text of the (first) completion so far."""
        return self.text_of(0)

    def text_of(self, index: int) -> str:
        """Returns the text of one completion so far."""
        return "".join(self._texts.get(index, ()))

    def _hear(self, message: pb.GenerateStreamResponse) -> Event | None:
        """Notes the event and returns it."""
        event = convert.from_stream_response(message)
        if isinstance(event, Tokens):
            self._texts.setdefault(event.index, []).append(event.text)
        elif isinstance(event, Accepted):
            self.accepted = event
        elif isinstance(event, Relegated):
            self.relegations.append(event)
        elif isinstance(event, Finished):
            self.completions[event.index] = event
        return event

    def _check_complete(self) -> None:
        if not self._is_complete:
            raise ServerError("the stream ended without its last event")


class AsyncStream(Heard):
    """A stream for code with an event loop: read it once with `async for tokens in stream`, then
    see `stream.finished` and `stream.timings`.

    A loop over `events()` instead also gets what else the server says, when it says it: that the
    request was relegated, for instance, so that the caller may give it up. The request is sent when
    the stream is made. The loop raises the errors of `niyama.client.errors`. To cancel at an exact
    place, use `async with`, or `cancel()`.
    """

    def __init__(self, call: AsyncCall, num_completions: int = 1) -> None:
        super().__init__(num_completions)
        self._call = call

    async def __aiter__(self) -> AsyncIterator[Tokens]:
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    yield event

    async def events(self) -> AsyncGenerator[Event]:
        """Yields every event: tokens, and what else the server says."""
        try:
            async for message in self._call:
                event = self._hear(message)
                if event is not None:
                    yield event
        except grpc.aio.AioRpcError as error:
            raise translate(cast(grpc.Call, error)) from None
        finally:
            self._call.cancel()  # does nothing to a call that is done
        self._check_complete()

    async def read(self) -> str:
        """Reads to the end, and returns the (first) completion's text."""
        async for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """Gives the call up. A loop over it, in another task, sees asyncio.CancelledError."""
        self._call.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call.cancel()


class Stream(Heard):
    """A stream for code without an event loop: read it once with `for tokens in stream`, then see
    `stream.finished` and `stream.timings`.

    It does as AsyncStream does. `cancel()` may be called from any thread.
    """

    def __init__(
        self, call: grpc.CallIterator[pb.GenerateStreamResponse], num_completions: int = 1
    ) -> None:
        super().__init__(num_completions)
        self._call = call

    def __iter__(self) -> Iterator[Tokens]:
        with contextlib.closing(self.events()) as events:
            for event in events:
                if isinstance(event, Tokens):
                    yield event

    def events(self) -> Generator[Event]:
        """Yields every event: tokens, and what else the server says."""
        try:
            for message in self._call:
                event = self._hear(message)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise translate(cast(grpc.Call, error)) from None
        except grpc.FutureCancelledError:
            raise Cancelled("the call was cancelled") from None
        finally:
            self._call.cancel()
        self._check_complete()

    def read(self) -> str:
        """Reads to the end, and returns the (first) completion's text."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """Gives the call up. A loop over it, in another thread, sees Cancelled."""
        self._call.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call.cancel()
