"""Client, the twin without an event loop: the same calls from an ordinary thread."""

import asyncio

import pytest

from niyama.client import Client, NotFound, Targets, Unavailable
from niyama.client.values import Relegated
from tests.client.little_server import LittleInference

WAIT_S = 10.0


async def test_tokens_come_one_by_one(address: str) -> None:
    def use() -> None:
        with Client(address) as client:
            stream = client.generate("one two", tier="interactive")
            assert [token.text for token in stream] == ["one ", "two "]
            assert stream.finished is not None
            assert stream.accepted is not None
            assert stream.accepted.targets.tier == "interactive"
            assert client.generate("a b").read() == "a b "
            events = list(client.generate("relegate me").events())
            assert isinstance(events[1], Relegated)
            assert events[1].expected_ttlt == 9

    await asyncio.to_thread(use)


async def test_breaking_out_of_the_loop_cancels_the_call(
    address: str, servicer: LittleInference
) -> None:
    def use() -> None:
        with Client(address) as client:
            for token in client.generate("stay here", request_id="left"):
                assert token.text == "here "
                break
            assert asyncio.run_coroutine_threadsafe(servicer.ended.get(), loop).result(WAIT_S) == (
                "left"
            )

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(use)


async def test_unary_calls(address: str) -> None:
    def use() -> None:
        with Client(address) as client:
            assert client.complete("one two").text == "one two "
            assert client.server_info().policy == "fcfs"
            assert client.load().demand == 0.5
            assert client.count_tokens("a b c").count == 3
            assert client.estimate(10, 15, ttlt=30.0).targets.targets == Targets(ttlt=30.0)
            assert client.explain("known").summary == "On time."
            with pytest.raises(NotFound):
                client.explain("unknown")

    await asyncio.to_thread(use)


async def test_a_failed_stream_raises_from_the_loop(address: str) -> None:
    def use() -> None:
        with Client(address) as client:
            stream = client.generate("die 2")
            with pytest.raises(Unavailable, match="engine was lost"):
                stream.read()
            assert stream.text == "x x "

    await asyncio.to_thread(use)
