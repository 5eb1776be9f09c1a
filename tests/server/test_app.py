"""What the parts of a server agree on: tiers, metrics, keep-alive, message sizes."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest
import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from engine.config import EngineConfig
from engine.deciding.questions import Question
from engine.deciding.request import Importance, Targets
from engine.linking.errors import Unanswered
from engine.messages import Failure
from engine.tiers import Tier
from niyama.v1 import inference_pb2 as pb
from server import app
from server.app import Server
from server.config import ServerConfig, StartError
from server.configuration import Configuration
from server.ending import Ending
from server.listening.addresses import host_port
from server.listening.exposition import Exposition
from server.metrics import Metrics
from tests.engine.driving.engines import NULL
from tests.server.conftest import Running, Stubs, within

PROPOSED = (Tier("swift", Targets(ttlt_s=1.0), Importance.HIGH),)


def test_tiers_are_the_file_s_else_the_engine_s_else_the_built_in_ones(tmp_path: Path) -> None:
    path = tmp_path / "tiers.toml"
    path.write_text("[tiers.own]\nttlt_s = 3")
    plain, own = Configuration(None), Configuration(path)
    assert plain.tiers.default == "interactive"
    assert plain.propose(PROPOSED).resolve().targets == Targets(ttlt_s=1.0)
    assert plain.propose(PROPOSED).resolve().importance is Importance.HIGH
    assert list(own.propose(PROPOSED).tiers) == ["own"]


def test_metrics_are_served_until_they_are_stopped() -> None:
    registry = CollectorRegistry()
    exposition = Exposition(make_wsgi_app(registry))
    Metrics(registry).rpcs.labels("Generate", "OK").inc()
    url = f"http://127.0.0.1:{exposition.serve('127.0.0.1', 0)}/metrics"
    with urllib.request.urlopen(url, timeout=60) as response:
        assert 'niyama_rpcs_total{outcome="OK",rpc="Generate"} 1.0' in response.read().decode()
    exposition.stop()
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=60)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "127.0.0.1:7"), ("::1", "[::1]:7"), ("[::1]", "[::1]:7"), ("a", "a:7")],
)
def test_an_address_is_told_as_clients_name_it(host: str, expected: str) -> None:
    assert host_port(host, 7) == expected


async def test_no_call_is_served_before_the_tiers_that_an_engine_proposes() -> None:
    """Its link serves a moment before the front end has been told of it."""
    server = Server(ServerConfig(port=0, engine=EngineConfig(factory=NULL)))
    request = pb.GenerateRequest(input=pb.Input(text="Once"))
    try:
        info = await within(server.engine.keeper.start())
        (port,) = await within(server.front_ends.start())
        assert server.engine.link.serves
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            stub = Stubs(channel).inference
            with pytest.raises(grpc.aio.AioRpcError, match="the engine is starting") as caught:
                await within(stub.Generate(request))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            server.front_ends.engine_ready(info)
            await within(stub.Generate(request))
    finally:
        await within(server.stop())


class FailingSlowly:
    """In the place of a Server."""

    def __init__(self, config: ServerConfig, configuration: Configuration | None) -> None:
        pass

    async def start(self) -> None:
        await asyncio.sleep(0.1)
        raise StartError("no engine")

    async def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass


async def test_a_slow_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "Server", FailingSlowly)
    monkeypatch.setattr(app, "SLOW_START_S", 0.01)
    with structlog.testing.capture_logs() as lines, pytest.raises(StartError):
        await app.serve(ServerConfig(), Ending(0.0, lambda patience_s: None))
    assert [line["event"] for line in lines] == ["starting"]


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_the_engine_ends_though_the_front_ends_end_with_an_error(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the folder of their metrics cannot be removed, since one still writes there."""

    def kill() -> None:
        raise OSError("the folder is not empty")

    async def stop() -> None:
        kill()

    server = Server(ServerConfig(port=0, engine=EngineConfig(factory=NULL)))
    await within(server.engine.start())
    pid = server.engine.keeper.pid
    assert pid is not None
    ending = server.stop() if end == "stop" else asyncio.to_thread(server.kill)
    with monkeypatch.context() as patched:
        patched.setattr(server.front_ends, "stop", stop)
        patched.setattr(server.front_ends, "kill", kill)
        with pytest.raises(OSError, match="not empty"):
            await within(ending)
    assert not psutil.pid_exists(pid)
    await within(server.stop())


