"""AsyncClient against a real grpc.aio server: what is sent, what comes back, what is cancelled."""

import asyncio
import gc

import pytest

from niyama.client import AsyncClient, FinishReason, Importance, Targets
from niyama.client.load import Memory as MemoryLoad
from niyama.client.load import Outlook, Rates, Speeds, TierLoad, Work
from niyama.client.values import (
    Accepted,
    Finished,
    Relegated,
    SamplingDefaults,
    TargetResult,
    TimeBudget,
    Tokens,
    WorkAhead,
)
from tests.client.little_server import LittleInference

WAIT_S = 10.0


async def ended_id(servicer: LittleInference) -> str:
    return await asyncio.wait_for(servicer.ended.get(), WAIT_S)


async def test_tokens_come_one_by_one_and_the_stream_knows_the_rest(client: AsyncClient) -> None:
    stream = client.generate("one two three", tier="interactive", request_id="mine")
    texts = [token.text async for token in stream]
    assert texts == ["one ", "two ", "three "]
    assert stream.text == "one two three "
    assert stream.request_id == "mine"
    assert stream.accepted is not None
    assert stream.accepted.targets.targets == Targets(ttft=0.5, tbt=0.05)
    assert stream.accepted.forecast is not None
    assert stream.accepted.forecast.ttft == 0.001
    assert stream.accepted.forecast.ttlt is None
    assert stream.finished is not None
    assert stream.finished.reason is FinishReason.LENGTH
    assert stream.finished.usage.output_tokens == 3
    assert stream.timings is not None
    assert stream.timings.worst_tbt == 0.06
    assert stream.finished.targets == (
        TargetResult("ttft", 0.5, 0.002, True),
        TargetResult("tbt", 0.05, 0.06, False),
    )
    assert stream.on_time is False


async def test_read_returns_the_whole_text(client: AsyncClient) -> None:
    assert await client.generate("one two").read() == "one two "


async def test_several_completions_keep_their_own_text(client: AsyncClient) -> None:
    stream = client.generate("a b", n=2)
    indices = [token.index async for token in stream]
    assert indices == [0, 1, 0, 1]
    assert (stream.text_of(0), stream.text_of(1)) == ("a b ", "a b ")
    assert sorted(stream.completions) == [0, 1]


async def test_several_completions_are_on_time_or_late_when_the_last_has_ended(
    client: AsyncClient,
) -> None:
    stream = client.generate("a b", n=3)
    ended = [stream.on_time async for event in stream.events() if isinstance(event, Finished)]
    assert ended == [None, None, False]


async def test_every_event_can_be_had_in_its_order(client: AsyncClient) -> None:
    stream = client.generate("relegate me")
    kinds = [type(event) async for event in stream.events()]
    assert kinds == [Accepted, Relegated, *[Tokens] * 2, Finished]
    assert stream.text == "relegate me "


async def test_a_relegation_is_told_and_the_stream_goes_on(client: AsyncClient) -> None:
    stream = client.generate("relegate me")
    assert await stream.read() == "relegate me "
    assert [(each.reason, each.expected_ttlt) for each in stream.relegations] == [
        ("a long queue", 9.0)
    ]


async def test_breaking_out_of_the_loop_cancels_the_call(
    client: AsyncClient, servicer: LittleInference
) -> None:
    stream = client.generate("stay here", request_id="left")
    async for token in stream:
        assert token.text == "here "
        break
    assert await ended_id(servicer) == "left"
    assert stream.text == "here "


async def test_an_exception_in_the_loop_cancels_the_call(
    client: AsyncClient, servicer: LittleInference
) -> None:
    async def consume() -> None:
        async for _ in client.generate("stay here", request_id="raised"):
            raise KeyError

    with pytest.raises(KeyError):
        await consume()
    gc.collect()
    assert await ended_id(servicer) == "raised"


