"""How each way to fail comes about, at a server as `served` has it: its functions take the server,
and end with the error that a real client is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from engine.config import EngineConfig
from engine.deciding.request import Importance, key_of
from engine.deciding.sequence import FinishReason
from niyama.v1 import inference_pb2 as pb
from server.admission.places import Entry
from server.admission.quota import Caller
from server.config import ServerConfig
from server.identity import tokens
from server.reading.lanes import ReaderProcess
from server.serving import MAX_QUESTIONS
from tests.engine.driving.engines import NULL, SPOILT, Failing
from tests.server.conftest import Running, front_end_of, running_with, until, within

MAX_REQUESTS = 4
TOKEN = "operator's-own"
LONG = pb.Input(text="In the beginning was the Word, " * 2000)  # for another process to read
Provoke = Callable[[Running], Awaitable[object]]


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Running]:
    """A server with a small queue and no patience, whose engine has a batch of one."""
    with tempfile.TemporaryDirectory() as folder:
        token, file = Path(folder) / "token", Path(folder) / "server.toml"
        token.touch(0o600)
        token.write_text(TOKEN)
        file.write_text("[tenants.acme]\n[tenants.zenith]\n")
        engine = EngineConfig(factory=SPOILT, max_batch_size=1, longest_wait_s=1e-9)
        config = ServerConfig(
            port=0, max_requests=MAX_REQUESTS, admin_token_file=token, config=file, engine=engine
        )
        async with running_with(config) as running:
            yield running


RIGHTS = """
default_tier = "bronze"
[tiers.gold]
ttlt_s = 1
[tiers.bronze]
ttlt_s = 60
[tenants.free]
tiers = ["bronze"]
importance = "normal"
max_requests = 1
"""
SHOWN, KNOWN_AS = tokens.make("free")  # by the tenant, and the line of the file


@contextlib.asynccontextmanager
async def asking() -> AsyncIterator[Running]:
    """A server that asks who calls, and knows one tenant, who may not have all."""
    with tempfile.TemporaryDirectory() as folder:
        known, file = Path(folder) / "tokens", Path(folder) / "server.toml"
        for path, text in ((known, KNOWN_AS), (file, RIGHTS)):
            path.touch(0o600)
            path.write_text(text + "\n")
        engine = EngineConfig(factory=NULL)
        config = ServerConfig(
            port=0, tokens_file=known, config=file, load_reports=True, engine=engine
        )
        async with running_with(config) as running:
            yield running


def as_free(qos: pb.QualityOfService | None = None, *metadata: tuple[str, str]) -> Provoke:
    """The tenant asks for that."""
    own = (("authorization", f"Bearer {SHOWN}"), *metadata)
    return generate(asked(qos=qos), metadata=own)


async def tenant_limit(running: Running) -> None:
    with filled(running, "free", 1):
        await as_free()(running)


async def all_load(running: Running) -> None:
    """The tenant asks how loaded the server is."""
    method = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"
    metadata = (("authorization", f"Bearer {SHOWN}"),)
    await within(running.channel.unary_stream(method)(b"", metadata=metadata).read())


def asked(max_tokens: int = 2, **fields: Any) -> pb.GenerateRequest:
    sampling = pb.Sampling(max_tokens=max_tokens, ignore_eos=True)
    usual = {"input": pb.Input(text="Once"), "sampling": sampling}
    return pb.GenerateRequest(**{**usual, **fields})


def due(ttlt_s: float, **fields: Any) -> pb.QualityOfService:
    qos = pb.QualityOfService(**fields)
    qos.deadline.ttlt.FromNanoseconds(int(1e9 * ttlt_s))
    return qos


def raw(running: Running, method: str, service: str = "niyama.v1.Inference") -> Any:
    """A call of that method with bytes."""
    return running.channel.unary_unary(f"/{service}/{method}")


@contextlib.contextmanager
def filled(
    running: Running, tenant: str = "", requests: int = MAX_REQUESTS, tokens: int = 1
) -> Any:
    """The queue holds so many requests of a tenant that have begun to stream, and one that waits
    where they are fewer than it may hold.
    """
    ledger, entries = running.server.ledger, []
    share = running.service.tiers.share_of(tenant)
    for i in range(requests):
        entry = Entry(tenant, f"filling-{i}", share, "", Importance.HIGH, 1, tokens)
        ledger.admit(entry, lambda error: None, 0.0)
        entries.append(entry)
        if tokens == 1:
            ledger.start(entry.key)
    try:
        yield
    finally:
        for entry in entries:
            ledger.leave(entry.key)


@contextlib.asynccontextmanager
async def holding(running: Running, request_id: str, **fields: Any) -> AsyncIterator[Any]:
    """A call of that id is in the engine, which has a batch of one."""
    call = running.stub.Generate(asked(5000, request_id=request_id, **fields))
    await until(lambda: request_id in running.server.engine.link.in_flight or call.done())
    assert not call.done(), await call
    try:
        yield call
    finally:
        call.cancel()
        await within(running.service.calls.idle.wait())
        await until(lambda: request_id not in running.server.engine.link.in_flight)


# How each row comes about


async def no_message(running: Running) -> None:
    await within(running.channel.stream_unary("/niyama.v1.Inference/Generate")(iter(())))


async def slow_message(running: Running) -> None:
    """A stream whose message does not come, with little patience for it."""
    uploads = front_end_of(running.server)._uploads
    before, uploads.timeout_s = uploads.timeout_s, 0.2
    done = asyncio.Event()

    async def never() -> AsyncIterator[bytes]:
        await done.wait()
        yield b""

    try:
        await within(running.channel.stream_unary("/niyama.v1.Inference/Generate")(never()))
    finally:
        uploads.timeout_s = before
        done.set()


async def same_id(running: Running) -> None:
    async with holding(running, "same"):
        await within(running.stub.Generate(asked(request_id="same")))


async def queue_full(running: Running) -> None:
    with filled(running):
        await within(running.stub.Generate(asked()))


async def work_full(running: Running) -> None:
    most = running.server.ledger.admission.tokens.limit
    with filled(running, requests=1, tokens=most):
        await within(running.stub.Generate(asked()))


async def share_used(running: Running) -> None:
    with filled(running, "acme", 2), filled(running, "zenith", 1):
        call = running.stub.Generate(asked(), metadata=(("niyama-tenant", "acme"),))
        await within(call)


async def too_much(running: Running) -> None:
    with running.service.questions.hold(Caller("", ""), MAX_QUESTIONS // 2):
        await within(running.stub.Estimate(pb.EstimateRequest(prompt_tokens=1)))


async def displaced(running: Running) -> None:
    async with holding(running, "before-low", qos=due(3600)):
        low = due(3600, importance=pb.IMPORTANCE_LOW)
        call = running.stub.Generate(asked(request_id="low", qos=low))
        await until(lambda: "low" in running.server.engine.link.in_flight)
        with filled(running, requests=MAX_REQUESTS - 1):
            await within(call)


async def waited_too_long(running: Running) -> None:
    """Who has an impossible target is relegated, and may wait for no time at all after it."""
    async with holding(running, "before-late", qos=due(3600)):
        await within(running.stub.Generate(asked(qos=due(1e-6))))


async def rejected(_: Running) -> None:
    """By another server, whose policy lets in only who can be on time."""
    engine = EngineConfig(factory=NULL, policy="edf-reject")
    async with running_with(ServerConfig(port=0, engine=engine)) as running:
        await within(running.stub.Generate(asked(qos=due(1e-6))))


async def would_be_late(running: Running) -> None:
    await within(running.stub.Generate(asked(qos=due(1e-6, refuse_if_late=True))))


async def defect(running: Running) -> None:
    def broken(*arguments: object) -> object:
        raise RuntimeError("a mistake of ours, with a secret in it")

    before, running.service.bounds = running.service.bounds, broken  # type: ignore[assignment]
    try:
        await within(running.stub.Generate(asked()))
    finally:
        running.service.bounds = before  # type: ignore[method-assign]


async def no_tokenizer(running: Running) -> None:
    smg, nothing = front_end_of(running.server).smg, asyncio.create_task(asyncio.sleep(0, []))
    assert smg is not None
    before, smg.tokenizer = smg.tokenizer, nothing
    try:
        await within(raw(running, "GetTokenizer", "vllm.grpc.engine.VllmEngine")(b""))
    finally:
        smg.tokenizer = before


async def engine_error(running: Running) -> None:
    request = asked()
    request.sampling.seed = Failing.BREAKING_SEED
    await within(running.stub.Generate(request))


async def ended_by_the_server(running: Running) -> None:
    async with holding(running, "ended") as call:
        running.server.engine.link.cancel(key_of("", "ended"), FinishReason.CANCELLED)
        await within(call)


def killed_at(name: str, patch: pytest.MonkeyPatch) -> None:
    """Processes that read are killed where they are told to do what is named so."""
    method = getattr(ReaderProcess, name)

    def killed(self: ReaderProcess, *arguments: Any) -> Any:
        os.kill(self.pid, signal.SIGKILL)
        return method(self, *arguments)

    patch.setattr(ReaderProcess, name, killed)


async def reader_error(running: Running) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_at("ask", patch)
        await within(running.stub.Generate(asked(input=LONG)))


async def reader_lost(running: Running) -> None:
    """The process that reads is lost, and the next one while it loads."""
    await within(running.stub.CountTokens(pb.CountTokensRequest(input=LONG)))  # it has loaded
    with pytest.MonkeyPatch.context() as patch:
        killed_at("ask", patch)
        killed_at("load", patch)
        await within(running.stub.Generate(asked(input=LONG)))


async def engine_lost(running: Running) -> None:
    """The engine is killed when the first of a stream has come."""
    request = pb.GenerateStreamRequest.FromString(asked(5000).SerializeToString())
    call = running.stub.GenerateStream(request)
    while not (await within(call.read())).HasField("tokens"):
        pass
    info = running.server.engine.link.info
    assert info is not None
    os.kill(info.pid, signal.SIGKILL)
    while await within(call.read()) is not grpc.aio.EOF:
        pass


async def draining(running: Running) -> None:
    await within(running.server.drain())
    await within(running.stub.Generate(asked()))


def explain(request_id: str, token: str = "") -> Provoke:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    request = pb.ExplainRequest(request_id=request_id)
    return lambda running: within(running.stub.Explain(request, metadata=metadata))


def generate(request: pb.GenerateRequest, **options: Any) -> Provoke:
    return lambda running: within(running.stub.Generate(request, **options))
