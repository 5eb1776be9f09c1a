"""The two clients: AsyncClient for code with an event loop, Client for code without.

Both have the same methods with the same arguments (`options` states them), send one call per method
and translate its errors (`errors`). Durations are float seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import TypedDict, TypeVar, Unpack, cast

import grpc

from niyama.client import address, arguments, convert, values
from niyama.client.errors import translate
from niyama.client.options import GenerateOptions, Prompt, QosOptions
from niyama.client.streams import AsyncCall, AsyncStream, Stream
from niyama.v1 import inference_pb2_grpc

DEFAULT_SERVER = "localhost:50051"
DEFAULT_TIMEOUT_S = 10.0  # of the calls that generate nothing

_OF_THE_CALL = {"timeout", "tenant"}  # not part of the message

ChannelOptions = Sequence[tuple[str, object]]
Response = TypeVar("Response")


def _channel_options(given: ChannelOptions) -> list[tuple[str, object]]:
    # A queue can be long: notice a dead peer by pings, not by the absence of tokens. The interval
    # is the shortest that a gRPC server allows by default (5 minutes), or its ping strikes add up.
    return [
        ("grpc.keepalive_time_ms", 300_000),
        ("grpc.max_receive_message_length", -1),
        *given,
    ]


class _CallOptions(TypedDict):
    """The arguments that gRPC takes beside a message."""

    timeout: float | None
    metadata: tuple[tuple[str, str], ...] | None


def _call_options(tenant: str, timeout: float | None) -> _CallOptions:
    """Returns the options of a call. Raises InvalidRequest for a tenant that cannot be sent, and
    for a timeout that is none.
    """
    return _CallOptions(timeout=arguments.timeout(timeout), metadata=convert.to_metadata(tenant))


def _operator_options(tenant: str | None, timeout: float | None, token: str | None) -> _CallOptions:
    """Returns the options of `explain`. With a token, it asks for the request of the tenant that is
    named, or of any tenant where none is.
    """
    metadata = convert.to_operator_metadata(tenant, token)
    return _CallOptions(timeout=arguments.timeout(timeout), metadata=metadata)


def _split(options: GenerateOptions, tenant: str) -> tuple[dict[str, object], _CallOptions]:
    """Returns the options of the request, and those of the call. `tenant` is the client's, for a
    call that names none.
    """
    others = {name: value for name, value in options.items() if name not in _OF_THE_CALL}
    named = options.get("tenant")
    return others, _call_options(tenant if named is None else named, options.get("timeout"))


class AsyncClient:
    """A connection to a server.

    `timeout` (seconds; None for no limit) holds for the calls that generate nothing. All calls are
    made on behalf of `tenant`. With `token`, the operator's, `explain` tells of any tenant's
    requests.

    async with AsyncClient("localhost:50051") as client:
        async for token in client.generate("Once upon", tier="interactive", max_tokens=64):
            print(token.text, end="")
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        tenant: str = "",
        token: str | None = None,
        channel_options: ChannelOptions = (),
    ) -> None:
        """Raises InvalidRequest for an address, a tenant, a timeout or a token that is none."""
        self.server = address.check(server)
        self._tenant = tenant
        self._timeout, self._token = timeout, token
        self._other = _call_options(tenant, timeout)  # for the calls that generate nothing
        if token is not None:
            arguments.token(token)
        self._channel = grpc.aio.insecure_channel(server, options=_channel_options(channel_options))
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncStream:
        """Sends the request. Iterate over the result for its tokens.

        Raises InvalidRequest at once for arguments that make no request.
        """
        others, call = _split(options, self._tenant)
        request = convert.to_stream_request(prompt, others)
        sent = cast(AsyncCall, self._stub.GenerateStream(request, **call))
        return AsyncStream(sent, request.sampling.n or 1)

    async def complete(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> values.Result:
        """Sends the request, and returns its whole output when that is complete."""
        others, call = _split(options, self._tenant)
        request = convert.to_generate_request(prompt, others)
        response = await _answer(self._stub.Generate(request, **call))
        return convert.from_generate_response(response)

    async def server_info(self) -> values.ServerInfo:
        """Returns what the server says of itself: its model, tiers, policy and limits."""
        request = convert.to_info_request()
        response = await _answer(self._stub.GetServerInfo(request, **self._other))
        return convert.from_info_response(response)

    async def count_tokens(self, prompt: Prompt) -> values.TokenCount:
        """Returns the tokens of a prompt, as the served model sees it."""
        request = convert.to_count_request(prompt)
        response = await _answer(self._stub.CountTokens(request, **self._other))
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
        response = await _answer(self._stub.Estimate(request, **self._other))
        return convert.from_estimate_response(response)

    async def explain(self, request_id: str, tenant: str | None = None) -> values.Explanation:
        """Returns the story of a request of the recent past. Raises NotFound where it has been
        forgotten.

        Where several completions were asked for, each has its own: `ID/0` (which `ID` stands for),
        `ID/1`, and so on. `tenant` is the one whose request it is, if that is not the client's.
        With the operator's token, it may be left out where only one tenant has such an id.
        """
        request = convert.to_explain_request(request_id)
        response = await _answer(self._stub.Explain(request, **self._to_explain(tenant)))
        return convert.from_explain_response(response)

    def _to_explain(self, tenant: str | None) -> _CallOptions:
        own = self._tenant or None
        return _operator_options(own if tenant is None else tenant, self._timeout, self._token)

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

    `timeout` (seconds; None for no limit) holds for the calls that generate nothing. All calls are
    made on behalf of `tenant`. With `token`, the operator's, `explain` tells of any tenant's
    requests.

    with Client("localhost:50051") as client:
        for token in client.generate("Once upon", tier="interactive", max_tokens=64):
            print(token.text, end="")
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        tenant: str = "",
        token: str | None = None,
        channel_options: ChannelOptions = (),
    ) -> None:
        """Raises InvalidRequest for an address, a tenant, a timeout or a token that is none."""
        self.server = address.check(server)
        self._tenant = tenant
        self._timeout, self._token = timeout, token
        self._other = _call_options(tenant, timeout)  # for the calls that generate nothing
        if token is not None:
            arguments.token(token)
        self._channel = grpc.insecure_channel(server, options=_channel_options(channel_options))
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        """Sends the request. Iterate over the result for its tokens.

        Raises InvalidRequest at once for arguments that make no request.
        """
        others, call = _split(options, self._tenant)
        request = convert.to_stream_request(prompt, others)
        return Stream(self._stub.GenerateStream(request, **call), request.sampling.n or 1)

    def complete(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> values.Result:
        """Sends the request, and returns its whole output when that is complete."""
        others, call = _split(options, self._tenant)
        request = convert.to_generate_request(prompt, others)
        return convert.from_generate_response(_call(self._stub.Generate, request, call))

    def server_info(self) -> values.ServerInfo:
        """Returns what the server says of itself: its model, tiers, policy and limits."""
        request = convert.to_info_request()
        return convert.from_info_response(_call(self._stub.GetServerInfo, request, self._other))

    def count_tokens(self, prompt: Prompt) -> values.TokenCount:
        """Returns the tokens of a prompt, as the served model sees it."""
        request = convert.to_count_request(prompt)
        return convert.from_count_response(_call(self._stub.CountTokens, request, self._other))

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
        return convert.from_estimate_response(_call(self._stub.Estimate, request, self._other))

    def explain(self, request_id: str, tenant: str | None = None) -> values.Explanation:
        """Returns the story of a request of the recent past. Raises NotFound where it has been
        forgotten.

        Where several completions were asked for, each has its own: `ID/0` (which `ID` stands for),
        `ID/1`, and so on. `tenant` is the one whose request it is, if that is not the client's.
        With the operator's token, it may be left out where only one tenant has such an id.
        """
        request = convert.to_explain_request(request_id)
        return convert.from_explain_response(
            _call(self._stub.Explain, request, self._to_explain(tenant))
        )

    def _to_explain(self, tenant: str | None) -> _CallOptions:
        own = self._tenant or None
        return _operator_options(own if tenant is None else tenant, self._timeout, self._token)

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


Request = TypeVar("Request")


def _call(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    call: _CallOptions,
) -> Response:
    try:
        return method(request, **call)
    except grpc.RpcError as error:
        raise translate(cast(grpc.Call, error)) from None
