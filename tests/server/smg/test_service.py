"""VllmEngine beside our own service: what a gateway asks of it besides tokens."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from smg_grpc_proto import sglang_scheduler_pb2, sglang_scheduler_pb2_grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import common_pb2 as common

from engine.config import EngineConfig
from niyama.v1 import inference_pb2 as pb
from server import frontend
from server.admission.quota import Caller
from server.config import ServerConfig
from server.smg import service
from server.smg.service import MOST_SENDING
from server.smg.tokenizer import pieces
from tests.engine.driving.engines import NULL
from tests.http2 import HEADERS, Http2
from tests.server.conftest import MAX_REQUESTS, Running, front_end_of, running_with, until, within
from tests.server.smg.asking import ask, request_of, stub_of
from tests.server.test_service import failure

pytestmark = pytest.mark.asyncio(loop_scope="session")
LONG = 4000  # tokens: more than the tests wait for


@pytest_asyncio.fixture(loop_scope="session")
async def stub(running: Running) -> AsyncIterator[Any]:
    """After each test: all pages free, nothing in flight."""
    yield stub_of(running.channel)
    await within(running.service.calls.idle.wait())
    stats = await running.stats()
    assert stats.pages_free == stats.pages_total
    assert stats.num_waiting == stats.num_running == 0
    assert not running.server.engine.link.in_flight


async def started(stub: Any, request_id: str, **more: Any) -> Any:
    """A stream that has sent tokens."""
    call = stub.Generate(request_of(request_id, max_tokens=LONG), **more)
    assert (await within(call.read())).HasField("chunk")
    return call


async def ended(call: Any) -> grpc.StatusCode:
    """The status that a stream ends with."""

    async def read() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    return (await failure(read())).code()


async def is_open(call: Any) -> bool:
    """Whether a stream goes on: another chunk comes."""
    return (await within(call.read())).HasField("chunk")


async def abort(stub: Any, *ids: str, **more: Any) -> None:
    await within(stub.Abort(vllm.AbortRequest(request_ids=ids), **more))


async def test_a_gateway_learns_what_is_served(running: Running, stub: Any) -> None:
    assert (await within(stub.HealthCheck(vllm.HealthCheckRequest()))).healthy
    model = await within(stub.GetModelInfo(vllm.GetModelInfoRequest()))
    info = running.service.info
    assert info is not None
    assert (model.served_model_name, model.is_generation) == (info.model_name, True)
    assert model.max_context_length == min(info.context_len, info.kv_len)
    assert (list(model.eos_token_ids), model.bos_token_id) == ([2], 1)
    for path in (model.model_path, model.tokenizer_path):  # on no gateway's disk
        assert path == f"niyama://{info.model_name}"
    defaults = json.loads(model.default_sampling_params_json)
    assert defaults["temperature"] == running.service.sampling.temperature
    server = await within(stub.GetServerInfo(vllm.GetServerInfoRequest()))
    assert (server.server_type, server.data_parallel_size) == ("vllm-grpc", 1)
    assert server.max_num_seqs == MAX_REQUESTS
    assert server.uptime_seconds > 0


async def test_the_tokenizer_comes_in_pieces_with_a_digest_at_the_end(stub: Any) -> None:
    call = stub.GetTokenizer(common.GetTokenizerRequest())
    pieces = [piece async for piece in call]
    archive = b"".join(piece.data for piece in pieces)
    assert all(0 < len(piece.data) <= 64 << 10 for piece in pieces)
    assert [piece.sha256 for piece in pieces] == [
        *[""] * (len(pieces) - 1),
        sha256(archive).hexdigest(),
    ]
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        assert "tokenizer.json" in files.namelist()
        assert "chat_template" in json.loads(files.read("tokenizer_config.json"))


async def test_a_tokenizer_that_nobody_reads_takes_no_place_of_questions(
    running: Running, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is larger than gRPC keeps, so the call lasts as long as its client will."""
    smg = front_end_of(running.server).smg
    assert smg is not None
    large = asyncio.get_running_loop().create_future()
    large.set_result(pieces(bytes(4 << 20)))
    monkeypatch.setattr(smg, "tokenizer", large)
    rpc = "/vllm.grpc.engine.VllmEngine/GetTokenizer"
    with await asyncio.to_thread(Http2, f"127.0.0.1:{running.server.port}") as client:
        for _ in range(MOST_SENDING // 2 + 1):
            client.call(rpc, b"")
        while (frame := await asyncio.to_thread(client.until, HEADERS, None)) is not None:
            if b"too much is in hand: tokenizers" in frame.payload:
                break
        assert frame is not None
        assert running.service.questions.total == 0


async def test_pieces_come_the_slower_the_more_tokenizers_are_sent(
    running: Running, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who asks for them again and again keeps the tokens of others waiting."""
    smg = front_end_of(running.server).smg
    assert smg is not None
    rests: list[int] = []

    async def noted(num_sending: int) -> None:
        rests.append(num_sending)

    monkeypatch.setattr(service, "_rest", noted)
    with smg._sending.hold(Caller("", "another"), 5):
        num_pieces = len([piece async for piece in stub.GetTokenizer(common.GetTokenizerRequest())])
    await within(running.service.calls.idle.wait())
    assert rests == [6] * num_pieces


async def test_what_is_not_served_is_unimplemented(running: Running, stub: Any) -> None:
    """A gateway finds out by that which runtime it has before it."""
    other = sglang_scheduler_pb2_grpc.SglangSchedulerStub(running.channel)
    for call in (
        other.HealthCheck(sglang_scheduler_pb2.HealthCheckRequest()),
        stub.Embed(vllm.EmbedRequest()),
        stub.FlushCache(common.FlushCacheRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await within(call)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_is_counted_logged_and_told_of_like_any_other(
    running: Running, stub: Any
) -> None:
    rpc = "vllm.grpc.engine.VllmEngine/Generate"
    sample = running.metrics.registry.get_sample_value
    before = sample("niyama_rpcs_total", {"rpc": rpc, "outcome": "OK"}) or 0
    tenant = (("niyama-tenant", "acme"),)
    with structlog.testing.capture_logs() as lines:
        await ask(running, request_of("cmpl-known"), metadata=tenant)
        await within(running.service.calls.idle.wait())
        await within(stub.HealthCheck(vllm.HealthCheckRequest()))
        await within(running.service.calls.idle.wait())
    line, poll = (line for line in lines if line["event"] == "call")
    assert (line["rpc"], line["tenant"], line["output_tokens"]) == (rpc, "acme", 8)
    assert (line["request_id"], line["result"]) == ("cmpl-known", "on_time")
    assert poll["log_level"] == "debug"  # there are many
    assert sample("niyama_rpcs_total", {"rpc": rpc, "outcome": "OK"}) == before + 1
    asked = pb.ExplainRequest(request_id="cmpl-known")
    story = await within(running.stub.Explain(asked, metadata=tenant))
    assert (story.tenant, story.result) == ("acme", "on_time")


async def test_abort_ends_a_stream_and_frees_what_it_held(running: Running, stub: Any) -> None:
    """Nothing else would: a gateway whose client leaves does not cancel the call."""
    call = await started(stub, "left")
    result = ("tier", "importance", "tenant", "result")
    labels = dict(zip(result, ("interactive", "normal", "other", "cancelled"), strict=True))
    before = running.metrics.registry.get_sample_value("niyama_requests_total", labels) or 0
    await abort(stub, "nobody's", "left", "left", "")
    assert await ended(call) is grpc.StatusCode.CANCELLED
    await within(running.service.calls.idle.wait())
    counted = running.metrics.registry.get_sample_value("niyama_requests_total", labels)
    assert counted == before + 1
    await abort(stub, "left")  # it is over: nothing happens


async def test_abort_without_an_id_ends_nothing(stub: Any) -> None:
    """Though calls that state none have the same."""
    call = await started(stub, "")
    await abort(stub, "", *(f"nobody-s-{i}" for i in range(1000)))
    assert await is_open(call)
    call.cancel()
    error = await failure(stub.Abort(vllm.AbortRequest(request_ids=["a" * 40_000])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_abort_ends_a_call_that_waits_or_is_seen_whole(running: Running, stub: Any) -> None:
    calls = [
        stub.Generate(request_of(f"whole-{i}", max_tokens=LONG, stream=False))
        for i in range(MAX_REQUESTS)
    ]
    reading = [asyncio.ensure_future(ended(call)) for call in calls]
    await until(lambda: len(running.server.engine.link.in_flight) == MAX_REQUESTS)
    await abort(stub, *(f"whole-{i}" for i in range(MAX_REQUESTS)))
    assert await within(asyncio.gather(*reading)) == [grpc.StatusCode.CANCELLED] * MAX_REQUESTS


async def test_nobody_aborts_what_another_tenant_asked_for(stub: Any) -> None:
    """Unless nobody is named: a gateway speaks for all of its tenants, and names none."""
    mine, other = ({"metadata": (("niyama-tenant", name),)} for name in ("mine", "other"))
    call = await started(stub, "shared", **mine)
    await abort(stub, "shared", **other)
    assert await is_open(call)
    await abort(stub, "shared", **mine)
    assert await ended(call) is grpc.StatusCode.CANCELLED
    call = await started(stub, "shared", **mine)
    await abort(stub, "shared")
    assert await ended(call) is grpc.StatusCode.CANCELLED


async def test_an_id_may_repeat_and_one_abort_ends_none_of_several(
    running: Running, stub: Any
) -> None:
    """Nobody can say which of them is meant: so nobody's stream is ended for another's."""
    first, second = await started(stub, "twice"), await started(stub, "twice")
    await abort(stub, "twice")
    assert await is_open(first)
    assert await is_open(second)
    third = await started(stub, "twice")
    await abort(stub, "twice")
    assert await is_open(third)
    first.cancel()
    second.cancel()
    await until(lambda: len(running.server.engine.link.in_flight) == 1)
    await abort(stub, "twice")
    assert await ended(third) is grpc.StatusCode.CANCELLED


async def test_an_id_may_come_again_before_the_engine_has_ended_its_call(
    running: Running, stub: Any
) -> None:
    """As soon as a call is over, though the engine is still to be told and to answer."""
    for _ in range(8):
        call = await started(stub, "again")
        call.cancel()
    call = await started(stub, "again")
    await until(lambda: len(running.server.engine.link.in_flight) == 1)
    await abort(stub, "again")
    assert await ended(call) is grpc.StatusCode.CANCELLED


async def test_a_client_that_cancels_frees_its_pages(running: Running, stub: Any) -> None:
    streamed = await started(stub, "gone")
    whole = stub.Generate(request_of(max_tokens=LONG, stream=False))
    reading = asyncio.ensure_future(whole.read())
    await running.until(lambda stats: stats.num_running == 2)
    streamed.cancel()
    whole.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(reading)


async def test_who_finds_no_place_is_told_resource_exhausted(running: Running, stub: Any) -> None:
    """Before the first message: the gateway tries elsewhere, and holds it against nobody."""
    calls = [stub.Generate(request_of(max_tokens=LONG, stream=False)) for _ in range(MAX_REQUESTS)]
    reading = [asyncio.ensure_future(call.read()) for call in calls]
    await until(lambda: len(running.server.engine.link.in_flight) == MAX_REQUESTS)
    for stream in (True, False):
        error = await failure(ask(running, request_of(stream=stream)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()
    await asyncio.gather(*reading, return_exceptions=True)


async def test_who_drains_or_has_no_engine_is_unavailable() -> None:
    """A gateway must not be told that such a server is there: it would take it for nameless."""
    config = ServerConfig(port=0, engine=EngineConfig(factory=NULL))
    async with running_with(config) as running:
        stub = stub_of(running.channel)
        running.server.engine.link.note_silence("supervisor", True)  # which nobody minds here
        unavailable = grpc.StatusCode.UNAVAILABLE
        with structlog.testing.capture_logs() as lines:
            error = await failure(stub.HealthCheck(vllm.HealthCheckRequest()))
            await within(running.service.calls.idle.wait())
        assert error.code() is unavailable
        assert [line["log_level"] for line in lines] == ["debug"]  # asked while a server starts
        assert (await failure(ask(running, request_of()))).code() is unavailable
        running.server.engine.link.note_silence("supervisor", False)
        assert (await within(stub.HealthCheck(vllm.HealthCheckRequest()))).healthy
        await within(running.server.drain())
        assert (await failure(stub.HealthCheck(vllm.HealthCheckRequest()))).code() is unavailable
        assert (await failure(ask(running, request_of()))).code() is unavailable


async def test_it_can_be_left_out(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the operator, or with its package."""
    monkeypatch.setattr(frontend, "find_spec", lambda name: None)
    assert frontend._smg_service(running.service) is None
    config = ServerConfig(port=0, smg=False, engine=EngineConfig(factory=NULL))
    async with running_with(config) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await within(stub_of(running.channel).HealthCheck(vllm.HealthCheckRequest()))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
