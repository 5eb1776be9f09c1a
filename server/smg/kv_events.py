"""SubscribeKvEvents: what the prefix cache comes to hold and loses, so that SMG sends a prompt
where its beginning is cached.

A subscriber is told of its own tenant's prompts, and of no others: what is told has their tokens,
and nobody else could share what they have computed. It begins where it says that it was, where the
engine still knows what came after, and else with all that is cached now (`KvSnapshotChunk`), which
clears what it knew before. So does one that reads more slowly than the cache changes, and everybody
when an engine has taken the place of another.

The gateway counts a prompt's tokens without the beginning-of-sequence token (BOS) where that is
added here, so that a page of ours begins one token before a block of its own; where a chat template
has written it, they begin alike. So of what begins with BOS both are told: the page, and the block
whose last token is the first of the page. What the gateway finds is then cached whole.

To make messages takes the event loop some milliseconds for hundreds of pages. So what is new is
made once for all subscribers of a tenant, and who begins takes his turn: beginnings are made one
part after the other, for at most a quarter of the time, however many begin and come back.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import common_pb2 as common

from engine.deciding.prefix_journal import (
    PART,
    CacheBatch,
    Cached,
    CacheEvent,
    CacheState,
    Dropped,
)
from engine.deciding.questions import Prefixes, PrefixPart
from engine.linking.errors import EngineLost
from engine.linking.link import EngineLink
from engine.messages import EngineInfo
from server import errors
from server.admission.quota import Caller, Quota
from server.convert.inbound import read_tenant
from server.identity.identities import Identity
from server.listening.deliveries import Deliveries
from server.smg.pace import Pace
from server.violations import InvalidRequest

SERVICE = vllm.DESCRIPTOR.services_by_name["VllmEngine"].full_name
MOST_SUBSCRIBERS = 64  # of a front end
# Events that wait for a subscriber; with more it begins anew. Where more pages than that are cached
# it is as many: to begin anew is the longer way, and what came meanwhile would be too much again.
MOST_UNREAD = 4096
BEGINNING = 0.25  # of the event loop's time, for making what those are told who begin
LINGER_S = 60.0  # for which the engine goes on telling when nobody listens: most come back

Context = grpc.aio.ServicerContext[Any, Any]


class News(NamedTuple):
    """A batch, and the messages that have been made of it, by tenant."""

    batch: CacheBatch
    messages: dict[str, Any]


class Subscriber:
    """What waits for one subscriber, of which `room` events may. `must_begin`: it is to be told all
    that there is.
    """

    def __init__(self) -> None:
        self.must_begin = True
        self.room = MOST_UNREAD
        self._news: deque[News] = deque()
        self._num_events = 0
        self._has_news = asyncio.Event()

    def begin(self) -> None:
        """What comes from now on follows what it is about to be told."""
        self._news.clear()
        self._num_events, self.must_begin = 0, False

    def put(self, news: News) -> None:
        """Adds what comes next, where there is room."""
        if self.must_begin:
            return
        self._news.append(news)
        self._num_events += len(news.batch.events)
        if self._num_events > self.room:
            self.lose()
        self._has_news.set()

    def lose(self) -> None:
        """It has missed something."""
        self._news.clear()
        self.must_begin = True
        self._has_news.set()

    async def next(self) -> News | None:
        """Waits for what comes next; None where it must begin."""
        while not self._news and not self.must_begin:
            self._has_news.clear()
            await self._has_news.wait()
        if self.must_begin:
            return None
        news = self._news.popleft()
        self._num_events -= len(news.batch.events)
        return news


class KvEvents:
    """The RPC of one front end, before an engine that comes and goes."""

    def __init__(
        self,
        engine: EngineLink,
        deliveries: Deliveries,
        bos_id: int | None,
        identify: Callable[[Context], Identity],
    ) -> None:
        """`bos_id` is the token that is put before the gateway's."""
        self._engine = engine
        self._deliveries = deliveries
        self._bos_id = bos_id
        self._identify = identify
        self._page_size = 0  # until an engine is ready
        self._subscribers: set[Subscriber] = set()
        self._quota = Quota("subscriptions to the prefix cache", MOST_SUBSCRIBERS, 8)
        self._pace = Pace(BEGINNING)
        self._is_watching = False
        self._ready = asyncio.Event()  # set and replaced whenever an engine is
        self._linger: asyncio.TimerHandle | None = None
        engine.on_cache = self._put

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Returns the handler of the RPC."""
        rpc = grpc.unary_stream_rpc_method_handler(
            self._stream,
            request_deserializer=common.SubscribeKvEventsRequest.FromString,
            response_serializer=common.KvEventBatch.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"SubscribeKvEvents": rpc})

    def engine_ready(self, info: EngineInfo) -> None:
        """Everybody begins anew with an engine that is ready."""
        self._page_size, self._is_watching = info.page_size, False
        if self._subscribers:
            self._watch()
        for subscriber in self._subscribers:
            subscriber.lose()
        self._ready.set()
        self._ready = asyncio.Event()

    def stop(self) -> None:
        """Lets no timer outlive the front end."""
        if self._linger is not None:
            self._linger.cancel()

    def _put(self, batch: CacheBatch) -> None:
        news = News(batch, {})
        for subscriber in self._subscribers:
            subscriber.put(news)

    def _watch(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if not self._is_watching:
            self._is_watching = True
            self._engine.watch(True)

    def _leave(self, subscriber: Subscriber) -> None:
        self._subscribers.discard(subscriber)
        if not self._subscribers and self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._unwatch)

    def _unwatch(self) -> None:
        self._linger, self._is_watching = None, False
        self._engine.watch(False)

    async def _stream(self, request: Any, context: Context) -> None:
        """Writes batches until the subscriber leaves."""
        tenant = self._tenant_of(context)
        delivery = self._deliveries.begin(context)
        await context.send_initial_metadata(())  # by which the gateway knows that it is answered
        subscriber = Subscriber()
        with self._quota.hold(Caller("", tenant), 1):
            self._subscribers.add(subscriber)
            try:
                self._watch()
                async for batch in self._told(subscriber, tenant, request.start_sequence_number):
                    delivery.pending = batch
                    await context.write(batch)
                    delivery.pending = None
            finally:
                self._leave(subscriber)

    def _tenant_of(self, context: Context) -> str:
        """Returns the tenant that subscribes, or for which its caller says so. Raises CallError."""
        try:
            return read_tenant(context.invocation_metadata() or (), self._identify(context).tenant)
        except InvalidRequest as error:
            raise errors.invalid(error) from error

    async def _told(
        self, subscriber: Subscriber, tenant: str, number: int
    ) -> AsyncIterator[common.KvEventBatch]:
        """Yields what a subscriber is told that has had all up to the number, or 0 for nothing."""
        while True:
            ready = self._ready
            try:
                subscriber.begin()
                async for batch in self._beginning(subscriber, tenant, number):
                    yield batch
                    number = batch.sequence_number
            except EngineLost:
                if not subscriber.must_begin:  # else there is another engine already
                    await ready.wait()
                number = 0
                continue
            while (news := await subscriber.next()) is not None:
                if news.batch.number > number:
                    if tenant not in news.messages:
                        news.messages[tenant] = self._to_batch(news.batch, tenant)
                    yield news.messages[tenant]
                    number = news.batch.number

    async def _beginning(
        self, subscriber: Subscriber, tenant: str, number: int
    ) -> AsyncIterator[common.KvEventBatch]:
        """Yields what came after the number, or all that is cached, in parts."""
        async with self._pace.turn():
            state = await self._engine.ask(Prefixes(number))
            subscriber.room = max(MOST_UNREAD, state.num_pages)
        for batch in state.missed or ():
            async with self._pace.turn():
                with self._pace.work():
                    message = self._to_batch(batch, tenant)
            yield message
        if state.missed is not None:
            return
        serial, count = 0, max(1, -(-state.num_pages // PART))
        for index in range(count):
            pages: tuple[Cached, ...] = ()
            async with self._pace.turn():
                if serial < state.until:
                    pages = await self._engine.ask(PrefixPart(serial, state.until))
                    serial = pages[-1].serial if pages else state.until
                with self._pace.work():
                    message = self._to_chunk(pages, tenant, state, index, count)
            yield message

    def _to_chunk(
        self, pages: Iterable[Cached], tenant: str, state: CacheState, index: int, count: int
    ) -> common.KvEventBatch:
        cleared = [common.KvCacheEvent(cleared=common.KvCacheCleared())] if index == 0 else []
        return common.KvEventBatch(
            sequence_number=state.number - count + 1 + index,
            timestamp=time.time(),
            events=[*cleared, *self._to_events(pages, tenant)],
            dp_rank=0,
            snapshot=common.KvSnapshotChunk(
                index=index,
                count=count,
                blocks=state.num_pages,
                unknown_before=0 if state.is_whole else 1,
            ),
        )

    def _to_batch(self, batch: CacheBatch, tenant: str) -> common.KvEventBatch:
        """Returns the message for a batch. One without events of the tenant's is sent, too: numbers
        have no gap.
        """
        return common.KvEventBatch(
            sequence_number=batch.number,
            timestamp=time.time(),
            events=self._to_events(batch.events, tenant),
            dp_rank=0,
        )

    def _to_events(self, events: Iterable[CacheEvent], tenant: str) -> list[common.KvCacheEvent]:
        """Returns the events of a tenant. Blocks that follow each other are told as one."""
        told: list[common.KvCacheEvent] = []
        runs: dict[int, Any] = {}  # what was stored last, by its last block
        for event in events:
            if event.tenant != tenant:
                continue
            if isinstance(event, Dropped):
                if not told or not told[-1].HasField("removed"):
                    told.append(common.KvCacheEvent(removed=common.KvBlocksRemoved()))
                told[-1].removed.block_hashes.extend(self._names(event))
                runs.clear()
                continue
            for block, parent in self._to_blocks(event):
                run = None if parent is None else runs.pop(parent, None)
                if run is None:
                    stored = common.KvBlocksStored(parent_block_hash=parent)
                    told.append(common.KvCacheEvent(stored=stored))
                    run = told[-1].stored
                run.blocks.append(block)
                runs[block.block_hash] = run
        for number, each in enumerate(told):
            each.event_id = number
        return told

    def _to_blocks(self, page: Cached) -> Iterator[tuple[common.KvBlock, int | None]]:
        """Yields the blocks that are cached with a page, and the name of the block before each."""
        size, tokens = self._page_size, array("I", page.window)
        parent = None if page.parent is None else _name(page.parent)
        yield _block(_name(page.hash), tokens[-size:], size), parent
        if page.parent is not None and page.first == self._bos_id:
            parent = None if page.place == 1 else _other_name(page.parent)
            yield _block(_other_name(page.hash), tokens[:size], size), parent

    def _names(self, page: Dropped) -> list[int]:
        """Returns the names of the blocks that were cached with a page."""
        if page.place and page.first == self._bos_id:
            return [_name(page.hash), _other_name(page.hash)]
        return [_name(page.hash)]


def _block(name: int, tokens: array[int], size: int) -> common.KvBlock:
    return common.KvBlock(block_hash=name, token_ids=tokens, block_size=size)


def _name(hash_: bytes) -> int:
    """Returns the number by which the gateway knows a page."""
    return int.from_bytes(hash_[:8], signed=True)


def _other_name(hash_: bytes) -> int:
    """Returns that of the block which counts without BOS, and ends within the page."""
    return int.from_bytes(hash_[8:], signed=True)
