"""Two replicas behind Ray's own proxy: one cluster for the module, of this machine alone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from tests.server.conftest import within
from tests.server_process import ServerProcess

pytest.importorskip("ray", reason="the extra `ray` is not installed")

NUM_STREAMS = 12
FLAGS = ("--replicas", "2", "--allow-anonymous", "--torch-threads", "1", "--max-batch-size", "4")
Stub = inference_pb2_grpc.InferenceStub


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("fleet") / "log"
    with ServerProcess(log, *FLAGS, module="server.ray") as process:
        process.wait_ready()
        yield process


@pytest.fixture
async def channel(fleet: ServerProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(fleet.address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Stub:
    return inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]


def request(num_tokens: int = 8, request_id: str = "", text: str = "And it") -> Any:
    sampling = pb.Sampling(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    prompt = pb.Input(text=text)
    return pb.GenerateStreamRequest(input=prompt, sampling=sampling, request_id=request_id)


def test_what_listens_for_other_machines_is_serves_proxy_and_the_replicas_port_for_it(
    fleet: ServerProcess,
) -> None:
    listeners = []
    for process in psutil.Process(fleet.child.pid).children(recursive=True):
        for each in process.net_connections("inet"):
            ip = each.laddr.ip.removeprefix("::ffff:")
            if each.status == psutil.CONN_LISTEN and ip != "::1" and not ip.startswith("127."):
                listeners.append((process.name().removeprefix("ray::")[:10], each.laddr.port))
    ports = {"ProxyActor": {int(fleet.address.rpartition(":")[2])}}
    ports["ServeRepli"] = {port for name, port in listeners if name == "ServeRepli"}
    assert sorted(listeners) == sorted((name, port) for name in ports for port in ports[name])
    assert len(ports["ServeRepli"]) == 2


async def test_a_stream_comes_token_by_token_and_its_story_is_told(stub: Stub) -> None:
    stream = stub.GenerateStream(request(8, "told"), metadata=(("niyama-tenant", "acme"),))
    events = [event.WhichOneof("event") async for event in stream]
    assert events[0] == "accepted"
    assert events[-1] == "finished"
    assert events.count("tokens") > 1
    with pytest.raises(grpc.aio.AioRpcError) as raised:  # of another tenant, wherever it was
        await within(stub.Explain(pb.ExplainRequest(request_id="told")))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_is_wrong_is_told_with_its_details(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await within(stub.Generate(pb.GenerateRequest(sampling=pb.Sampling(top_p=7))))
    status = rpc_status.from_call(raised.value)
    assert status is not None
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    kinds = [each.type_url.rpartition(".")[2] for each in status.details]
    assert kinds == ["BadRequest", "ErrorInfo"]


async def test_a_deadline_caps_the_targets(stub: Stub) -> None:
    wanted = request()
    wanted.qos.deadline.ttlt.CopyFrom(Duration(seconds=1000))
    stream = stub.GenerateStream(wanted, timeout=50)
    first = await within(stream.read())
    assert 0 < first.accepted.targets.ttlt.seconds < 50
    stream.cancel()


async def test_a_cancelled_stream_ends_at_its_replica(stub: Stub, fleet: ServerProcess) -> None:
    stream = stub.GenerateStream(request(2000, "left"))
    for _ in range(3):
        await within(stream.read())
    stream.cancel()
    line = await asyncio.to_thread(fleet.wait_line, lambda line: '"request_id": "left"' in line)
    assert '"outcome": "CANCELLED"' in line


async def test_a_prefix_stays_with_its_replica(stub: Stub) -> None:
    prompt = "And it came to pass in those days, as it was written. " * 40
    cached = []
    for _ in range(6):
        wanted = request(1, text=prompt)
        events = [event async for event in stub.GenerateStream(wanted)]
        cached.append(events[-1].finished.usage.cached_tokens)
    assert cached[0] == 0
    assert all(cached[1:])


async def test_health_is_that_of_a_replica(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    response = await within(health.Check(health_pb2.HealthCheckRequest(service="")))
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_of_a_replica_that_is_killed_only_what_streamed_is_lost(
    stub: Stub, fleet: ServerProcess
) -> None:
    """Each stream ends with a status; requests that waited are served by the other replica."""
    streams = [stub.GenerateStream(request(200)) for _ in range(NUM_STREAMS)]
    for stream in streams:  # all are accepted, more than can run
        assert (await within(stream.read())).WhichOneof("event") == "accepted"
    _replica(fleet.child.pid).send_signal(signal.SIGKILL)
    ends = await within(asyncio.gather(*map(_end, streams)))
    lost = [end for end in ends if end.code is not grpc.StatusCode.OK]
    assert all(end.code is grpc.StatusCode.UNAVAILABLE for end in lost)
    assert all(end.num_tokens for end in lost)
    assert len(lost) < NUM_STREAMS
    await within(stub.Generate(pb.GenerateRequest(input=pb.Input(text="a"))))


class End:
    """How a stream ended, and how many of its events had text."""

    def __init__(self, code: grpc.StatusCode, num_tokens: int) -> None:
        self.code, self.num_tokens = code, num_tokens


async def _end(stream: Any) -> End:
    num_tokens = 0
    try:
        while isinstance(event := await stream.read(), pb.GenerateStreamResponse):
            num_tokens += event.WhichOneof("event") == "tokens"
    except grpc.aio.AioRpcError as error:
        return End(error.code(), num_tokens)
    return End(grpc.StatusCode.OK, num_tokens)


def _replica(pid: int) -> psutil.Process:
    """A process of a replica among those that the process has started."""
    for each in psutil.Process(pid).children(recursive=True):
        if " ".join(each.cmdline()).startswith("ray::ServeReplica"):
            return each
    raise AssertionError("there is no replica")
