"""The client on the real server: one seed gives one text, however it is asked for."""

import asyncio

import pytest

from niyama.client import AsyncClient, Client, InvalidRequest
from tests.server_process import ServerProcess

PROMPT = "And it came to pass"


async def test_streams_and_unary_calls_give_the_same_text_for_a_seed(
    server: ServerProcess,
) -> None:
    async with AsyncClient(server.address) as client:
        stream = client.generate(PROMPT, tier="interactive", seed=5, max_tokens=24)
        streamed = "".join([tokens.text async for tokens in stream])
        whole = await client.complete(PROMPT, seed=5, max_tokens=24)
        assert streamed == stream.text == whole.text
        assert stream.finished is not None
        assert 0 < stream.finished.usage.output_tokens <= 24
        assert {target.name for target in stream.finished.targets} == {"ttft", "tbt"}
        assert stream.timings is not None
        assert stream.timings.ttft is not None
        assert stream.accepted is not None
        assert stream.accepted.prompt_tokens == (await client.count_tokens(PROMPT)).count

    def in_a_thread() -> str:
        with Client(server.address) as client:
            return client.generate(PROMPT, seed=5, max_tokens=24).read()

    assert await asyncio.to_thread(in_a_thread) == streamed


async def test_explicit_targets_are_what_the_request_is_served_with(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        stream = client.generate(PROMPT, ttlt=30.0, max_tokens=4, importance="low")
        await stream.read()
        assert stream.accepted is not None
        assert stream.accepted.targets.targets.ttlt == 30.0
        assert stream.accepted.targets.source == "request"
        assert stream.accepted.targets.importance.value == "low"


async def test_the_servers_errors_arrive_as_the_clients(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.generate(PROMPT, tier="nowhere").read()
        assert caught.value.field == "qos.tier"


async def test_a_message_beyond_the_limit_is_invalid_and_not_a_full_queue(
    server: ServerProcess,
) -> None:
    """Whoever retries what is too large would do so for ever."""
    text = "x" * 5_000_000
    async with AsyncClient(server.address) as client:
        limit = str((await client.server_info()).limits.max_message_bytes)
        for call in (
            client.generate(text).read(),
            client.complete(text),
            client.count_tokens(text),
        ):
            with pytest.raises(InvalidRequest, match=limit):
                await call
    with Client(server.address) as client, pytest.raises(InvalidRequest, match=limit):
        await asyncio.to_thread(client.complete, text)


async def test_more_wrong_fields_than_a_status_can_carry_are_still_invalid(
    server: ServerProcess,
) -> None:
    """Ninety violations once made trailers above gRPC's limit: RESOURCE_EXHAUSTED."""
    async with AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequest, match="and 74 more") as caught:
            await client.complete(PROMPT, stop_token_ids=[99999] * 90)
        assert caught.value.field == "sampling.stop_token_ids[0]"


async def test_a_message_is_measured_as_it_is_decompressed(server: ServerProcess) -> None:
    """One of a few kilobytes may become any number of megabytes."""
    options = (("grpc.default_compression_algorithm", 2),)  # gzip
    async with AsyncClient(server.address, channel_options=options) as client:
        assert (await client.count_tokens(PROMPT)).count
        with pytest.raises(InvalidRequest, match="larger than max"):
            await client.complete("x" * (16 << 20))
