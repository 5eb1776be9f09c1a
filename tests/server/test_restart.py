"""Calls of which nothing was sent outlive the engine that had them, and a process that stops is
noticed, whichever it is: what the callers see of both.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import duration_pb2
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from engine.config import EngineConfig
from engine.deciding.questions import Stats
from niyama.v1 import inference_pb2 as pb
from server.app import Server
from server.config import ServerConfig
from server.frontends.supervisor import Supervisor
from tests.server.conftest import Stubs, front_end_of, until, within

# Its first engine takes everything in and sends nothing, those after it are quick.
FACTORY = "tests.engine.driving.engines:build_first_hanging"
SAMPLING = pb.Sampling(seed=1, max_tokens=9, ignore_eos=True)
MOMENT = duration_pb2.Duration(nanos=1_000_000)
AT_ONCE = pb.QualityOfService(interactive=pb.InteractiveTargets(ttft=MOMENT, tbt=MOMENT))
SERVICE = health_pb2.HealthCheckRequest(service="niyama.v1.Inference")


NULL = "engine.driving.null:build"
HEARTBEAT_S = 0.5
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def config(frontends: int = 1, drain_s: float = 60.0, **engine: Any) -> ServerConfig:
    settings = EngineConfig(**{"factory": FACTORY} | engine)
    return ServerConfig(port=0, frontends=frontends, drain_s=drain_s, engine=settings)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Stubs]:
    try:
        await within(server.start())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Stubs(channel)
    finally:
        await within(server.stop())


def streamed(stubs: Stubs, request_id: str, timeout: float | None = None) -> Any:
    request = pb.GenerateStreamRequest(
        input=pb.Input(text="Once"), sampling=SAMPLING, request_id=request_id, qos=AT_ONCE
    )
    return stubs.inference.GenerateStream(request, timeout=timeout)


def whole(stubs: Stubs, request_id: str, n: int = 1) -> Any:
    sampling = pb.Sampling(n=n, max_tokens=9, ignore_eos=True)
    request = pb.GenerateRequest(
        input=pb.Input(text="Once"), sampling=sampling, request_id=request_id
    )
    return stubs.inference.Generate(request)


async def read(call: Any) -> list[str]:
    """Kinds of its events."""
    return [event.WhichOneof("event") async for event in call]


async def lose_engine(server: Server) -> None:
    pid = server.engine.keeper.pid
    assert pid is not None
    psutil.Process(pid).kill()
    await until(lambda: server.engine.link.info is None)


async def status_of(call: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(call)
    return caught.value.code()


async def test_the_callers_notice_only_that_it_takes_longer() -> None:
    """After a SIGKILL of the engine twenty queued calls ended UNAVAILABLE."""
    server = Server(config())
    async with serving(server) as stubs:
        streams = [asyncio.create_task(read(streamed(stubs, f"s{i}"))) for i in range(20)]
        wholes = [asyncio.ensure_future(whole(stubs, f"w{i}", n=2)) for i in range(3)]
        await until(lambda: len(server.engine.link.in_flight) == 26)
        await lose_engine(server)
        assert len(server.engine.link.in_flight) == 26
        assert await status_of(read(streamed(stubs, "late"))) is grpc.StatusCode.UNAVAILABLE
        for events in await within(asyncio.gather(*streams)):
            assert (events[0], events[-1]) == ("accepted", "finished")
            assert set(events[1:-1]) - {"relegated"} == {"tokens"}
        for response in await within(asyncio.gather(*wholes)):
            assert [c.finished.usage.output_tokens for c in response.completions] == [9, 9]
        assert len(server.engine.link.in_flight) == 0
        explained = await within(stubs.inference.Explain(pb.ExplainRequest(request_id="s7")))
        assert explained.summary.startswith("Late: TTFT was ")  # from its arrival, not its rerun
        assert "It was begun again: the engine process that had it was lost." in explained.summary
        kinds = [decision["kind"] for decision in MessageToDict(explained)["decisions"]]
        assert kinds[:2] == ["restarted", "admitted"]


async def test_they_wait_no_longer_than_their_deadline_and_hold_nothing_then() -> None:
    server = Server(config())
    async with serving(server) as stubs:
        brief = asyncio.create_task(read(streamed(stubs, "brief", timeout=0.5)))
        left = streamed(stubs, "left")
        await until(lambda: len(server.engine.link.in_flight) == 2)
        server.engine.keeper.config = EngineConfig(
            factory="tests.engine.driving.engines:build_never"
        )
        await lose_engine(server)
        left.cancel()
        assert await status_of(brief) is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: len(server.engine.link.in_flight) == 0)
        await within(front_end_of(server).serving.calls.idle.wait())


async def test_they_end_when_no_engine_comes_in_time() -> None:
    server = Server(config(rerun_s=0.3))
    async with serving(server) as stubs:
        call = asyncio.create_task(read(streamed(stubs, "a")))
        await until(lambda: len(server.engine.link.in_flight) == 1)
        server.engine.keeper.config = EngineConfig(
            factory="tests.engine.driving.engines:build_never"
        )
        await lose_engine(server)
        assert await status_of(call) is grpc.StatusCode.UNAVAILABLE
        assert len(server.engine.link.in_flight) == 0


async def test_a_drain_waits_for_them_too() -> None:
    server = Server(config())
    async with serving(server) as stubs:
        call = asyncio.create_task(read(streamed(stubs, "a")))
        await until(lambda: len(server.engine.link.in_flight) == 1)
        await lose_engine(server)
        await within(server.drain())
        assert (await within(call))[-1] == "finished"


@pytest.mark.parametrize("rerun_s", [60.0, 0.0])
async def test_several_front_ends_run_theirs_again(rerun_s: float) -> None:
    server = Server(config(frontends=2, rerun_s=rerun_s))
    async with serving(server) as stubs:
        calls = [asyncio.create_task(read(streamed(stubs, f"s{i}"))) for i in range(5)]
        calls.append(asyncio.ensure_future(whole(stubs, "w")))
        await until(lambda: len(server.ledger.admission) == 6)
        await lose_engine(server)
        if rerun_s:
            *streams, _ = await within(asyncio.gather(*calls))
            assert all(events[-1] == "finished" for events in streams)
        else:
            assert {await status_of(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        await until(lambda: not len(server.ledger.admission))


async def health_of(watch: Any) -> int:
    return int((await within(watch.read())).status)


@pytest.mark.parametrize("frontends", [1, 2])
async def test_an_engine_that_stops_is_told_by_health_and_replaced(frontends: int) -> None:
    """Health said SERVING for 73 s. Who waits is served by the next engine."""
    settings = config(frontends, heartbeat_s=HEARTBEAT_S)
    server = Server(settings)
    async with serving(server) as stubs:
        watch = stubs.health.Watch(SERVICE)
        assert await health_of(watch) == SERVING
        call = asyncio.create_task(read(streamed(stubs, "waits")))
        await until(lambda: len(server.ledger.admission) == 1)
        os.kill(server.engine.keeper.pid or 0, signal.SIGSTOP)
        assert await health_of(watch) == NOT_SERVING
        assert await status_of(read(streamed(stubs, "late"))) is grpc.StatusCode.UNAVAILABLE
        assert (await within(call))[-1] == "finished"
        assert await health_of(watch) == SERVING
        watch.cancel()


@pytest.mark.parametrize("frontends", [1, 2])
async def test_an_engine_that_is_too_long_at_one_iteration_is_replaced(frontends: int) -> None:
    """Before several front ends nobody who watches it waits for anything of it."""
    settings = config(frontends, patience_s=1.0, heartbeat_s=1.0)
    server = Server(settings)
    async with serving(server) as stubs:
        with capture_logs() as lines:
            call = asyncio.create_task(read(streamed(stubs, "waits")))
            assert (await within(call))[-1] == "finished"
        notices = [line["notice"] for line in lines if line["event"] == "engine"]
        assert "the engine beats and has been at one iteration for 1 s" in notices


async def test_an_engine_that_goes_on_serves_again_and_nobody_has_noticed() -> None:
    server = Server(config(factory=NULL, heartbeat_s=2.0))
    async with serving(server) as stubs:
        watch = stubs.health.Watch(SERVICE)
        assert await health_of(watch) == SERVING
        pid = server.engine.keeper.pid
        os.kill(pid or 0, signal.SIGSTOP)
        call = asyncio.create_task(read(streamed(stubs, "waits")))
        assert await health_of(watch) == NOT_SERVING
        os.kill(pid or 0, signal.SIGCONT)
        assert await health_of(watch) == SERVING
        assert (await within(call))[-1] == "finished"
        assert server.engine.keeper.pid == pid
        watch.cancel()


async def test_a_front_end_that_stops_is_replaced_and_holds_nothing_any_more() -> None:
    """Its port took connections that nobody served, its calls held their places for ever."""
    server = Server(config(2, factory=NULL, heartbeat_s=HEARTBEAT_S))
    async with serving(server) as stubs:
        sampling = pb.Sampling(seed=1, max_tokens=4000, ignore_eos=True)
        endless = pb.GenerateStreamRequest(input=pb.Input(text="Once"), sampling=sampling)
        call = stubs.inference.GenerateStream(endless)
        await within(call.read())
        assert isinstance(server.front_ends, Supervisor)
        (holder,) = (p for p in server.front_ends.processes.values() if p.calls.entries)
        with capture_logs() as lines:
            os.kill(holder.pid, signal.SIGSTOP)
            await until(lambda: any(line["event"] == "front end started again" for line in lines))
        events = [line["event"] for line in lines if line["event"].startswith("front end")]
        assert events == ["front end silent", "front end lost", "front end started again"]
        (lost,) = (line for line in lines if line["event"] == "front end lost")
        assert lost["reason"] == "the front end gave no sign of life: it has stopped"
        assert not len(server.ledger.admission)

        async def drops_it() -> None:
            while (await server.engine.link.ask(Stats())).scheduler.num_running:
                pass

        await within(drops_it())
