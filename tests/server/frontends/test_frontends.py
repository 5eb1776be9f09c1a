"""`--frontends 2`: one service, whichever front end a call comes to, and whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from niyama.v1 import inference_pb2 as pb
from tests.server.conftest import Stubs, within
from tests.server.test_lifetime import NOT_SERVING, SERVING, finish, status_of
from tests.server_process import ServerProcess

MAX_REQUESTS = 4
LONG = 4000  # tokens: longer than a test looks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pair:
    """A server of two front ends and, once asked for, a connection to each."""

    def __init__(self, process: ServerProcess, metrics_port: int) -> None:
        self.process = process
        self._metrics_port = metrics_port
        self.num_probes = 0

    @property
    def parent(self) -> psutil.Process:
        return psutil.Process(self.process.child.pid)

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.parent.children() if "server.frontends.worker" in p.cmdline()]

    def engine(self) -> psutil.Process:
        (engine,) = [p for p in self.parent.children() if "engine.driving" in p.cmdline()]
        return engine

    @contextlib.asynccontextmanager
    async def stubs(self) -> AsyncIterator[tuple[Stubs, Stubs]]:
        """Of front ends 0 and 1: connections are opened until the kernel has dealt one to each."""
        async with contextlib.AsyncExitStack() as stack:
            found: dict[int, Stubs] = {}
            while len(found) < 2:
                options = (("grpc.use_local_subchannel_pool", 1),)
                channel = grpc.aio.insecure_channel(self.process.address, options)
                stubs = Stubs(await stack.enter_async_context(channel))
                found.setdefault(await self._probe(stubs), stubs)
            yield found[0], found[1]

    async def _probe(self, stubs: Stubs) -> int:
        """Which front end answers."""
        self.num_probes += 1
        request_id = f"probe-{self.num_probes}"
        sampling = pb.Sampling(max_tokens=1)
        request = pb.GenerateRequest(
            input=pb.Input(text="Once"), sampling=sampling, request_id=request_id
        )
        await within(stubs.inference.Generate(request))
        told = f'"{request_id}"'
        line = await asyncio.to_thread(self.process.wait_line, lambda line: told in line)
        return int(json.loads(line)["frontend"])

    async def metrics(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"

        def scrape() -> str:
            with urllib.request.urlopen(url, timeout=60) as response:
                return str(response.read().decode())

        lines = (await asyncio.to_thread(scrape)).splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    async def until(self, is_true: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Scrapes until the metrics are as wanted."""

        async def ask() -> dict[str, float]:
            while not is_true(found := await self.metrics()):
                pass
            return found

        return await within(ask())

    async def until_idle(self) -> None:
        await self.until(
            lambda m: (
                not m["niyama_calls_in_flight"]
                and not sum(
                    value for name, value in m.items() if name.startswith("niyama_sequences{")
                )
            )
        )


Start = Callable[..., Pair]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> Pair:
            port = free_port()
            limits = ("--max-requests", str(MAX_REQUESTS), "--metrics-port", str(port))
            common = ("--frontends", "2", "--torch-threads", "1", *limits)
            process = ServerProcess(tmp_path / "log", *common, *flags)
            return Pair(stack.enter_context(process), port)

        yield start


@pytest.fixture
def pair(start: Start) -> Pair:
    pair = start()
    pair.process.wait_ready()
    return pair


def asked(request_id: str, max_tokens: int = LONG) -> pb.GenerateStreamRequest:
    sampling = pb.Sampling(seed=1, max_tokens=max_tokens, ignore_eos=True)
    best_effort = pb.QualityOfService(best_effort=pb.BestEffortTargets())
    return pb.GenerateStreamRequest(
        input=pb.Input(text="Once"), sampling=sampling, request_id=request_id, qos=best_effort
    )


async def started(
    stubs: Stubs, request_id: str, max_tokens: int = LONG
) -> grpc.aio.UnaryStreamCall:
    call = stubs.inference.GenerateStream(asked(request_id, max_tokens))
    while not (await within(call.read())).HasField("tokens"):
        pass
    return call


def requests(result: str) -> str:
    """The count of such calls as `asked`."""
    labels = f'importance="normal",result="{result}",tenant="other",tier="explicit"'
    return f"niyama_requests_total{{{labels}}}"