async def test_cancelling_the_task_cancels_the_call(
    client: AsyncClient, servicer: LittleInference
) -> None:
    first = asyncio.Event()

    async def consume() -> None:
        async for _ in client.generate("stay here", request_id="dropped"):
            first.set()

    task = asyncio.create_task(consume())
    await asyncio.wait_for(first.wait(), WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ended_id(servicer) == "dropped"


async def test_leaving_the_with_block_cancels_the_call(
    client: AsyncClient, servicer: LittleInference
) -> None:
    async with client.generate("stay here", request_id="closed") as stream:
        async for _ in stream:
            break
    assert await ended_id(servicer) == "closed"


async def test_complete_answers_once(client: AsyncClient) -> None:
    result = await client.complete("one two", request_id="whole")
    assert (result.request_id, result.text) == ("whole", "one two ")
    assert result.completions[0].token_ids == (1, 2)
    assert result.finished.usage.output_tokens == 2


async def test_server_info_names_model_tiers_and_limits(client: AsyncClient) -> None:
    info = await client.server_info()
    assert (info.model.name, info.model.vocabulary_size) == ("little", 1000)
    assert [tier.name for tier in info.tiers] == ["interactive", "standard", "batch"]
    interactive = info.tier("interactive")
    assert interactive is not None
    assert interactive.targets == Targets(ttft=0.5, tbt=0.05)
    assert interactive.importance is Importance.HIGH
    assert info.tier("nothing") is None
    assert info.limits.max_requests == 100
    assert info.sampling == SamplingDefaults(0.25, 3, 1.0, 0.0, 1.5, 128)


async def test_load_is_told_tier_by_tier(client: AsyncClient) -> None:
    load, nothing = await client.load(), Work(0, 0.0, 0)
    assert load.tiers == {
        "batch": TierLoad(nothing, nothing, Work(3, 9.0, 0), nothing, None),
        "interactive": TierLoad(
            Work(2, 0.5, 40),
            *[nothing] * 3,
            Outlook(2.0, 0.25, 1.0, Work(1, 0.0, 0), 4.0, 20),
        ),
    }
    assert (load.waiting, load.backlog) == (Work(2, 0.5, 40), Work(3, 9.0, 0))
    assert (load.running, load.demand, load.batch_fill) == (Work(1, 0.0, 5), 0.5, 0.0625)
    assert load.rates == Rates(1.0, 20.0, 30.0)
    assert load.speeds == Speeds(0.02, 900.0, 1.5, 0.001)
    assert load.memory == MemoryLoad(160, 96, 48, 32, 0.125)


async def test_count_tokens(client: AsyncClient) -> None:
    counted = await client.count_tokens("three words here")
    assert (counted.count, counted.token_ids) == (3, (0, 1, 2))


async def test_estimate_answers_without_sending(
    client: AsyncClient, servicer: LittleInference
) -> None:
    estimate = await client.estimate(10, 15, ttlt=30.0)
    assert estimate.forecast.on_time
    assert (estimate.forecast.ttft, estimate.forecast.ttlt) == (10.0, 25.0)
    assert estimate.targets.targets == Targets(ttlt=30.0)
    assert not (await client.estimate(10, 35, ttlt=30.0)).forecast.on_time
    assert servicer.requests == []


async def test_explain_tells_the_timeline(client: AsyncClient) -> None:
    story = await client.explain("known")
    assert [decision.kind for decision in story.decisions] == ["admitted", "chunk"]
    assert (story.decisions[1].at, story.decisions[1].predicted_at) == (0.02, 0.018)
    assert story.decisions[1].values == {"tokens": 64.0}
    assert story.decisions[0].ahead == (
        WorkAhead("chat", "acme", 2.0, 1.0),
        WorkAhead("", None, 1.0, 0.0),
    )
    assert story.budget == TimeBudget(1.0, 2.0, 3.0, 4.0, 5.0)
    assert (story.needed, story.result, story.tenant) == (("Nothing.",), "on_time", "acme")
    assert story.from_decision_log
    assert story.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert story.summary == "On time."


async def test_the_timeout_reaches_the_server(
    client: AsyncClient, servicer: LittleInference
) -> None:
    await client.generate("one", timeout=5.0).read()
    await client.generate("one").read()
    assert servicer.timeouts[0] is not None
    assert 0 < servicer.timeouts[0] < 6.0  # the wire rounds it up
    assert servicer.timeouts[1] is None