@pytest.mark.asyncio(loop_scope="session")
async def test_what_was_served_is_counted(running: Running) -> None:
    batch = {"tier": "batch"}
    counts: dict[str, dict[str, str]] = {
        "niyama_output_tokens_total": {},
        "niyama_ttlt_seconds_count": batch,
        "niyama_ttft_seconds_count": batch,
        "niyama_worst_tbt_seconds_count": batch,
        "niyama_requests_total": batch
        | {"importance": "normal", "tenant": "other", "result": "on_time"},
    }
    sample = running.metrics.registry.get_sample_value
    before = [sample(name, labels) or 0 for name, labels in counts.items()]
    sampling = pb.Sampling(max_tokens=4, ignore_eos=True)
    request = pb.GenerateRequest(input=pb.Input(text="Once"), sampling=sampling)
    request.qos.tier = "batch"
    await within(running.stub.Generate(request))
    await within(running.service.calls.idle.wait())
    after = [sample(name, labels) or 0 for name, labels in counts.items()]
    assert [b - a for a, b in zip(before, after, strict=True)] == [4, 1, 1, 1, 1]
    assert sample("niyama_calls_in_flight") == 0


@pytest.mark.asyncio(loop_scope="session")
async def test_the_scheduler_s_counters_are_metrics(running: Running) -> None:
    sampling = pb.Sampling(max_tokens=4, ignore_eos=True)
    request = pb.GenerateRequest(input=pb.Input(text="Once"), sampling=sampling)
    await within(running.stub.Generate(request))
    await within(running.server.engine.refresh_metrics())
    stats, sample = await running.stats(), running.metrics.registry.get_sample_value
    assert sample("niyama_iteration_seconds_count") == stats.totals.num_iterations > 0
    assert sample("niyama_sequences_finished_total") == stats.totals.num_finished
    assert sample("niyama_kv_usage_ratio") == sample("niyama_scheduling_alpha") == 0


@pytest.mark.asyncio(loop_scope="session")
async def test_an_engine_that_knows_no_counters_has_no_metrics_and_is_asked_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unanswered(question: Question[object]) -> object:
        raise Unanswered("no statistics are kept", Failure.NOT_FOUND)

    sample = running.metrics.registry.get_sample_value
    with monkeypatch.context() as patch:
        patch.setattr(running.server.engine.link, "ask", unanswered)
        await within(running.server.engine.refresh_metrics())
        assert sample("niyama_kv_usage_ratio") is None
    await within(running.server.engine.refresh_metrics())
    assert sample("niyama_kv_usage_ratio") is not None


@pytest.mark.asyncio(loop_scope="session")
async def test_metrics_port_serves_the_scheduler_s_metrics_too(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = EngineConfig(factory="engine.driving.null:build")
    server = Server(ServerConfig(port=0, metrics_port=port, engine=engine))
    await within(server.start())

    def scrape() -> str:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as response:
            return str(response.read().decode())

    async def until_told() -> None:
        while "niyama_engine_up 1.0" not in await asyncio.to_thread(scrape):
            pass

    await within(until_told())
    await within(server.stop())


@pytest.mark.asyncio(loop_scope="session")
async def test_a_message_beyond_the_limit_is_refused_by_the_transport(running: Running) -> None:
    text = "x" * running.server.config.max_message_bytes
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(running.stub.CountTokens(pb.CountTokensRequest(input=pb.Input(text=text))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.asyncio(loop_scope="session")
async def test_a_client_that_does_not_read_gets_its_tokens_in_few_messages_later() -> None:
    """The engine never waits for a reader; what piles up leaves together, so memory is bounded by
    the tokens themselves. The client's window is small and stays so: left alone it grows until
    it holds all of them.
    """
    window = [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]
    length, engine = 4000, EngineConfig(factory="engine.driving.null:build")
    server = Server(ServerConfig(port=0, engine=engine))
    await within(server.start())
    sampling = pb.Sampling(max_tokens=length, ignore_eos=True)
    request = pb.GenerateStreamRequest(input=pb.Input(text="Once"), sampling=sampling)
    address = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(address, options=window) as channel:
        running = Running(server, channel)
        call = running.stub.GenerateStream(request)
        await running.until(lambda stats: stats.totals.num_finished == 1)
        counts = []
        while (event := await within(call.read())) is not grpc.aio.EOF:
            counts.append(len(event.tokens.token_ids))
    await within(server.stop())
    assert sum(counts) == length
    assert len(counts) < length / 2
