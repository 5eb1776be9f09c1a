"""The table of errors in docs/errors.md, made by provoking each of its rows.

    python -m tests.server.error_table          prints the table
    python -m tests.server.error_table --write  writes it into the page

A real client provokes them at a real server of this process, before an engine that computes nothing
and takes its time, with the processes that read for it (provoking.py). What a row says of status
and details is what that client was told; only the situation and the advice are words of ours.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from niyama.v1 import inference_pb2 as pb
from server.errors import PUSHBACK_KEY
from tests.server import provoking as by
from tests.server.conftest import Running, within
from tests.server.provoking import Provoke, asked, asking, explain, generate, raw, served
from tests.server.test_service import details

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
BEGIN, END = "<!-- by `python -m tests.server.error_table --write` -->\n", "<!-- end -->\n"

OWN = "Mend the request; the same one fails again."
LATER = "Try again after `RetryInfo`; gRPC's own retry does."
ELSEWHERE = "Try again, at another server where there is one."
ALLOWED = "Ask for what the tenant may have; the operator says what that is."
REPORT = "Tell the operator the id; another try may help."


@dataclass(frozen=True)
class Row:
    """A way to fail: `provoke` ends with the error, at a server that asks who calls where `asks`.
    `reason` is "" where gRPC itself answers.
    """

    reason: str
    situation: str
    advice: str
    provoke: Provoke
    asks: bool = False


@dataclass(frozen=True)
class Told:
    """What a client was told, as the table has it."""

    code: str
    reason: str
    details: str
    about: str
    pushback: str
    error: grpc.aio.AioRpcError


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
    Row("NO_MESSAGE", "The call ended before its message had come whole.", OWN, by.no_message),
    Row(
        "NOT_RECEIVED",
        "The message did not come within `--receive-timeout-s`.",
        "Try again by a faster way.",
        by.slow_message,
    ),
    Row(
        "REQUEST_ID_IN_FLIGHT",
        "A request of that id, of the same tenant, has not ended.",
        "Use another id, or none: the server then makes one.",
        by.same_id,
    ),
    Row("QUEUE_FULL", "As many requests wait or run as may.", LATER, by.queue_full),
    Row("WORK_FULL", "As many tokens of work wait as may.", LATER, by.work_full),
    Row(
        "SHARE_USED",
        "More than half of the queue is used, and the tenant has its part of it.",
        LATER,
        by.share_used,
    ),
    Row(
        "TENANT_LIMIT",
        "The tenant has as much in the queue as the operator allows it.",
        LATER,
        by.tenant_limit,
        asks=True,
    ),
    Row(
        "TOO_MUCH",
        "Too many bytes are being read, too many questions are open or tokenizers are being sent,"
        " messages come too slowly, or too many watch health.",
        LATER,
        by.too_much,
    ),
    Row(
        "DISPLACED",
        "It waited, and more important work took its place.",
        LATER,
        by.displaced,
    ),
    Row(
        "WAITED_TOO_LONG",
        "It was late or had no target, and was not begun within `--longest-wait-s`.",
        LATER,
        by.waited_too_long,
    ),
    Row(
        "REJECTED",
        "The policy turns it away: best effort that would wait too long, or, with policies that"
        " reject, what could not be on time.",
        LATER,
        by.rejected,
    ),
    Row(
        "WOULD_BE_LATE",
        "It asked for `qos.refuse_if_late`, and a target is expected to be missed.",
        "Ask another server, or for less. `RetryInfo` says when a new request would be on time.",
        by.would_be_late,
    ),
    Row("DRAINING", "The server ends.", ELSEWHERE, by.draining),
    Row("ENGINE_LOST", "The engine is starting, or was lost.", ELSEWHERE, by.engine_lost),
    Row(
        "READER_LOST",
        "The process that reads long messages cannot be started.",
        ELSEWHERE,
        by.reader_lost,
    ),
    Row(
        "READER_ERROR",
        "The process that reads long messages was lost twice at this one.",
        "Shorten the prompt, or report it.",
        by.reader_error,
    ),
    Row(
        "ENGINE_ERROR",
        "The model's logits were not finite, or `min_tokens` left no token to pick.",
        "Another seed or prompt may do; tell the operator.",
        by.engine_error,
    ),
    Row(
        "INTERNAL_ERROR",
        "A defect of the server's. Its log has `error_id`.",
        REPORT,
        by.defect,
    ),
    Row(
        "CANCELLED",
        "The server ended the call, or `VllmEngine/Abort` did.",
        ELSEWHERE,
        by.ended_by_the_server,
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
        "NO_TOKENIZER",
        "`VllmEngine/GetTokenizer`: the model's tokenizer has no form that a gateway reads.",
        "Give the gateway one (SMG: `--tokenizer-path`); the server's log says what has no form.",
        by.no_tokenizer,
    ),
    Row(
        "WRONG_TOKEN",
        "`Explain`: the token is not the operator's.",
        "Show the right one, or none.",
        explain("any", "guessed"),
    ),
    Row(
        "UNAUTHENTICATED",
        "The server asks who calls, and the call shows no token or certificate that it knows, or"
        " one that has expired.",
        "Show a valid one: `authorization: Bearer TOKEN`.",
        generate(asked()),
        asks=True,
    ),
    Row(
        "TENANT_NOT_ALLOWED",
        "`niyama-tenant` names another tenant than the caller's.",
        "Leave it out.",
        by.as_free(None, ("niyama-tenant", "another")),
        asks=True,
    ),
    Row(
        "TIER_NOT_ALLOWED",
        "The tenant may not have that tier, or there is none of that name.",
        ALLOWED,
        by.as_free(pb.QualityOfService(tier="gold")),
        asks=True,
    ),
    Row(
        "TARGETS_NOT_ALLOWED",
        "The tenant may state no targets of its own.",
        ALLOWED,
        by.as_free(by.due(0.1)),
        asks=True,
    ),
    Row(
        "IMPORTANCE_NOT_ALLOWED",
        "The tenant may not claim that importance.",
        ALLOWED,
        by.as_free(pb.QualityOfService(importance=pb.IMPORTANCE_HIGH)),
        asks=True,
    ),
    Row(
        "NOT_FOR_TENANTS",
        "GetLoad, load reports, channelz: the caller speaks for itself alone, or is no operator.",
        "`Estimate` tells what becomes of its own requests.",
        by.all_load,
        asks=True,
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
    async with served() as running, asking() as strict:
        for row in sorted(ROWS, key=lambda row: row.reason in LAST and 1 + LAST.index(row.reason)):
            found[row.situation] = await told(strict if row.asks else running, row)
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
