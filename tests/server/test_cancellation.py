"""Whoever leaves frees what they held, and the server does not mind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from niyama.v1 import inference_pb2 as pb
from tests.server.conftest import BATCH, Running, within

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = 4000  # tokens: more than the tests wait for
# The first that is long enough for this machine; far too short for LONG tokens all the same.
DEADLINES_S = [0.3 * 2**i for i in range(8)]


def asked(max_tokens: int = LONG, kind: type = pb.GenerateStreamRequest) -> object:
    sampling = pb.Sampling(seed=1, max_tokens=max_tokens, ignore_eos=True)
    return kind(input=pb.Input(text="Once"), sampling=sampling)


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def nothing_is_left(running: Running) -> AsyncIterator[None]:
    """After each test: all pages free, nothing in flight, health SERVING."""
    yield
    await within(running.service.calls.idle.wait())
    stats = await running.stats()
    assert stats.pages_free == stats.pages_total
    assert stats.num_waiting == stats.num_running == 0
    assert len(running.server.engine.link.in_flight) == 0
    assert await running.status() == "SERVING"


def outcome(running: Running, name: str) -> float:
    counter = running.metrics.rpcs.labels("GenerateStream", name)
    return counter._value.get()


async def started(running: Running) -> grpc.aio.UnaryStreamCall:
    """A stream that has sent tokens."""
    call = running.stub.GenerateStream(asked())
    while not (await within(call.read())).HasField("tokens"):
        pass
    return call


async def test_a_client_that_disconnects_mid_stream_frees_its_pages(running: Running) -> None:
    before = await running.stats()
    call = await started(running)
    assert (await running.stats()).pages_free < before.pages_total
    call.cancel()
    await within(running.service.calls.idle.wait())
    # The cancellation was posted before this question, so one turn of the loop sees both.
    after = await running.stats()
    assert after.pages_free == after.pages_total
    assert after.totals.decode_tokens - before.totals.decode_tokens < LONG - 1


async def test_a_vanished_connection_counts_as_leaving(running: Running) -> None:
    address = f"127.0.0.1:{running.server.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        method = "/niyama.v1.Inference/GenerateStream"
        call = channel.unary_stream(method, pb.GenerateStreamRequest.SerializeToString)(asked())
        await within(call.read())
    await within(running.service.calls.idle.wait())
    assert (await running.stats()).num_running == 0


async def test_a_unary_caller_that_leaves_frees_its_pages(running: Running) -> None:
    call = running.stub.Generate(asked(kind=pb.GenerateRequest))
    sending = asyncio.ensure_future(call)
    await running.until(lambda stats: stats.num_running == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(sending)


async def overtaken(running: Running, request: pb.GenerateStreamRequest, event: str) -> None:
    """Sends it with the first of DEADLINES_S that lets this event come before the deadline."""
    for timeout_s in DEADLINES_S:
        heard: set[str] = set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await within(listen(running.stub.GenerateStream(request, timeout=timeout_s), heard))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # The server may hear of the deadline a little later than its client.
        await running.until(lambda stats: not running.server.engine.link.has(request.request_id))
        if event in heard:
            return
    raise AssertionError(f"no {event} within {DEADLINES_S[-1]} s")


async def listen(call: grpc.aio.UnaryStreamCall, heard: set[str]) -> None:
    async for message in call:
        heard.add(message.WhichOneof("event"))


async def last_words(running: Running, request_id: str) -> tuple[set[str], str]:
    """The kinds of decisions on a request that has ended, and how it ended."""
    story = await within(running.stub.Explain(pb.ExplainRequest(request_id=request_id)))
    assert story.decisions[-1].kind == "finished"
    return {decision.kind for decision in story.decisions}, story.summary


async def test_a_deadline_while_decoding_ends_the_request(running: Running) -> None:
    request, late = asked(), outcome(running, "DEADLINE_EXCEEDED")
    request.request_id = "overtaken"
    await overtaken(running, request, "tokens")
    await within(running.service.calls.idle.wait())
    assert outcome(running, "DEADLINE_EXCEEDED") > late
    kinds, summary = await last_words(running, "overtaken")
    assert "first_token" in kinds
    assert re.match(r"Expired: its deadline of \d+ ms passed after \d+ tokens\.", summary)


async def test_a_deadline_while_queued_ends_the_request(running: Running) -> None:
    """A full batch of long streams ahead; the fifth never computes anything."""
    ahead = [await started(running) for _ in range(BATCH)]
    request = asked()
    request.request_id = "queued"
    await overtaken(running, request, "accepted")
    stats = await running.stats()
    assert (stats.num_waiting, stats.num_running) == (0, BATCH)
    kinds, summary = await last_words(running, "queued")
    assert not kinds & {"chunk", "first_token"}
    assert re.match(r"Expired: its deadline of \d+ ms passed while it waited\. Of its", summary)
    for call in ahead:
        call.cancel()


async def test_of_several_completions_all_are_freed(running: Running) -> None:
    request = asked()
    request.sampling.n = BATCH
    call = running.stub.GenerateStream(request)
    await running.until(lambda stats: stats.num_running == BATCH)
    call.cancel()


async def test_a_storm_of_cancellations_leaves_nothing(running: Running) -> None:
    """Cancelled at every stage: before the server saw them, queued, and decoding."""
    for round_ in range(3):
        calls = [running.stub.GenerateStream(asked()) for _ in range(2 * BATCH)]
        for index, call in enumerate(calls):
            if index % 3 <= round_:
                await within(call.read())
            call.cancel()
        await within(running.service.calls.idle.wait())