async def code_of(answer: Awaitable[object]) -> grpc.StatusCode:
    try:
        await within(answer)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_what_one_front_end_serves_the_other_knows_of(pair: Pair) -> None:
    """Ids, the queue's limit, stories and counters are the service's, not a process's."""
    async with pair.stubs() as (one, other):
        calls = [await started(one, "a"), await started(other, "b"), await started(other, "c")]
        again = other.inference.GenerateStream(asked("a"))
        assert await status_of(again) is grpc.StatusCode.ALREADY_EXISTS
        story = await within(other.inference.Explain(pb.ExplainRequest(request_id="a")))
        assert story.request_id == "a"
        calls.append(await started(one, "d"))
        for stubs in (one, other):
            full = stubs.inference.GenerateStream(asked("e"))
            assert await status_of(full) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "4 requests" in await full.details()
        # A refused call is counted out after its status has gone.
        await pair.until(lambda m: m["niyama_calls_in_flight"] == MAX_REQUESTS)
        for call in calls:
            call.cancel()
        await pair.until_idle()
        before = (await pair.metrics())["niyama_output_tokens_total"]
        for name, stubs in (("f", one), ("g", other)):
            await finish(stubs.inference.GenerateStream(asked(name, max_tokens=5)))
        found = await pair.until(lambda m: not m["niyama_calls_in_flight"])
        assert found["niyama_output_tokens_total"] == before + 10
        assert found[requests("refused")] == 2


async def test_a_front_end_s_death_costs_its_own_calls_and_nobody_else_s(pair: Pair) -> None:
    async with pair.stubs() as (one, other):
        lost = [await started(one, "a"), await started(one, "b")]
        kept = await started(other, "c", max_tokens=600)
        victim = pair.workers()[0]
        victim.kill()
        for call in lost:
            assert await status_of(call) is grpc.StatusCode.UNAVAILABLE
        # The engine ends what it was at work on, and the queue has room for as many again.
        await pair.until(lambda m: m["niyama_frontend_losses_total"] == 1)
        more = [await started(other, name) for name in ("a", "b")]
        assert (await finish(kept)).usage.output_tokens == 600
        for call in more:
            call.cancel()
    await pair.until_idle()
    async with pair.stubs() as (replaced, _):
        finished = await finish(replaced.inference.GenerateStream(asked("a", max_tokens=5)))
        assert finished.usage.output_tokens == 5
    # What the dead one had counted counts on: the probes, and the calls that went well.
    found = await pair.until(lambda m: m.get(requests("best_effort")) == 2)
    assert found['niyama_rpcs_total{outcome="OK",rpc="Generate"}'] == pair.num_probes
    assert found[requests("failed")] == len(lost)
    of_each = ("", "-reader-short", "-reader-long")
    told = {name.split('"')[1] for name in found if name.startswith("process_cpu_seconds_total")}
    assert told == {"server", "engine", *(f"frontend-{n}{who}" for n in (0, 1) for who in of_each)}
    assert len(pair.workers()) == 2
    assert victim.pid not in [worker.pid for worker in pair.workers()]


async def test_a_lost_engine_fails_the_calls_of_all_front_ends_and_all_recover(pair: Pair) -> None:
    service = health_pb2.HealthCheckRequest(service="niyama.v1.Inference")
    async with pair.stubs() as both:
        watches = [stubs.health.Watch(service) for stubs in both]
        for watch in watches:
            assert (await within(watch.read())).status == SERVING
        calls = [await started(stubs, f"r{i}") for i, stubs in enumerate(both)]
        pair.engine().kill()
        for call, watch in zip(calls, watches, strict=True):
            assert await status_of(call) is grpc.StatusCode.UNAVAILABLE
            assert (await within(watch.read())).status == NOT_SERVING
        for i, (watch, stubs) in enumerate(zip(watches, both, strict=True)):
            assert (await within(watch.read())).status == SERVING
            finished = await finish(stubs.inference.GenerateStream(asked(f"r{i}", max_tokens=5)))
            assert finished.usage.output_tokens == 5
            watch.cancel()
    assert (await pair.metrics())["niyama_engine_losses_total"] == 1


