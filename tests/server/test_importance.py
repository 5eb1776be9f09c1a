"""Who is served when there is too much: on real servers, before a scheduler without a model."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from engine.config import EngineConfig
from engine.deciding.questions import Stats
from niyama.client import AsyncClient, QueueFull, RequestIdInUse
from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from server.app import Server
from server.config import ServerConfig
from server.errors import MOST_RETRY_AFTER_S
from tests.engine.driving.engines import SLOW
from tests.server.conftest import front_end_of, until, until_stats, within
from tests.server.test_service import failure

ROOM = 64
FLOOD = 1500
CHATS = 40
ROOMY = {"max_requests": ROOM, "max_streams": 1000}  # of each connection
BATCH = 16
APART = (("grpc.use_local_subchannel_pool", 1),)  # a connection of its own


@contextlib.asynccontextmanager
async def served(frontends: int = 1, **fields: Any) -> AsyncIterator[Server]:
    engine = EngineConfig(factory=SLOW, max_batch_size=BATCH)
    config = ServerConfig(
        port=0, drain_s=0.0, **(ROOMY | fields), frontends=frontends, engine=engine
    )
    server = Server(config)
    try:
        await within(server.start())
        yield server
    finally:
        await within(server.stop())


@contextlib.asynccontextmanager
async def stubs(server: Server, count: int) -> AsyncIterator[list[Any]]:
    """Each with a connection of its own: the kernel deals them out to the front ends."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", APART)
            await stack.enter_async_context(channel)
            found.append(inference_pb2_grpc.InferenceStub(channel))
        yield found


def asked(importance: int, max_tokens: int = 2, prompt_len: int = 4, **names: str) -> Any:
    request = pb.GenerateRequest(
        input=pb.Input(token_ids=pb.TokenIds(ids=[7] * prompt_len)),
        sampling=pb.Sampling(max_tokens=max_tokens, ignore_eos=True),
        **names,
    )
    request.qos.importance = importance
    return request


def patient(importance: int, max_tokens: int = 200, prompt_len: int = 4, **names: str) -> Any:
    """Work for an hour hence."""
    request = asked(importance, max_tokens, prompt_len, **names)
    request.qos.deadline.ttlt.FromSeconds(3600)
    return request


