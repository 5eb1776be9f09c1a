"""The live target sends planned requests to a server, open loop, and records what comes back.

Requests leave at their instants whatever the server does. Each is prepared before its instant, so
that preparing costs no lag; the clock is the monotonic one. The run ends when every request has,
or `drain_s` after the last was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, Unpack

from engine.routing.router import ROUTING, Router
from loadgen import interrupts
from loadgen.interrupts import Interrupted
from loadgen.targets import priority
from loadgen.targets.record import Outcome, Record
from loadgen.targets.spread import Spread
from loadgen.targets.target import (
    WATCH_INTERVAL_S,
    End,
    Progress,
    Run,
    Unreachable,
    Watch,
)
from loadgen.workload.plan import PlannedRequest, prompt_ids
from loadgen.workload.served import TargetInfo
from niyama.client import (
    AsyncClient,
    AsyncStream,
    NiyamaError,
    QueueFull,
    TimedOut,
    Unavailable,
)
from niyama.client.connection import Connection
from niyama.client.options import ConnectionOptions, GenerateOptions
from niyama.client.values import ServerInfo

CHANNELS, DRAIN_S = 4, 60.0  # the defaults
_START_DELAY_S = 0.1  # from the first connection to instant 0
_PROBE_TIMEOUT_S = 2.0
_PROBES, _PROBE_INTERVAL_S = 3, 0.5
T = TypeVar("T")
# Each channel its own connection: channels with equal arguments would share one.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@dataclass(frozen=True, slots=True)
class LiveTarget:
    """A server at HOST:PORT, which is asked over `channels` connections in turn, each made with the
    options of `connection`; or several, HOST:PORT,..., among which a router chooses (spread.py).
    Nothing is tried again: the load is what was planned.

    After the last request its answers are waited for, `drain_s` seconds at most. Raises ValueError
    for a value out of range.
    """

    server: str
    channels: int = CHANNELS
    drain_s: float = DRAIN_S
    connection: ConnectionOptions = field(default_factory=ConnectionOptions, hash=False)
    routing: str = ROUTING  # of several servers
    pinned: Mapping[str, int] = field(default_factory=dict, hash=False)  # past the router, by tier

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"there is at least 1 channel, got {self.channels}")
        if not self.drain_s >= 0:
            raise ValueError(f"the drain time is not negative, got {self.drain_s:g}")
        for server in self.servers:
            Connection(server, **self.connection)
        for tier, index in self.pinned.items():
            if not 0 <= index < len(self.servers):
                raise ValueError(f"{tier} is pinned to server {index} of {len(self.servers)}")

    @property
    def servers(self) -> list[str]:
        """Returns the addresses of the servers."""
        return self.server.split(",")

    def client(self, server: str | None = None, **others: Unpack[ConnectionOptions]) -> AsyncClient:
        """Makes a client of a server, the first by default, with other options beside its own."""
        chosen: ConnectionOptions = {**self.connection, "retries": False, **others}
        return AsyncClient(server or self.servers[0], **chosen)

    def info(self) -> TargetInfo:
        """Returns what the server says of itself. Raises Unreachable, or Interrupted."""
        several = f", {self.routing}" if len(self.servers) > 1 else ""
        return _target_info(self.server + several, _run(_ask_info(self)))

    def run(self, requests: Iterable[PlannedRequest], watch: Watch) -> Run:
        """Sends the requests; see `Target`. Raises Unreachable, or Interrupted before the start."""
        with priority.raised():
            return _run(_Sender(self, watch).run(iter(requests)))


def _run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(_interruptible(main))


async def _interruptible(main: Coroutine[Any, Any, T]) -> T:
    """Awaits a coroutine. A signal cancels it, so that it closes what it has opened, and makes this
    raise Interrupted.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    came: list[int] = []

    def cancel(number: int) -> None:
        came.append(number)
        loop.call_soon_threadsafe(task.cancel)

    with interrupts.handled(cancel):
        try:
            return await main
        except asyncio.CancelledError:
            if came:
                raise Interrupted(came[0]) from None
            raise


async def _ask_info(target: LiveTarget) -> ServerInfo:
    async with target.client() as client:
        try:
            return await client.server_info()
        except NiyamaError as error:
            raise Unreachable(f"{target.server}: {_one_line(error)}") from None


