"""The official OpenAI client, through the real gateway, before two real replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from niyama.client.values import Explanation
from tests.gateway.fleet import BATCH, BATCH_MODEL, MODEL, Fleet, Replica, until
from tests.server.conftest import within

openai = pytest.importorskip("openai", reason="no openai: pip install openai")
pytestmark = pytest.mark.asyncio(loop_scope="session")
PROMPT = "And it came to pass"
TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
WHOLE = {"ignore_eos": True}  # an output is as long as was asked for
BACKLOG = 48  # calls: six for each sequence that may run
LONG = 4000  # tokens: more than a test looks at


@pytest_asyncio.fixture(loop_scope="session")
async def client(fleet: Fleet) -> AsyncIterator[Any]:
    """It does not try again: what is lost is to be seen."""
    async with openai.AsyncOpenAI(base_url=fleet.url, api_key="-", max_retries=0) as client:
        yield client


async def complete(client: Any, model: str = MODEL, max_tokens: int = 4, **more: Any) -> Any:
    asked = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=max_tokens, extra_body=WHOLE, **more
    )
    return await within(asked)


async def story(fleet: Fleet, request_id: str) -> tuple[Replica, Explanation]:
    return await asyncio.to_thread(fleet.story, request_id)


async def test_every_kind_of_call_is_answered(client: Any) -> None:
    models = {model.id async for model in client.models.list()}
    assert models == {MODEL, BATCH_MODEL}
    whole = await complete(client, n=2)
    assert [choice.finish_reason for choice in whole.choices] == ["length"] * 2
    assert whole.usage.completion_tokens == 8
    greedy = await complete(client, temperature=0)
    streamed = await complete(client, temperature=0, stream=True)
    parts = [chunk.choices[0].text async for chunk in streamed if chunk.choices]
    assert "".join(parts) == greedy.choices[0].text
    chat = {"model": MODEL, "max_tokens": 4, "temperature": 0, "extra_body": WHOLE}
    chat["messages"] = [{"role": "user", "content": "Who goes there?"}]
    answer = await within(client.chat.completions.create(**chat))
    said = await within(client.chat.completions.create(**chat, stream=True))
    deltas = [chunk.choices[0].delta.content or "" async for chunk in said if chunk.choices]
    assert "".join(deltas) == answer.choices[0].message.content != ""


@pytest.mark.parametrize(
    ("said", "tier", "reason"),
    [
        ({}, "standard", ""),
        ({"extra_headers": {"x-qos": "interactive"}}, "interactive", "request id"),
        ({"extra_headers": {"x-request-id": "batch"}}, "batch", "request id"),
        ({"extra_headers": {"x-qos": "ttft=9000;tbt=900"}}, "", "request id"),
        ({"extra_headers": TRACE | {"tracestate": "niyama=batch"}}, "batch", "tracestate"),
        ({"model": BATCH_MODEL}, "batch", "tier port"),
        ({"model": BATCH_MODEL, "extra_headers": {"x-qos": "standard"}}, "standard", "request id"),
        ({"user": "batch", "extra_headers": {"x-smg-priority": "batch"}}, "standard", ""),
    ],
)
async def test_this_much_of_what_a_client_says_reaches_the_record(
    fleet: Fleet, client: Any, said: dict[str, Any], tier: str, reason: str
) -> None:
    answer = await complete(client, **said)
    _, told = await story(fleet, answer.id)
    assert (told.targets.tier, told.targets.reason) == (tier, reason)
    assert told.targets.source == ("gateway" if reason else "default")


async def test_at_overload_the_interactive_client_is_on_time_and_the_batch_waits(
    fleet: Fleet, client: Any
) -> None:
    """First come, first served would begin every call of the batch before."""

    def num_waiting() -> list[int]:
        return [replica.num_waiting("batch") for replica in fleet.replicas]

    batch = [asyncio.create_task(complete(client, BATCH_MODEL, 96)) for _ in range(BACKLOG)]
    await asyncio.to_thread(until, lambda: min(num_waiting()) >= 3 * BATCH, "a queue at both")
    hurried = {"x-qos": "interactive;importance=high"}
    chats = [complete(client, max_tokens=8, extra_headers=hurried) for _ in range(BATCH)]
    interactive = await asyncio.gather(*chats)
    assert min(await asyncio.to_thread(num_waiting)) > 0
    for answer in interactive:
        _, told = await story(fleet, answer.id)
        assert (told.targets.tier, told.result) == ("interactive", "on_time"), told.summary
    for answer in await asyncio.gather(*batch):
        assert answer.choices[0].finish_reason == "length"
        assert (await story(fleet, answer.id))[1].targets.tier == "batch"


async def drained(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_replica_that_dies_costs_its_streams_alone_and_comes_back(
    fleet: Fleet, client: Any
) -> None:
    streams, firsts, homes = [], [], []
    while set(homes) != set(fleet.replicas):
        assert len(streams) < BATCH  # more might wait for one another
        streams.append(await complete(client, max_tokens=LONG, stream=True))
        firsts.append(await within(anext(streams[-1])))
        homes.append((await story(fleet, firsts[-1].id))[0])
    lost = fleet.replicas[0]
    unary = [asyncio.create_task(complete(client, max_tokens=400)) for _ in range(2 * BATCH)]
    few = homes.count(lost)
    await asyncio.to_thread(until, lambda: lost.num_running("standard") > few, "answers are made")
    await asyncio.to_thread(lost.kill)
    for stream, first, home in zip(streams, firsts, homes, strict=True):
        if home is lost:
            with pytest.raises(openai.APIError):
                await within(drained(stream))
        else:
            told = await asyncio.to_thread(home.story, first.id)
            assert told is not None
            assert not told.result  # it goes on
            await stream.close()
    for answer in await asyncio.gather(*unary, *(complete(client) for _ in range(2 * BATCH))):
        assert answer.choices[0].finish_reason == "length"

    await asyncio.to_thread(lost.start)
    await asyncio.to_thread(lost.process.wait_ready)
    is_back = False
    while not is_back:
        answer = await complete(client)
        is_back = (await story(fleet, answer.id))[0] is lost