async def outcome_of(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


async def insisting(stub: Any, request: Any) -> str:
    """Sends a call again for as long as there is no place for it."""
    while True:
        outcome = await outcome_of(stub.Generate(request))
        if "queue is full" not in outcome:
            return outcome


async def until_full(stub: Any, request: Any) -> None:
    """Asks until such a call would be refused."""
    estimate = pb.EstimateRequest(
        prompt_tokens=len(request.input.token_ids.ids),
        output_tokens=request.sampling.max_tokens,
        qos=request.qos,
    )

    async def ask() -> None:
        while (await stub.Estimate(estimate)).admission.admitted:
            pass

    await within(ask())


async def until_empty(server: Server) -> None:
    """Until the ledger holds nothing: a call is told a moment before it is over there."""
    admission = server.ledger.admission
    await until(lambda: len(admission) == 0)
    admission.check()
    assert admission.requests.total == admission.tokens.total == 0


@pytest.mark.parametrize("frontends", [1, 2])
@pytest.mark.parametrize("flood", [pb.IMPORTANCE_LOW, pb.IMPORTANCE_NORMAL])
async def test_important_calls_are_all_served_whatever_came_before_them(
    frontends: int, flood: int
) -> None:
    """1,500 calls with an hour's time, of low or normal importance, over many connections; then
    forty chats of high importance. All forty were refused.
    """
    async with served(frontends) as server, stubs(server, 6) as found:
        floods = [
            asyncio.ensure_future(outcome_of(found[i % 5].Generate(patient(flood))))
            for i in range(FLOOD)
        ]
        # Some try again, so that the queue is full for as long as it takes to see that it is.
        floods += [
            asyncio.ensure_future(insisting(found[i % 5], patient(flood))) for i in range(BATCH)
        ]
        await until_full(found[0], patient(flood))
        chats = await within(
            asyncio.gather(
                *(outcome_of(found[5].Generate(asked(pb.IMPORTANCE_HIGH))) for _ in range(CHATS))
            )
        )
        assert Counter(chats) == {"OK": CHATS}
        for each in floods:
            if not each.done():
                each.cancel()
        told = await within(asyncio.gather(*floods, return_exceptions=True))
    messages = Counter(str(each).partition(":")[0] for each in told if isinstance(each, str))
    assert set(messages) <= {"RESOURCE_EXHAUSTED", "OK"}
    displaced = [each for each in told if "gave its place to more important work" in str(each)]
    assert displaced
    assert len(displaced) <= CHATS


async def test_a_few_huge_calls_give_way_by_their_tokens() -> None:
    """They try again: of those that are refused at first some wait once the others have begun."""
    async with served(max_queued_tokens=4000) as server, stubs(server, 2) as (low, high):
        told: list[str] = []

        async def flood() -> None:
            while True:
                told.append(await outcome_of(low.Generate(patient(pb.IMPORTANCE_LOW, 900, 60))))

        huge = [asyncio.ensure_future(flood()) for _ in range(40)]
        await until_full(low, patient(pb.IMPORTANCE_LOW, 900, 60))
        calls = [outcome_of(high.Generate(asked(pb.IMPORTANCE_HIGH, 2, 400))) for _ in range(8)]
        assert Counter(await within(asyncio.gather(*calls))) == {"OK": 8}
        for each in huge:
            each.cancel()
        await asyncio.gather(*huge, return_exceptions=True)
    assert any("tokens of work are waiting" in each for each in told)


async def test_a_displaced_call_is_told_when_to_come_again_and_everybody_can_see_it() -> None:
    """In its status, in the log, in a metric, in Explain and in Estimate."""
    with capture_logs() as logs:
        async with served(max_requests=BATCH + 2) as server, stubs(server, 1) as (stub,):
            assert isinstance(server, Server)
            running = [stub.Generate(patient(pb.IMPORTANCE_HIGH, 2000)) for _ in range(BATCH)]
            await until_stats(server.engine.link, lambda stats: stats.num_running == BATCH)
            low = stub.Generate(patient(pb.IMPORTANCE_LOW, request_id="gives"))
            waiting = stub.Generate(patient(pb.IMPORTANCE_NORMAL, request_id="stays"))
            await until_stats(server.engine.link, lambda stats: stats.num_waiting == 2)
            estimate = pb.EstimateRequest(prompt_tokens=4, output_tokens=2)
            estimate.qos.importance = pb.IMPORTANCE_LOW
            admission = (await within(stub.Estimate(estimate))).admission
            assert (admission.admitted, admission.reason) == (False, "queue_full")
            assert 1 <= admission.retry_after.ToSeconds() <= MOST_RETRY_AFTER_S
            estimate.qos.importance = pb.IMPORTANCE_NORMAL
            assert (await within(stub.Estimate(estimate))).admission.admitted
            important = stub.Generate(asked(pb.IMPORTANCE_HIGH))
            detail = error_details_pb2.RetryInfo()
            error = await failure(low, detail)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "gave its place to more important work" in (error.details() or "")
            assert 1 <= detail.retry_delay.ToSeconds() <= MOST_RETRY_AFTER_S
            story = await within(stub.Explain(pb.ExplainRequest(request_id="gives")))
            assert "gave its place to more important work" in story.summary
            for call in [*running, waiting, important]:
                call.cancel()
            await within(front_end_of(server).serving.calls.idle.wait())
            labels = ("explicit", "low", "displaced", "other")
            assert front_end_of(server).metrics.refused.labels(*labels)._value.get() == 1
    (line,) = [line for line in logs if line.get("rpc") == "Generate" and "refused" in line]
    told = {key: line[key] for key in ("importance", "refused", "outcome", "tier")}
    assert told == {
        "importance": "low",
        "refused": "displaced",
        "outcome": "RESOURCE_EXHAUSTED",
        "tier": "",
    }


@pytest.mark.parametrize("frontends", [1, 2])
async def test_a_call_that_is_displaced_while_its_prompt_is_read_is_told_at_once(
    frontends: int,
) -> None:
    """Not when the reading ends, which others' long prompts may be before: here it has stopped."""
    async with served(frontends, max_requests=1) as server, stubs(server, 2) as (one, two):
        low, high = asked(pb.IMPORTANCE_LOW), asked(pb.IMPORTANCE_HIGH)
        low.input.text = "And it came to pass. " * 240
        readers = [
            process
            for process in psutil.Process().children(recursive=True)
            if "server.reading.reader" in process.cmdline()
        ]
        for reader in readers:
            reader.suspend()
        call = one.Generate(low)
        await until_full(two, asked(pb.IMPORTANCE_LOW))
        await within(two.Generate(high))
        assert "gave its place" in ((await failure(call)).details() or "")
        assert {reader.status() for reader in readers} == {psutil.STATUS_STOPPED}
        for reader in readers:
            reader.resume()
        await until_empty(server)


async def test_what_has_begun_to_stream_is_not_displaced() -> None:
    async with served(max_requests=2) as server, stubs(server, 1) as (stub,):
        calls = []
        for _ in range(2):
            low = patient(pb.IMPORTANCE_LOW, 3000)
            streamed = pb.GenerateStreamRequest(input=low.input, sampling=low.sampling, qos=low.qos)
            calls.append(stub.GenerateStream(streamed))
            while not (await within(calls[-1].read())).HasField("tokens"):
                pass
        error = await failure(stub.Generate(asked(pb.IMPORTANCE_HIGH)))
        assert "the queue is full: 2 requests" in (error.details() or "")
        for call in calls:
            assert (await within(call.read())).HasField("tokens")
            call.cancel()


@pytest.mark.parametrize("frontends", [1, 2])
async def test_calls_that_nobody_reads_count_until_they_are_over(frontends: int) -> None:
    """Their output is complete in the engine; off the ledger, they were 360 with a limit of 100."""
    narrow = (("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0))
    asks = patient(pb.IMPORTANCE_HIGH, 50)
    unread = pb.GenerateStreamRequest(input=asks.input, sampling=asks.sampling, qos=asks.qos)
    async with served(frontends, max_requests=8) as server, contextlib.AsyncExitStack() as stack:

        async def call() -> Any:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", (*APART, *narrow))
            await stack.enter_async_context(channel)
            return inference_pb2_grpc.InferenceStub(channel).GenerateStream(unread)

        held = [await call() for _ in range(8)]
        await until_stats(server.engine.link, lambda stats: stats.totals.num_finished == 8)
        error = await failure((await call()).read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the queue is full: 8 requests" in (error.details() or "")
        for each in held:
            each.cancel()

        async def another() -> None:
            while await outcome_of((await call()).read()) != "OK":  # what was cancelled ends soon
                pass

        await within(another())


async def test_an_id_is_its_tenant_s_own() -> None:
    async with served() as server:
        address = f"127.0.0.1:{server.port}"
        async with AsyncClient(address, tenant="a") as a, AsyncClient(address, tenant="b") as b:
            stream = a.generate([7], max_tokens=3000, request_id="same", ignore_eos=True)
            tokens = aiter(stream)
            await within(anext(tokens))
            mine = await within(b.complete([7], max_tokens=1, request_id="same"))
            assert mine.request_id == "same"
            with pytest.raises(RequestIdInUse, match="'same' is in flight"):
                await within(a.complete([7], max_tokens=1, request_id="same"))
            stream.cancel()
            assert (await within(a.explain("same"))).decisions
            assert (await within(b.explain("same"))).request_id == "same"


async def test_a_completion_and_a_call_of_its_name_are_two() -> None:
    async with served() as server, AsyncClient(f"127.0.0.1:{server.port}") as client:
        both = client.complete([7] * 9, max_tokens=200, request_id="a", n=2, ignore_eos=True)
        pending = asyncio.ensure_future(both)
        assert isinstance(server, Server)
        while not (await within(server.engine.link.ask(Stats()))).scheduler.totals.num_submitted:
            pass
        one = await within(client.complete([7], max_tokens=1, request_id="a/0"))
        assert one.finished.usage.output_tokens == 1
        assert len((await within(pending)).completions) == 2
        assert (await within(client.explain("a/1"))).request_id == "a/1"


async def test_invented_tenants_leave_a_named_one_its_part(tmp_path: Path) -> None:
    """Sixty names fill the queue; the one that the operator knows comes late and is served. Neither
    the metric nor the queue's books grow with the names.
    """
    path = tmp_path / "tiers.toml"
    path.write_text("[tenants.acme]\n")
    async with served(config=path) as server, stubs(server, 2) as (many, one):
        assert isinstance(server, Server)
        flood = [
            asyncio.ensure_future(
                outcome_of(
                    many.Generate(
                        patient(pb.IMPORTANCE_NORMAL), metadata=(("niyama-tenant", f"t{i % 60}"),)
                    )
                )
            )
            for i in range(600)
        ]
        await until_full(many, patient(pb.IMPORTANCE_NORMAL))
        acme = (("niyama-tenant", "acme"),)
        calls = [
            outcome_of(one.Generate(asked(pb.IMPORTANCE_NORMAL), metadata=acme))
            for _ in range(ROOM // 2 - 4)
        ]
        assert Counter(await within(asyncio.gather(*calls))) == {"OK": ROOM // 2 - 4}
        for each in flood:
            each.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        await within(front_end_of(server).serving.calls.idle.wait())
        tenants = {labels[3] for labels in front_end_of(server).metrics.refused._metrics}
        assert tenants <= {"other", "acme"}
        assert len(server.ledger.admission.requests.held) == 0


async def test_an_estimate_says_that_a_call_would_be_refused_now() -> None:
    async with (
        served(max_requests=2) as server,
        AsyncClient(f"127.0.0.1:{server.port}", retries=False) as client,
    ):
        assert (await within(client.estimate(10, 5))).admission.admitted
        streams = [client.generate([7], max_tokens=3000, ignore_eos=True) for _ in range(2)]
        each_tokens = [aiter(stream) for stream in streams]
        for tokens in each_tokens:
            await within(anext(tokens))
        admission = (await within(client.estimate(10, 5))).admission
        assert (admission.admitted, admission.reason) == (False, "queue_full")
        assert "the queue is full: 2 requests" in admission.detail
        assert admission.retry_after == 1.0
        with pytest.raises(QueueFull):
            await within(client.complete([7], max_tokens=1))
        for stream in streams:
            stream.cancel()
