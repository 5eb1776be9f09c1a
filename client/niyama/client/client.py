"""The two clients: AsyncClient for code with an event loop, Client for code without.

Both have the same methods with the same arguments (`options` states them), send one call per method
and translate its errors (`errors`). Durations are float seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack, cast

import grpc

from niyama.client import convert, values
from niyama.client.connection import DEFAULT_SERVER, CallOptions, Connection
from niyama.client.errors import translate
from niyama.client.load import Load, from_load_response
from niyama.client.options import ConnectionOptions, GenerateOptions, Prompt, QosOptions
from niyama.client.streams import AsyncCall, AsyncStream, Stream
from niyama.v1 import inference_pb2_grpc

_OF_THE_CALL = {"timeout", "tenant"}  # not part of the message


Request = TypeVar("Request")
Response = TypeVar("Response")


def _split(
    options: GenerateOptions, connection: Connection
) -> tuple[dict[str, object], CallOptions]:
    """Returns the options of the request, and those of the call. Raises InvalidRequest."""
    others = {name: value for name, value in options.items() if name not in _OF_THE_CALL}
    call = connection.generate_options(options.get("tenant"), options.get("timeout"))
    return others, call


class AsyncClient:
    """A connection to a server.

    `niyama.client.options.ConnectionOptions` says what it takes: timeout, tenant, token, TLS,
    retries. Every call goes through the interceptors, the first of them first.

    async with AsyncClient("localhost:50051") as client:
        async for token in client.generate("Once upon", tier="interactive", max_tokens=64):
            print(token.text, end="")
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        **options: Unpack[ConnectionOptions],
    ) -> None:
        """Raises InvalidRequest for an address or an option that cannot hold."""
        self._connection = Connection(server, **options)
        self.server = self._connection.server
        credentials, chosen = self._connection.credentials, self._connection.channel_options
        self._channel = (
            grpc.aio.insecure_channel(server, chosen, interceptors=interceptors)
            if credentials is None
            else grpc.aio.secure_channel(server, credentials, chosen, interceptors=interceptors)
        )
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncStream:
        """Sends the request. Iterate over the result for its tokens.

        Raises InvalidRequest at once for arguments that make no request.
        """
        others, call = _split(options, self._connection)
        request = convert.to_stream_request(prompt, others)
        sent = cast(AsyncCall, self._stub.GenerateStream(request, **call))
        return AsyncStream(sent, request.sampling.n or 1)

    async def complete(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> values.Result:
        """Sends the request, and returns its whole output when that is complete."""
        others, call = _split(options, self._connection)
        request = convert.to_generate_request(prompt, others)
        response = await _answer(self._stub.Generate(request, **call))
        return convert.from_generate_response(response)

    async def server_info(self) -> values.ServerInfo:
        """Returns what the server says of itself: its model, tiers, policy and limits."""
        request = convert.to_info_request()
        call = self._connection.call_options()
        response = await _answer(self._stub.GetServerInfo(request, **call))
        return convert.from_info_response(response)

    async def load(self) -> Load:
        """Returns how loaded the server's engine is. Raises AccessDenied for who may not speak for
        others.
        """
        request = convert.to_load_request()
        response = await _answer(self._stub.GetLoad(request, **self._connection.call_options()))
        return from_load_response(response)

    async def count_tokens(self, prompt: Prompt) -> values.TokenCount:
        """Returns the tokens of a prompt, as the served model sees it."""
        request = convert.to_count_request(prompt)
        call = self._connection.call_options()
        response = await _answer(self._stub.CountTokens(request, **call))
        return convert.from_count_response(response)

    async def estimate(
        self,
        prompt_tokens: int,
        output_tokens: int = 0,
        **qos: Unpack[QosOptions],
    ) -> values.Estimate:
        """Says whether such a request, sent now, would meet its targets, without sending it.

        With `output_tokens` 0, the length of the output is guessed from the application's history.
        """
        request = convert.to_estimate_request(prompt_tokens, output_tokens, qos)
        call = self._connection.call_options()
        response = await _answer(self._stub.Estimate(request, **call))
        return convert.from_estimate_response(response)

    async def explain(self, request_id: str, tenant: str | None = None) -> values.Explanation:
        """Returns the story of a request of the recent past. Raises NotFound where it has been
        forgotten.

        Where several completions were asked for, each has its own: `ID/0` (which `ID` stands for),
        `ID/1`, and so on. `tenant` is the one whose request it is, if that is not the client's.
        With the operator's token, it may be left out where only one tenant has such an id.
        """
        request = convert.to_explain_request(request_id)
        response = await _answer(
            self._stub.Explain(request, **self._connection.explain_options(tenant))
        )
        return convert.from_explain_response(response)

    async def close(self) -> None:
        """Cancels what is in flight and closes the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


async def _answer(call: Awaitable[Response]) -> Response:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise translate(cast(grpc.Call, error)) from None


class Client:
    """A connection to a server, for code without an event loop. Threads may share it.

    `niyama.client.options.ConnectionOptions` says what it takes: timeout, tenant, token, TLS,
    retries. Every call goes through the interceptors, the first of them first.

    with Client("localhost:50051") as client:
        for token in client.generate("Once upon", tier="interactive", max_tokens=64):
            print(token.text, end="")
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        interceptors: Sequence[
            grpc.UnaryUnaryClientInterceptor[Any, Any] | grpc.UnaryStreamClientInterceptor[Any, Any]
        ] = (),
        **options: Unpack[ConnectionOptions],
    ) -> None:
        """Raises InvalidRequest for an address or an option that cannot hold."""
        self._connection = Connection(server, **options)
        self.server = self._connection.server
        credentials, chosen = self._connection.credentials, self._connection.channel_options
        self._channel = (
            grpc.insecure_channel(server, chosen)
            if credentials is None
            else grpc.secure_channel(server, credentials, chosen)
        )
        through = grpc.intercept_channel(self._channel, *interceptors)
        self._stub = inference_pb2_grpc.InferenceStub(through)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        """Sends the request. Iterate over the result for its tokens.

        Raises InvalidRequest at once for arguments that make no request.
        """
        others, call = _split(options, self._connection)
        request = convert.to_stream_request(prompt, others)
        return Stream(self._stub.GenerateStream(request, **call), request.sampling.n or 1)

    def complete(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> values.Result:
        """Sends the request, and returns its whole output when that is complete."""
        others, call = _split(options, self._connection)
        request = convert.to_generate_request(prompt, others)
        return convert.from_generate_response(_call(self._stub.Generate, request, call))

    def server_info(self) -> values.ServerInfo:
        """Returns what the server says of itself: its model, tiers, policy and limits."""
        request = convert.to_info_request()
        return convert.from_info_response(
            _call(self._stub.GetServerInfo, request, self._connection.call_options())
        )

    def load(self) -> Load:
        """Returns how loaded the server's engine is. Raises AccessDenied for who may not speak for
        others.
        """
        request = convert.to_load_request()
        return from_load_response(
            _call(self._stub.GetLoad, request, self._connection.call_options())
        )

    def count_tokens(self, prompt: Prompt) -> values.TokenCount:
        """Returns the tokens of a prompt, as the served model sees it."""
        request = convert.to_count_request(prompt)
        return convert.from_count_response(
            _call(self._stub.CountTokens, request, self._connection.call_options())
        )

    def estimate(
        self,
        prompt_tokens: int,
        output_tokens: int = 0,
        **qos: Unpack[QosOptions],
    ) -> values.Estimate:
        """Says whether such a request, sent now, would meet its targets, without sending it.

        With `output_tokens` 0, the length of the output is guessed from the application's history.
        """
        request = convert.to_estimate_request(prompt_tokens, output_tokens, qos)
        return convert.from_estimate_response(
            _call(self._stub.Estimate, request, self._connection.call_options())
        )

    def explain(self, request_id: str, tenant: str | None = None) -> values.Explanation:
        """Returns the story of a request of the recent past. Raises NotFound where it has been
        forgotten.

        Where several completions were asked for, each has its own: `ID/0` (which `ID` stands for),
        `ID/1`, and so on. `tenant` is the one whose request it is, if that is not the client's.
        With the operator's token, it may be left out where only one tenant has such an id.
        """
        request = convert.to_explain_request(request_id)
        return convert.from_explain_response(
            _call(self._stub.Explain, request, self._connection.explain_options(tenant))
        )

    def close(self) -> None:
        """Cancels what is in flight and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _call(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    call: CallOptions,
) -> Response:
    try:
        return method(request, **call)
    except grpc.RpcError as error:
        raise translate(cast(grpc.Call, error)) from None