def _target_info(server: str, info: ServerInfo) -> TargetInfo:
    model = info.model
    return TargetInfo(
        server,
        info.policy,
        model.name,
        info.tiers,
        model.vocabulary_size,
        model.context_length,
        info.version,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(slots=True)
class _Sender:
    """One run: its state, all of which belongs to one event loop."""

    target: LiveTarget
    watch: Watch
    name: str = field(default_factory=lambda: secrets.token_hex(8))  # no other run has it
    clients: dict[str, list[AsyncClient]] = field(default_factory=dict)  # by server
    spread: Spread = field(init=False)
    vocabulary_size: int = 0
    start: float = 0.0  # instant 0 of the run, on the monotonic clock
    records: list[Record] = field(default_factory=list)
    num_in_flight: int = 0
    counts: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    followers: set[asyncio.Task[None]] = field(default_factory=set)
    end: End = End.COMPLETE
    problem: str = ""
    interrupted_by: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    probe: asyncio.Task[None] | None = None
    bug: BaseException | None = None

    def __post_init__(self) -> None:
        router, pinned = Router(self.target.routing), self.target.pinned
        self.spread = Spread(self.target.servers, router, pinned)

    def now(self) -> float:
        """Returns the seconds since instant 0 of the run."""
        return time.monotonic() - self.start

    async def run(self, requests: Iterator[PlannedRequest]) -> Run:
        """Sends the requests and returns the run when it has ended. Raises Unreachable."""
        async with contextlib.AsyncExitStack() as stack:
            await self._connect(stack)
            with self._interrupts():
                tasks = [asyncio.create_task(each) for each in (self._tick(), self._listen())]
                try:
                    await self._drive(requests)
                finally:
                    for task in tasks:
                        task.cancel()
                    if self.probe is not None:
                        self.probe.cancel()
                self.watch(self._progress())
                await stack.aclose()  # in which a second signal ends nothing either
        if self.bug is not None:
            raise self.bug
        elapsed = max((record.ended_at or 0.0 for record in self.records), default=0.0)
        return Run(self.records, elapsed, self.end, self.problem, self.interrupted_by)

    async def _connect(self, stack: contextlib.AsyncExitStack) -> None:
        """Opens the connections, which `stack` closes, and sets instant 0 of the run."""
        for server in self.target.servers:
            self.clients[server] = []
            for _ in range(self.target.channels):
                client = self.target.client(server, channel_options=_OWN_CONNECTION)
                self.clients[server].append(await stack.enter_async_context(client))
        every = [client for clients in self.clients.values() for client in clients]
        try:
            infos = await asyncio.gather(*(client.server_info() for client in every))
            if self._listens:
                await asyncio.gather(*(self.spread.ask(*each) for each in self._first().items()))
        except NiyamaError as error:
            raise Unreachable(f"{self.target.server}: {_one_line(error)}") from None
        self.vocabulary_size = infos[0].model.vocabulary_size
        self.start = time.monotonic() + _START_DELAY_S

    @property
    def _listens(self) -> bool:
        """Says whether servers are asked for their load."""
        return len(self.target.servers) > 1 and self.spread.router.listens

    def _first(self) -> dict[str, AsyncClient]:
        """Returns a client of each server."""
        return {server: clients[0] for server, clients in self.clients.items()}

    async def _listen(self) -> None:
        """Has the servers tell their load. An error of it ends the run."""
        if self._listens:
            try:
                await self.spread.listen(self._first())
            except NiyamaError as error:
                self._stop(End.TARGET_LOST, f"{self.target.server}: {_one_line(error)}")

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Makes a signal end the run instead of the program, so that there is a report."""
        loop = asyncio.get_running_loop()

        def interrupt(number: int) -> None:
            self.interrupted_by = self.interrupted_by or number
            loop.call_soon_threadsafe(self._stop, End.INTERRUPTED, "interrupted")

        with interrupts.handled(interrupt):
            yield

    def _stop(self, end: End, problem: str) -> None:
        """Ends the run early; the first reason to do so is the one that is told."""
        if not self.stopping.is_set():
            self.end, self.problem = end, problem
            self.stopping.set()

    async def _drive(self, requests: Iterator[PlannedRequest]) -> None:
        """Sends all requests and waits for their answers, or stops when it is told to."""
        sending = asyncio.create_task(self._send_all(requests))
        stopped = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait((sending, stopped), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending  # its exception is ours
                await self._drain(stopped)
        finally:
            sending.cancel()
            stopped.cancel()
            # The last follower begins meanwhile: one cancelled before that would record nothing.
            await asyncio.gather(sending, stopped, return_exceptions=True)
            for follower in self.followers:
                follower.cancel()
            await asyncio.gather(*self.followers, return_exceptions=True)

    async def _drain(self, stopped: asyncio.Task[bool]) -> None:
        """Waits for the last answers."""
        ended = asyncio.gather(*self.followers, return_exceptions=True)
        await asyncio.wait(
            (ended, stopped), timeout=self.target.drain_s, return_when=asyncio.FIRST_COMPLETED
        )

    async def _send_all(self, requests: Iterator[PlannedRequest]) -> None:
        """Sends each request at its instant; a task of its own follows its answer."""
        for request in requests:
            prompt = prompt_ids(request, self.vocabulary_size, self.name)
            options = self._options(request)
            await asyncio.sleep(max(0.0, request.at - self.now()))  # also lets the others run
            server = self.spread.choose(request, prompt)
            client = self.clients[server][request.index % self.target.channels]
            record = Record(request, sent_at=self.now())
            if len(self.clients) > 1:
                record.replica = server
            stream = client.generate(prompt, **options)
            self.records.append(record)
            self.num_in_flight += 1
            follower = asyncio.create_task(self._follow(record, stream))
            self.followers.add(follower)
            follower.add_done_callback(self._ended)

    def _ended(self, follower: asyncio.Task[None]) -> None:
        """Forgets a follower that has ended.

        Nothing but a bug of ours makes one raise, and that ends the run.
        """
        self.followers.discard(follower)
        if not follower.cancelled() and (bug := follower.exception()) is not None:
            self.bug = bug
            self.stopping.set()

    def _options(self, request: PlannedRequest) -> GenerateOptions:
        """Returns the options of the call that sends the request."""
        options: GenerateOptions = {
            "max_tokens": request.output_len,
            "ignore_eos": True,
            "temperature": 0.0,
            "seed": request.seed,
            "application": request.application,
            "tenant": request.tenant,
        }
        targets = request.targets
        if not request.explicit:
            options["tier"] = request.tier
        elif targets.ttft is not None and targets.tbt is not None:
            options["ttft"], options["tbt"] = targets.ttft, targets.tbt
        elif targets.ttlt is not None:
            options["ttlt"] = targets.ttlt
        else:
            options["best_effort"] = True
        if request.importance is not None:
            options["importance"] = request.importance
        if request.refuse_if_late:
            options["refuse_if_late"] = True
        if request.timeout_s is not None:
            options["timeout"] = request.timeout_s
        return options

    async def _follow(self, record: Record, stream: AsyncStream) -> None:
        """Reads one stream to its end, whatever that is, and notes it in the record."""
        try:
            record.outcome = await self._read(record, stream)
        except NiyamaError as error:
            record.outcome, record.error = _outcome(error), _one_line(error)
            if isinstance(error, Unavailable) and self.probe is None:
                self.probe = asyncio.create_task(self._probe())
        except asyncio.CancelledError:
            interrupted = self.end is End.INTERRUPTED
            record.outcome = Outcome.ABANDONED if interrupted else Outcome.UNFINISHED
            if self.end is End.TARGET_LOST:
                record.outcome, record.error = Outcome.FAILED, self.problem
        finally:
            record.ended_at = self.now()
            record.relegated = bool(stream.relegations)
            record.request_id = stream.request_id or ""
            if stream.timings is not None:
                record.server_ttft_s = stream.timings.ttft
            if stream.accepted is not None and stream.accepted.forecast is not None:
                record.promised = stream.accepted.forecast.on_time
            self.spread.ended(record)
            self.num_in_flight -= 1
            self.counts[record.outcome] += 1

    async def _read(self, record: Record, stream: AsyncStream) -> Outcome:
        """Notes the instant of each token until the stream ends or its client leaves as planned."""
        token_at, request = record.token_at, record.request
        leaves_after, leaves_s = request.cancel_after, request.leaves_s
        left_s = None if leaves_s is None else request.at + leaves_s - self.now()
        try:
            async with asyncio.timeout(left_s) as patience, stream:
                async for tokens in stream:
                    now = self.now()
                    for _ in tokens.token_ids:
                        token_at.append(now)
                    if leaves_after is not None and len(token_at) >= leaves_after:
                        return Outcome.CANCELLED
        except TimeoutError:
            if not patience.expired():
                raise
            return Outcome.CANCELLED
        return Outcome.FINISHED

    async def _probe(self) -> None:
        """Asks after an UNAVAILABLE whether anybody is still there, and ends the run if not.

        A front end whose engine restarts answers, and so do front ends beside one that died, though
        its socket may take a question with it: hence several tries. Of several servers one is
        enough.
        """
        problems = [await self._problem_of(server) for server in self.target.servers]
        if all(problems):
            self._stop(End.TARGET_LOST, problems[0])
        self.probe = None

    async def _problem_of(self, server: str) -> str:
        """Returns why a server does not answer, or an empty text where it does."""
        problem = ""
        async with self.target.client(
            server, timeout=_PROBE_TIMEOUT_S, channel_options=_OWN_CONNECTION
        ) as client:
            for _ in range(_PROBES):
                try:
                    await client.server_info()
                    return ""
                except (Unavailable, TimedOut) as error:
                    problem = f"{server}: lost during the run: {_one_line(error)}"
                await asyncio.sleep(_PROBE_INTERVAL_S)
        return problem

    async def _tick(self) -> None:
        """Tells how far the run is, again and again."""
        while True:
            self.watch(self._progress())
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _progress(self) -> Progress:
        return Progress(
            max(0.0, self.now()),
            len(self.records),
            self.num_in_flight,
            self.counts[Outcome.FINISHED],
            sum(count for outcome, count in self.counts.items() if outcome.is_incomplete),
        )


def _outcome(error: NiyamaError) -> Outcome:
    if isinstance(error, QueueFull):
        return Outcome.REJECTED
    return Outcome.TIMED_OUT if isinstance(error, TimedOut) else Outcome.FAILED
