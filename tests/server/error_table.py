"""The table of errors in docs/errors.md, made by provoking each of its rows.

    python -m tests.server.error_table          prints the table
    python -m tests.server.error_table --write  writes it into the page

A real client provokes them at a real server of this process, before an engine that computes nothing
and takes its time, with the processes that read for it. What a row says of status and details is
what that client was told; only the situation and the advice are words of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from engine.config import EngineConfig
from engine.deciding.request import Importance, key_of
from engine.deciding.sequence import FinishReason
from niyama.v1 import inference_pb2 as pb
from server.admission.places import Entry
from server.admission.quota import Caller
from server.config import ServerConfig
from server.errors import PUSHBACK_KEY
from server.reading.lanes import Lane
from server.service import MAX_QUESTIONS
from tests.engine.driving.engines import NULL, SPOILT, Failing
from tests.server.conftest import Running, front_end_of, running_with, until, within
from tests.server.test_service import details

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
BEGIN, END = "<!-- by `python -m tests.server.error_table --write` -->\n", "<!-- end -->\n"
MAX_REQUESTS = 4
TOKEN = "operator's-own"
LONG = pb.Input(text="In the beginning was the Word, " * 20_000)  # seconds to tokenize

OWN = "Mend the request; the same one fails again."
LATER = "Try again after `RetryInfo`; gRPC's own retry does."
ELSEWHERE = "Try again, at another server where there is one."
REPORT = "Tell the operator the id; another try may help."
Provoke = Callable[[Running], Awaitable[object]]


@dataclass(frozen=True)
class Row:
    """A way to fail: `provoke` ends with the error. `reason` is "" where gRPC itself answers."""

    reason: str
    situation: str
    advice: str
    provoke: Provoke


@dataclass(frozen=True)
class Told:
    """What a client was told, as the table has it."""

    code: str
    reason: str
    details: str
    about: str
    pushback: str
    error: grpc.aio.AioRpcError


def asked(max_tokens: int = 2, **fields: Any) -> pb.GenerateRequest:
    sampling = pb.Sampling(max_tokens=max_tokens, ignore_eos=True)
    usual = {"input": pb.Input(text="Once"), "sampling": sampling}
    return pb.GenerateRequest(**{**usual, **fields})


def due(ttlt_s: float, **fields: Any) -> pb.QualityOfService:
    qos = pb.QualityOfService(**fields)
    qos.deadline.ttlt.FromNanoseconds(int(1e9 * ttlt_s))
    return qos


def raw(running: Running, method: str) -> Any:
    """A call of that method with bytes."""
    return running.channel.unary_unary(f"/niyama.v1.Inference/{method}")


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
    await until(lambda: request_id in running.server.engine.link.in_flight)
    try:
        yield call
    finally:
        call.cancel()
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
    with running.service._questions.hold(Caller("", ""), MAX_QUESTIONS // 2):
        await within(running.stub.Estimate(pb.EstimateRequest(prompt_tokens=1)))


async def displaced(running: Running) -> None:
    async with holding(running, "first", qos=due(3600)):
        low = due(3600, importance=pb.IMPORTANCE_LOW)
        call = running.stub.Generate(asked(request_id="low", qos=low))
        await until(lambda: "low" in running.server.engine.link.in_flight)
        with filled(running, requests=MAX_REQUESTS - 1):
            await within(call)


async def waited_too_long(running: Running) -> None:
    """Who has an impossible target is relegated, and may wait for no time at all after it."""
    async with holding(running, "first", qos=due(3600)):
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

    before, running.service._bounds = running.service._bounds, broken  # type: ignore[assignment]
    try:
        await within(running.stub.Generate(asked()))
    finally:
        running.service._bounds = before  # type: ignore[method-assign]


async def engine_error(running: Running) -> None:
    request = asked()
    request.sampling.seed = Failing.BREAKING_SEED
    await within(running.stub.Generate(request))


async def ended_by_the_server(running: Running) -> None:
    async with holding(running, "ended") as call:
        running.server.engine.link.cancel(key_of("", "ended"), FinishReason.CANCELLED)
        await within(call)


async def reader_error(running: Running) -> None:
    lane = running.service._prompts.long
    call = running.stub.Generate(asked(input=LONG))
    await until(lambda: lane._current is not None)
    first = pid_of(lane)
    os.kill(first, signal.SIGKILL)
    await until(lambda: lane.pid not in (None, first) and lane._current is not None)
    os.kill(pid_of(lane), signal.SIGKILL)
    await within(call)


async def reader_lost(running: Running) -> None:
    """The process that reads is lost, and the next one while it loads."""
    lane = running.service._prompts.long
    await until(lambda: lane.pid is not None)
    first = pid_of(lane)
    call = running.stub.Generate(asked(input=LONG))
    await until(lambda: lane._current is not None)
    os.kill(first, signal.SIGKILL)
    await until(lambda: lane.pid not in (None, first))
    os.kill(pid_of(lane), signal.SIGKILL)
    await within(call)


def pid_of(lane: Lane) -> int:
    assert lane.pid is not None
    return lane.pid


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


ROWS = [
    Row(
        "INVALID_REQUEST",
        "A field has no value that it may have, is missing or unknown, or the prompt does not fit.",
        f"{OWN} `BadRequest` names up to 16 fields.",
        generate(asked(sampling=pb.Sampling(temperature=-1), qos=pb.QualityOfService(tier="no"))),
    ),
    Row(
        "INVALID_REQUEST",
        "The message is no message of the RPC's type (cut off, wrong wire types, text that is no"
        " UTF-8), health and reflection included.",
        f"{OWN} The client's stubs are of another API.",
        lambda running: within(raw(running, "Generate")(b"\xff" * 9)),
    ),
    Row("NO_MESSAGE", "The call ended before its message had come whole.", OWN, no_message),
    Row(
        "NOT_RECEIVED",
        "The message did not come within `--receive-timeout-s`.",
        "Try again by a faster way.",
        slow_message,
    ),
    Row(
        "REQUEST_ID_IN_FLIGHT",
        "A request of that id, of the same tenant, has not ended.",
        "Use another id, or none: the server then makes one.",
        same_id,
    ),
    Row("QUEUE_FULL", "As many requests wait or run as may.", LATER, queue_full),
    Row("WORK_FULL", "As many tokens of work wait as may.", LATER, work_full),
    Row(
        "SHARE_USED",
        "More than half of the queue is used, and the tenant has its part of it.",
        LATER,
        share_used,
    ),
    Row(
        "TOO_MUCH",
        "Too many bytes are being read, too many questions are open, or messages come too slowly.",
        LATER,
        too_much,
    ),
    Row("DISPLACED", "It waited, and more important work took its place.", LATER, displaced),
    Row(
        "WAITED_TOO_LONG",
        "It was late or had no target, and was not begun within `--longest-wait-s`.",
        LATER,
        waited_too_long,
    ),
    Row(
        "REJECTED",
        "The policy turns it away: best effort that would wait too long, or, with policies that"
        " reject, what could not be on time.",
        LATER,
        rejected,
    ),
    Row(
        "WOULD_BE_LATE",
        "It asked for `qos.refuse_if_late`, and a target is expected to be missed.",
        "Ask another server, or for less. `RetryInfo` says when a new request would be on time.",
        would_be_late,
    ),
    Row("DRAINING", "The server ends.", ELSEWHERE, draining),
    Row("ENGINE_LOST", "The engine is starting, or was lost.", ELSEWHERE, engine_lost),
    Row(
        "READER_LOST",
        "The process that reads long messages cannot be started.",
        ELSEWHERE,
        reader_lost,
    ),
    Row(
        "READER_ERROR",
        "The process that reads long messages was lost twice at this one.",
        "Shorten the prompt, or report it.",
        reader_error,
    ),
    Row(
        "ENGINE_ERROR",
        "The model's logits were not finite, or `min_tokens` left no token to pick.",
        "Another seed or prompt may do; tell the operator.",
        engine_error,
    ),
    Row("INTERNAL_ERROR", "A defect of the server's. Its log has `error_id`.", REPORT, defect),
    Row(
        "CANCELLED",
        "The server ended the call, of which its client did not.",
        ELSEWHERE,
        ended_by_the_server,
    ),
    Row(
        "UNKNOWN_REQUEST",
        "`Explain`: no request of that id, of that tenant, is remembered.",
        "Ask sooner, or have the operator keep a decision log.",
        explain("never"),
    ),
    Row(
        "UNKNOWN_SERVICE",
        "Health check: no such service.",
        'Ask for `niyama.v1.Inference` or "".',
        lambda running: within(
            running.health.Check(health_pb2.HealthCheckRequest(service="another"))
        ),
    ),
    Row(
        "WRONG_TOKEN",
        "`Explain`: the token is not the operator's.",
        "Show the right one, or none.",
        explain("any", "guessed"),
    ),
    Row(
        "",
        "The message is larger than `--max-message-bytes`.",
        OWN,
        generate(asked(input=pb.Input(text="x" * (5 << 20)))),
    ),
    Row(
        "",
        "The metadata is larger than 16 KiB; above 8 KiB gRPC may refuse it, too.",
        OWN,
        generate(asked(), metadata=(("x-long", "x" * (20 << 10)),)),
    ),
    Row(
        "",
        "There is no such RPC.",
        "The client's stubs are of another API.",
        lambda running: within(raw(running, "Nothing")(b"")),
    ),
    Row(
        "",
        "The call's deadline passed. The request is gone by the next iteration.",
        "State a target that fits (`qos`), and `refuse_if_late` to hear of it at once.",
        generate(asked(5000), timeout=0.5),
    ),
]
# Provoked last, in this order: afterwards others have their part of the queue, or nobody answers.
LAST = ["SHARE_USED", "ENGINE_LOST", "DRAINING"]
HTTP_ONLY = {"NOT_LOCAL"}  # at the metrics port, as a status of HTTP


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


async def told(running: Running, row: Row) -> Told:
    """Provokes a row, and returns what its client is told."""
    try:
        await row.provoke(running)
    except grpc.aio.AioRpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        found = details(error) if row.reason else []
        why = found[-1] if found else None
        names = ", ".join(type(each).DESCRIPTOR.name for each in found)
        about = ", ".join(sorted(why.metadata)) if why is not None else ""
        pushback = trailers.get(PUSHBACK_KEY, "")
        kind = {"": "", "-1": "-1"}.get(str(pushback), "the same")
        reason = "" if why is None else why.reason
        return Told(error.code().name, reason, names, about, kind, error)
    raise AssertionError(f"{row.reason or row.situation} did not come about")


async def tell_all() -> list[Told]:
    """Returns what the client of each row is told."""
    found = {}
    async with served() as running:
        for row in sorted(ROWS, key=lambda row: row.reason in LAST and 1 + LAST.index(row.reason)):
            found[row.situation] = await told(running, row)
    return [found[row.situation] for row in ROWS]


def table(all_told: list[Told]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "| situation | status | reason | details | about | pushback | what to do |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, each in zip(ROWS, all_told, strict=True):
        reason = f"`{each.reason}`" if each.reason else "(gRPC's own)"
        about = ", ".join(f"`{name}`" for name in each.about.split(", ") if name)
        cells = [
            *(row.situation, each.code, reason, each.details, about, each.pushback, row.advice),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def on_page() -> str:
    """Returns the table as the page has it."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    made = table(asyncio.run(tell_all()))
    if "--write" in sys.argv[1:]:
        page = PAGE.read_text()
        PAGE.write_text(page.replace(BEGIN + on_page() + END, BEGIN + made + END))
    else:
        print(made, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
