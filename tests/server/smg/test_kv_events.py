"""What a gateway is told of the prefix cache, by real servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from smg_grpc_proto.generated import common_pb2 as common

from engine.config import EngineConfig
from engine.deciding.prefix_journal import CacheBatch, Dropped
from server.config import ServerConfig
from server.smg import kv_events
from server.smg.kv_events import MOST_UNREAD, KvEvents, News, Subscriber
from server.smg.pace import Pace
from tests.engine.driving.engines import NULL
from tests.server.conftest import Running, running_with, until, within
from tests.server.frontends.test_supervisor import supervised
from tests.server.smg.asking import ask, request_of, stub_of
from tests.server.test_service import failure

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 16  # tokens of a page
BOS = 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own() -> AsyncIterator[Running]:
    """Before an engine that computes nothing. Each test has prompts of its own."""
    async with running_with(ServerConfig(port=0, engine=EngineConfig(factory=NULL))) as running:
        yield running


def subscribe(running: Running, after: int = 0, tenant: str = "") -> Any:
    request = common.SubscribeKvEventsRequest(start_sequence_number=after)
    metadata = (("niyama-tenant", tenant),) if tenant else None
    return stub_of(running.channel).SubscribeKvEvents(request, metadata=metadata)


class Index:
    """A gateway's: the tokens of each chain of blocks that a server has, by the last block."""

    def __init__(self) -> None:
        self.chains: dict[int, list[int]] = {}
        self.number = 0

    async def follow(self, stream: Any) -> Any:
        batch = await within(stream.read())
        if not batch.HasField("snapshot") and self.number:
            assert batch.sequence_number == self.number + 1
        self.number = batch.sequence_number
        for event in batch.events:
            if event.HasField("cleared"):
                self.chains.clear()
            for name in event.removed.block_hashes:
                self.chains.pop(name, None)
            if event.HasField("stored"):
                stored = event.stored
                is_first = not stored.HasField("parent_block_hash")
                chain = [] if is_first else self.chains[stored.parent_block_hash]
                for block in stored.blocks:
                    assert block.block_size == SIZE == len(block.token_ids)
                    assert block.block_hash not in self.chains
                    chain = self.chains[block.block_hash] = [*chain, *block.token_ids]
        return batch

    def has(self, tokens: list[int]) -> bool:
        return tokens in self.chains.values()


def prompt(seed: int, length: int = 50) -> list[int]:
    """Of tokens as a gateway makes them: without BOS."""
    return [300 + (seed * 101 + i * i) % 1000 for i in range(length)]


async def test_a_gateway_finds_what_is_cached_with_and_without_bos(own: Running) -> None:
    stream, index = subscribe(own), Index()
    first = await index.follow(stream)
    assert first.snapshot.count == 1
    ids = prompt(1)
    await ask(own, request_of(ids=ids))
    await index.follow(stream)
    for end in (SIZE, 2 * SIZE):
        assert index.has(ids[:end]), "as it counts where BOS is added here"
    for end in (SIZE, 2 * SIZE, 3 * SIZE):
        assert index.has([BOS, *ids][:end]), "as it counts where a template has written it"
    assert not index.has([BOS, *ids])
    longer = [*ids[: 2 * SIZE], *prompt(2)]
    await ask(own, request_of(ids=longer))
    await index.follow(stream)
    assert index.has(longer[: 3 * SIZE])
    assert index.has(ids[: 2 * SIZE])
    stream.cancel()


async def test_who_comes_back_is_told_what_it_has_missed_and_who_is_new_all(own: Running) -> None:
    stream, index = subscribe(own), Index()
    await index.follow(stream)
    await ask(own, request_of(ids=prompt(11)))
    await index.follow(stream)
    stream.cancel()
    await ask(own, request_of(ids=prompt(12)))
    again = subscribe(own, index.number)
    missed = await index.follow(again)
    assert not missed.HasField("snapshot")
    assert index.has(prompt(11)[:SIZE])
    assert index.has(prompt(12)[:SIZE])
    again.cancel()
    for after in (0, index.number + 1, 7):
        new = Index()
        stream = subscribe(own, after)
        first = await new.follow(stream)
        assert first.HasField("snapshot")
        assert first.events[0].HasField("cleared")
        assert (new.chains, new.number) == (index.chains, index.number)
        stream.cancel()


async def test_prompts_of_another_tenant_are_not_told(own: Running) -> None:
    everybody_s, acme_s = subscribe(own), subscribe(own, tenant="acme")
    one, other = Index(), Index()
    await one.follow(everybody_s)
    await other.follow(acme_s)
    before = dict(one.chains)
    await ask(own, request_of(ids=prompt(3)), metadata=(("niyama-tenant", "acme"),))
    await other.follow(acme_s)
    batch = await one.follow(everybody_s)
    assert not batch.events, "but its number is, so that none is missing"
    assert one.chains == before
    assert other.has(prompt(3)[:SIZE])
    everybody_s.cancel()
    acme_s.cancel()


async def test_another_engine_has_nothing_cached(own: Running) -> None:
    stream, index = subscribe(own), Index()
    await index.follow(stream)
    await ask(own, request_of(ids=prompt(5)))
    await index.follow(stream)
    assert index.chains
    pid = own.server.engine.keeper.pid
    assert pid is not None
    psutil.Process(pid).kill()
    anew = await index.follow(stream)
    assert (anew.snapshot.count, anew.snapshot.unknown_before) == (1, 0)
    assert not index.chains
    await ask(own, request_of(ids=prompt(6)))
    await index.follow(stream)
    assert index.has(prompt(6)[:SIZE])
    stream.cancel()


