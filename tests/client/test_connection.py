"""How a client reaches its server: tokens, what is tried again, what calls pass through."""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from niyama.client import (
    AsyncClient,
    Client,
    InvalidRequest,
    QueueFull,
    Unavailable,
    connection,
)
from niyama.client.address import is_local
from niyama.v1 import inference_pb2 as pb
from tests.client.little_server import LittleInference

ELSEWHERE = "niyama.example:50051"


async def use_all(client: AsyncClient) -> None:
    """Makes a call of each kind."""
    await client.generate("one").read()
    await client.complete("one")
    await client.server_info()
    await client.load()
    await client.count_tokens("one")
    await client.estimate(1)
    await client.explain("known")


async def test_a_token_goes_with_every_call(address: str, servicer: LittleInference) -> None:
    async with AsyncClient(address, token="word") as client:
        await use_all(client)
    assert servicer.tokens == ["Bearer word"] * 6


async def test_a_file_is_read_again_when_it_changes(
    address: str, servicer: LittleInference, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    async with AsyncClient(address, token=path) as client:
        await client.server_info()
        path.write_text("second\n")
        await client.server_info()
        other = tmp_path / "other"
        other.write_text("third1\n")
        os.utime(other, ns=(0, path.stat().st_mtime_ns))
        other.replace(path)
        await client.generate("one").read()
        path.write_text("two words")
        with pytest.raises(InvalidRequest, match=f"token file {path}: a token is one word"):
            await client.server_info()
        path.unlink()
        with pytest.raises(InvalidRequest, match=f"token file {path}: No such file") as caught:
            client.generate("one")
        assert caught.value.field == "token"
        path.write_text("fourth")
        await client.server_info()
    assert servicer.tokens == [f"Bearer {word}" for word in ("first", "second", "third1", "fourth")]


async def test_a_function_is_asked_for_each_call(address: str, servicer: LittleInference) -> None:
    words = iter(("one", "two", "not sent"))
    async with AsyncClient(address, token=lambda: next(words)) as client:
        await client.server_info()
        with pytest.raises(InvalidRequest, match="a token is one word"):
            [await client.server_info() for _ in range(2)]
    assert servicer.tokens == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("make", [AsyncClient, Client])
async def test_a_token_is_not_sent_unencrypted_to_another_machine(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret")
    for token in ("secret", tmp_path / "token", lambda: "secret"):
        with pytest.raises(InvalidRequest, match=f"not sent unencrypted to {ELSEWHERE}") as caught:
            make(ELSEWHERE, token=token)
        assert caught.value.field == "token"
        assert "secret" not in str(caught.value)
    for allowed in ({"allow_plaintext": True}, {"tls": True}):
        client = make(ELSEWHERE, token="secret", **allowed)
        if isinstance(client, AsyncClient):
            await client.close()
        else:
            client.close()


HERE = [
    *("localhost:1", "LOCALHOST:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "ipv4:127.0.0.1:1"),
    *("ipv6:[::1]:1", "dns:localhost:1", "dns:///localhost:1", "unix:/s", "unix-abstract:s"),
]
NOT_HERE = [
    *("10.0.0.1:1", "0.0.0.0:1", "localhost.example:1", "127.0.0.1.example:1", "[fe80::1]:1"),
    *("xds:localhost:1", "dns://1.1.1.1/localhost:1", "vsock:1:1", "ipv4:127.0.0.1:1,10.0.0.1:1"),
]


@pytest.mark.parametrize("server", [*HERE, *NOT_HERE])
def test_which_addresses_are_this_machine(server: str) -> None:
    assert is_local(server) is (server in HERE)


@pytest.mark.parametrize("scheme", ["", "dns:///", "ipv4:"])
async def test_what_is_sent_to_this_machine_takes_no_proxy(
    address: str, servicer: LittleInference, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """The environment's proxy may be anywhere, and would read a token that is not encrypted."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        async with AsyncClient(f"{scheme}{address}", token="word") as client:
            await client.server_info()
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert servicer.tokens == ["Bearer word"]


def test_an_option_that_there_is_none_of_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unknown argument: tsl"):
        Client("localhost:1", tsl=True)  # type: ignore[call-arg]
    with pytest.raises(InvalidRequest, match="retries is true or false"):
        Client("localhost:1", retries="no")  # type: ignore[arg-type]


# Retries


async def test_what_found_no_server_is_tried_again(
    client: AsyncClient, servicer: LittleInference
) -> None:
    servicer.num_away = 1
    assert (await client.server_info()).policy == "fcfs"
    assert servicer.num_away == 0


@pytest.mark.parametrize("prompt", ["one two", "x" * 3_000_000])
async def test_what_is_refused_for_the_moment_is_tried_again_when_the_server_says(
    client: AsyncClient, servicer: LittleInference, prompt: str
) -> None:
    """Also a message that is larger than gRPC keeps by itself."""
    servicer.pushbacks = ["1", "1"]
    stream = client.generate(prompt)
    assert await stream.read() == f"{prompt} "
    assert len(servicer.requests) == 3
    servicer.pushbacks = ["1", "1"]
    assert (await client.complete(prompt)).text == f"{prompt} "


async def test_what_is_refused_for_good_is_not_tried_again(
    client: AsyncClient, servicer: LittleInference
) -> None:
    servicer.pushbacks = ["-1"]
    with pytest.raises(QueueFull, match="not now"):
        await client.generate("one").read()
    assert len(servicer.requests) == 1


async def test_a_stream_that_has_begun_is_not_tried_again(
    client: AsyncClient, servicer: LittleInference
) -> None:
    stream = client.generate("die 1")
    with pytest.raises(Unavailable, match="the engine was lost"):
        await stream.read()
    assert stream.text == "x "
    assert len(servicer.requests) == 1


async def test_retries_may_be_turned_off(address: str, servicer: LittleInference) -> None:
    servicer.pushbacks = ["1"]
    servicer.num_away = 1
    async with AsyncClient(address, retries=False) as client:
        with pytest.raises(QueueFull):
            await client.generate("one").read()
        with pytest.raises(Unavailable):
            await client.server_info()

    def in_a_thread() -> None:
        with Client(address, retries=False) as twin, pytest.raises(QueueFull):
            twin.complete("one")

    servicer.pushbacks = ["1"]
    await asyncio.to_thread(in_a_thread)


async def test_a_service_config_of_ones_own_holds_instead(
    address: str, servicer: LittleInference
) -> None:
    servicer.num_away = 1
    mine = (("grpc.service_config", "{}"),)
    async with AsyncClient(address, channel_options=mine) as client:
        with pytest.raises(Unavailable):
            await client.server_info()


def test_the_policy_is_of_the_service() -> None:
    """gRPC for Python says nothing of a name that no service has."""
    (method,) = json.loads(connection.SERVICE_CONFIG)["methodConfig"]
    service = pb.DESCRIPTOR.services_by_name["Inference"].full_name
    assert method["name"] == [{"service": service}]


# Interceptors


class NoteUnary(grpc.aio.UnaryUnaryClientInterceptor):
    """Notes the methods of the calls that pass through it, and adds to what they show."""

    def __init__(self, methods: list[str]) -> None:
        self.methods = methods

    async def intercept_unary_unary(self, go_on: Any, details: Any, request: Any) -> Any:
        self.methods.append(details.method.decode())
        details.metadata.add("niyama-tenant", "intercepted")
        return await go_on(details, request)


class NoteStream(grpc.aio.UnaryStreamClientInterceptor):
    """The same, of calls that stream."""

    def __init__(self, methods: list[str]) -> None:
        self.methods = methods

    async def intercept_unary_stream(self, go_on: Any, details: Any, request: Any) -> Any:
        self.methods.append(details.method.decode())
        return await go_on(details, request)


class Note(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """The same for code without an event loop, which takes one of both kinds."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    def intercept_unary_unary(self, go_on: Any, details: Any, request: Any) -> Any:
        self.methods.append(details.method)
        return go_on(details, request)

    intercept_unary_stream = intercept_unary_unary


METHODS = [
    *("GenerateStream", "Generate", "GetServerInfo", "GetLoad", "CountTokens", "Estimate"),
    "Explain",
]


async def test_calls_pass_through_interceptors(address: str, servicer: LittleInference) -> None:
    methods: list[str] = []
    chain = (NoteUnary(methods), NoteStream(methods))
    async with AsyncClient(address, tenant="", token="word", interceptors=chain) as client:
        await use_all(client)
        with pytest.raises(InvalidRequest) as caught:
            await client.generate("bad").read()
        assert caught.value.field == "sampling.top_p"
        stream = client.generate("stay here", request_id="left")
        async with stream:
            async for _ in stream:
                break
    ended = [await asyncio.wait_for(servicer.ended.get(), 10) for _ in range(3)]
    assert ended[-1] == "left"
    service = "/niyama.v1.Inference/"
    assert methods == [service + name for name in (*METHODS, "GenerateStream", "GenerateStream")]
    assert servicer.tenants[:3] == ["", "intercepted", "intercepted"]
    assert servicer.tokens[:2] == ["Bearer word"] * 2


async def test_calls_of_a_thread_pass_through_interceptors(
    address: str, servicer: LittleInference
) -> None:
    note = Note()

    def in_a_thread() -> None:
        with Client(address, interceptors=[note]) as client:
            assert client.generate("one two").read() == "one two "
            assert client.complete("one").text == "one "
            with pytest.raises(InvalidRequest) as caught:
                client.generate("bad").read()
            assert caught.value.field == "sampling.top_p"
            for _ in client.generate("stay here", request_id="left"):
                break

    await asyncio.to_thread(in_a_thread)
    ended = [await asyncio.wait_for(servicer.ended.get(), 10) for _ in range(3)]
    assert ended[-1] == "left"
    assert [name.rpartition("/")[2] for name in note.methods] == [
        *("GenerateStream", "Generate", "GenerateStream", "GenerateStream")
    ]
