"""Every gRPC status that the service uses becomes one exception, with what the caller needs."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import grpc
import pytest
from google.rpc import status_pb2

from niyama.client import (
    AsyncClient,
    InvalidRequest,
    NiyamaError,
    NotFound,
    QueueFull,
    RequestIdInUse,
    ServerError,
    TimedOut,
    Unavailable,
    WouldBeLate,
)
from niyama.client.errors import translate
from tests.client.little_server import LittleInference


async def test_an_invalid_request_names_its_field(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="too large") as caught:
        await client.generate("bad").read()
    assert caught.value.field == "sampling.top_p"
    assert caught.value.violations == (("sampling.top_p", "too large"), ("qos.tier", "unknown"))
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InvalidRequest) as caught:
        await client.complete("bad")
    assert caught.value.field == "sampling.top_p"


async def test_a_full_queue_says_when_to_retry(client: AsyncClient) -> None:
    with pytest.raises(QueueFull, match="the queue is full") as caught:
        await client.generate("full").read()
    assert caught.value.retry_after == 1.5
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (caught.value.reason, caught.value.about) == ("QUEUE_FULL", {"limit": "5"})


async def test_a_refusal_that_was_asked_for_is_told_apart(client: AsyncClient) -> None:
    with pytest.raises(WouldBeLate) as caught:
        await client.generate("late", refuse_if_late=True).read()
    assert isinstance(caught.value, QueueFull)
    assert (caught.value.reason, caught.value.retry_after) == ("WOULD_BE_LATE", 1.5)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("again", RequestIdInUse), ("bug", ServerError), ("die 1", Unavailable)],
)
async def test_other_statuses(
    client: AsyncClient, prompt: str, expected: type[NiyamaError]
) -> None:
    with pytest.raises(expected):
        await client.generate(prompt).read()


async def test_an_unknown_request_is_not_found(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="no request nobody"):
        await client.explain("nobody")


async def test_a_passed_timeout_is_a_timeout_error(
    client: AsyncClient, servicer: LittleInference
) -> None:
    stream = client.generate("stay here", timeout=1.0, request_id="late")
    with pytest.raises(TimedOut) as caught:
        await stream.read()
    assert isinstance(caught.value, TimeoutError)
    assert str(caught.value) == "the call was not over within its timeout"
    assert await asyncio.wait_for(servicer.ended.get(), 10) == "late"


async def test_a_stream_without_its_last_event_is_a_server_error(client: AsyncClient) -> None:
    with pytest.raises(ServerError, match="without its last event"):
        await client.generate("cut").read()
    with pytest.raises(ServerError, match="without its last event"):
        await client.generate("cut", n=2).read()


async def test_nobody_listening_is_unavailable() -> None:
    with socket.socket() as held:  # bound, not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        async with AsyncClient(f"127.0.0.1:{held.getsockname()[1]}", retries=False) as client:
            with pytest.raises(Unavailable):
                await client.server_info()


class Failed:
    """A failed call as gRPC itself ends it: without details of ours."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code, self.details = lambda: code, lambda: message
        self.trailing_metadata: Callable[[], tuple[tuple[str, bytes], ...]] = tuple


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("SERVER: Received message larger than max (5242894 vs. 4194304)", InvalidRequest),
        ("CLIENT: Sent message larger than max (5242894 vs. 4194304)", InvalidRequest),
        ("Decompressed message larger than max", InvalidRequest),
        ("received metadata size exceeds hard limit (20000 vs. 16384)", InvalidRequest),
        ("no more calls for you at the moment", QueueFull),
    ],
)
def test_what_grpc_itself_finds_too_large_is_no_full_queue(
    message: str, kind: type[NiyamaError]
) -> None:
    error = translate(cast(grpc.Call, Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, message)))
    assert type(error) is kind
    assert message in str(error)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("details", [b"\xff", status_pb2.Status(code=3).SerializeToString()])
def test_details_that_do_not_belong_to_the_status_are_left_aside(details: bytes) -> None:
    """A proxy may change the one and not the other."""
    failed = Failed(grpc.StatusCode.UNAVAILABLE, "gone")
    failed.trailing_metadata = lambda: (("grpc-status-details-bin", details),)
    error = translate(cast(grpc.Call, failed))
    assert type(error) is Unavailable
    assert (str(error), error.reason, error.retry_after) == ("gone", "", None)