async def test_a_supervisor_that_stops_is_told_by_health_and_goes_on(
    start: Start,
) -> None:
    """New calls would wait for its ledger for ever; those that run need it for nothing."""
    pair = start("--heartbeat-s", "1")
    pair.process.wait_ready()
    children = {child.pid for child in pair.parent.children()}
    service = health_pb2.HealthCheckRequest(service="niyama.v1.Inference")
    async with pair.stubs() as both:
        watches = [stubs.health.Watch(service) for stubs in both]
        for watch in watches:
            assert (await within(watch.read())).status == SERVING
        running = await started(both[0], "runs", max_tokens=600)
        pair.parent.suspend()
        for watch, stubs in zip(watches, both, strict=True):
            assert (await within(watch.read())).status == NOT_SERVING
            refused = stubs.inference.GenerateStream(asked("late"))
            assert await status_of(refused) is grpc.StatusCode.UNAVAILABLE
            assert "supervisor may have stopped" in await refused.details()
        assert (await finish(running)).usage.output_tokens == 600
        pair.parent.resume()
        for number, (watch, stubs) in enumerate(zip(watches, both, strict=True)):
            assert (await within(watch.read())).status == SERVING
            watch.cancel()
            again = asked(f"next-{number}", max_tokens=5)
            served = await finish(stubs.inference.GenerateStream(again))
            assert served.usage.output_tokens == 5
    assert {child.pid for child in pair.parent.children()} == children


async def test_sigterm_drains_every_front_end(pair: Pair) -> None:
    children = pair.parent.children()
    async with pair.stubs() as both:
        running = [await started(stubs, f"r{i}", max_tokens=600) for i, stubs in enumerate(both)]
        pair.process.signal(signal.SIGTERM)
        service = health_pb2.HealthCheckRequest()
        for stubs in both:
            watch = stubs.health.Watch(service)
            while (await within(watch.read())).status != NOT_SERVING:
                pass
            refused = stubs.inference.GenerateStream(asked("late"))
            assert await status_of(refused) is grpc.StatusCode.UNAVAILABLE
            assert "draining" in await refused.details()
            watch.cancel()
        for call in running:
            assert (await finish(call)).usage.output_tokens == 600
    assert await asyncio.to_thread(pair.process.wait_exit) == 0
    assert not any(child.is_running() for child in children)


async def test_a_second_signal_ends_everything_at_once(pair: Pair) -> None:
    children = pair.parent.children()
    async with pair.stubs() as (one, _):
        cut = await started(one, "a")
        watch = one.health.Watch(health_pb2.HealthCheckRequest())
        pair.process.signal(signal.SIGTERM)
        while (await within(watch.read())).status != NOT_SERVING:
            pass
        pair.process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(pair.process.wait_exit) == 128 + signal.SIGTERM
        assert await status_of(cut) is grpc.StatusCode.UNAVAILABLE
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)


def test_nobody_and_no_file_outlives_the_supervisor(pair: Pair) -> None:
    children = pair.parent.children()
    assert len(children) == 3
    (folder,) = {worker.environ()["PROMETHEUS_MULTIPROC_DIR"] for worker in pair.workers()}
    assert list(Path(folder).iterdir())
    pair.parent.kill()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert len(gone) == 3
    assert not Path(folder).exists()


def test_sigterm_while_loading_leaves_nothing_and_says_nothing(start: Start) -> None:
    pair = start()
    while len(children := pair.parent.children()) < 3:
        assert pair.process.child.poll() is None
    pair.process.signal(signal.SIGTERM)
    assert pair.process.wait_exit() == 0
    assert pair.process.said == []
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--model", "/no/such/folder"), "no checkpoint folder or GGUF file /no/such/folder"),
        (("--device", "cuda:99"), "--device cuda:99: "),
    ],
)
def test_several_front_ends_that_cannot_start_say_why_once(
    start: Start, flags: tuple[str, ...], line: str
) -> None:
    pair = start(*flags)
    assert pair.process.wait_exit() == 1
    (said,) = pair.process.said
    assert said.startswith("niyama-server: error: ")
    assert line in said


def test_a_port_is_not_shared_with_another_server(start: Start, server: ServerProcess) -> None:
    pair = start("--port", server.address.rpartition(":")[2])
    assert pair.process.wait_exit() == 1
    line = f"niyama-server: error: cannot listen on {server.address}: address in use"
    assert pair.process.said == [line]