async def test_only_who_may_know_prompts_is_told(own: Running) -> None:
    """Who is elsewhere is not, where nobody says who he is."""
    stub = stub_of(own.channel)
    request = common.SubscribeKvEventsRequest()
    error = await failure(stub.SubscribeKvEvents(request, metadata=(("via", "a proxy"),)).read())
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    error = await failure(subscribe(own, tenant="x" * 200).read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(own.server.engine.link._questions._futures) == 0


async def test_each_front_end_tells_of_what_the_others_have_had_computed() -> None:
    """There are two front ends, and each of four connections has come to one of them."""
    async with supervised() as server, contextlib.AsyncExitStack() as stack:
        stubs = []
        for number in range(4):
            options = [("grpc.use_local_subchannel_pool", 1), ("number", number)]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options)
            stubs.append(stub_of(await stack.enter_async_context(channel)))
        streams = [stub.SubscribeKvEvents(common.SubscribeKvEventsRequest()) for stub in stubs]
        indices = [Index() for _ in streams]
        pairs = list(zip(indices, streams, strict=True))
        await asyncio.gather(*(index.follow(stream) for index, stream in pairs))
        await within(stubs[0].Generate(request_of(ids=prompt(1), stream=False)).read())
        await asyncio.gather(*(index.follow(stream) for index, stream in pairs))
        assert all(index.has(prompt(1)[:SIZE]) for index in indices)
        assert len({index.number for index in indices}) == 1


async def test_who_reads_too_slowly_begins_anew_and_nothing_piles_up() -> None:
    subscriber = Subscriber()
    assert await subscriber.next() is None
    subscriber.begin()
    event = Dropped("", b"x" * 16, 0, 1)
    for number in range(MOST_UNREAD):
        subscriber.put(News(CacheBatch(number, (event,)), {}))
    first = await subscriber.next()
    assert first is not None
    assert first.batch.number == 0
    subscriber.put(News(CacheBatch(MOST_UNREAD, (event, event)), {}))
    assert await subscriber.next() is None
    for number in range(10):
        subscriber.put(News(CacheBatch(number, (event,)), {}))
    assert not subscriber._news
    waiting = asyncio.create_task(subscriber.next())
    subscriber.begin()
    await until(lambda: not waiting.done())
    subscriber.put(News(CacheBatch(5, (event,)), {}))
    assert await within(waiting) == (CacheBatch(5, (event,)), {})


async def test_what_is_new_is_made_once_for_all_of_a_tenant(
    own: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def noted(self: KvEvents, batch: CacheBatch, tenant: str) -> Any:
        made.append((batch.number, tenant))
        return to_batch(self, batch, tenant)

    to_batch = KvEvents._to_batch
    monkeypatch.setattr(KvEvents, "_to_batch", noted)
    streams = [subscribe(own, tenant=tenant) for tenant in ("", "acme") for _ in range(5)]
    indices = [Index() for _ in streams]
    for index, stream in zip(indices, streams, strict=True):
        await index.follow(stream)
    await ask(own, request_of(ids=prompt(21)))
    for index, stream in zip(indices, streams, strict=True):
        await index.follow(stream)
        stream.cancel()
    assert all(index.has(prompt(21)[:SIZE]) for index in indices[:5])
    assert sorted(made) == [(indices[0].number, ""), (indices[0].number, "acme")]


async def test_however_many_begin_the_engine_is_asked_by_one_at_a_time(
    own: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, most = own.server.engine.link, 0
    link_ask, asking = link.ask, 0

    async def counted(question: Any) -> Any:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        try:
            return await link_ask(question)
        finally:
            asking -= 1

    monkeypatch.setattr(link, "ask", counted)
    streams = [subscribe(own) for _ in range(20)]
    await asyncio.gather(*(Index().follow(stream) for stream in streams))
    for stream in streams:
        stream.cancel()
    assert most == 1


async def test_work_takes_its_share_of_the_time_though_who_asked_for_it_leaves() -> None:
    now, leaving = 100.0, asyncio.Event()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        if not leaving.is_set():
            leaving.set()
            await asyncio.Event().wait()
        slept.append(seconds)
        now += seconds

    async def one(seconds: float) -> None:
        nonlocal now
        async with pace.turn():
            with pace.work():
                now += seconds

    pace = Pace(0.25, lambda: now, sleep)
    await one(2.0)
    leaver = asyncio.create_task(one(2.0))
    await within(leaving.wait())
    leaver.cancel()
    await one(1.0)
    await one(0.0)
    assert slept == [6.0, 3.0]
    now += 50.0
    await one(1.0)
    assert slept == [6.0, 3.0], "who comes later than that waits for nothing"


async def test_who_begins_with_more_than_may_be_unread_may_leave_as_much_unread(
    own: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what came while it was told a large cache had it begin anew, again and again."""
    await ask(own, request_of(ids=prompt(31)))
    monkeypatch.setattr(kv_events, "MOST_UNREAD", 1)
    stream, index = subscribe(own), Index()
    await index.follow(stream)
    await ask(own, request_of(ids=prompt(32)))
    batch = await index.follow(stream)
    assert not batch.HasField("snapshot")
    assert index.has(prompt(32)[:SIZE])
    stream.cancel()


async def test_a_subscription_keeps_no_drain_waiting(own: Running) -> None:
    stream = subscribe(own)
    await within(stream.read())
    await within(own.server.drain())
    stream.cancel()
