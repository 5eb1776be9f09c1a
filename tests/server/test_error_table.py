"""docs/errors.md tells what clients are told: a real client provokes each row of its table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from niyama.v1 import inference_pb2 as pb
from server.errors import CODES, DETAILS_KEY, PUSHBACK_KEY, Refusal
from tests.server import error_table
from tests.server.conftest import Running, within
from tests.server.error_table import HTTP_ONLY, PAGE, ROWS, Told
from tests.server.provoking import TOKEN, asked, raw
from tests.server.test_service import details, failure

pytestmark = pytest.mark.asyncio(loop_scope="module")
MOST_TRAILERS = 8192  # bytes, by gRPC's soft limit of metadata


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told() -> AsyncIterator[list[Told]]:
    yield await error_table.tell_all()


async def test_the_page_has_what_clients_are_told(told: list[Told]) -> None:
    """`python -m tests.server.error_table --write` mends it."""
    assert error_table.on_page() == error_table.table(told)


async def test_every_reason_has_a_row_and_is_told_with_its_status(told: list[Told]) -> None:
    assert {row.reason for row in ROWS if row.reason} == CODES.keys() - HTTP_ONLY
    for row, each in zip(ROWS, told, strict=True):
        assert each.reason == row.reason
        if row.reason:
            assert each.code == CODES[row.reason].name
            assert each.details.endswith("ErrorInfo")
    assert "UNKNOWN" not in {each.code for each in told}


async def test_a_refusal_says_when_to_try_again_to_both_who_may_read_it(told: list[Told]) -> None:
    for each in told:
        trailers = dict(each.error.trailing_metadata() or ())
        is_told = each.reason in Refusal.__members__ and each.reason != "DRAINING"
        assert is_told == (PUSHBACK_KEY in trailers)
        if is_told:
            retry, _ = details(each.error)
            delay_ms = retry.retry_delay.ToMilliseconds()
            assert 1000 <= delay_ms <= 60_000
            assert trailers[PUSHBACK_KEY] in ("-1", str(delay_ms))


async def test_nobody_is_told_of_a_defect_but_its_id(told: list[Told]) -> None:
    (defect,) = [each for each in told if each.reason == "INTERNAL_ERROR"]
    everything = f"{defect.error.details()}{defect.error.trailing_metadata()}"
    for word in ("secret", "RuntimeError", "Traceback", "class", ".py", TOKEN):
        assert word not in everything
    assert "error_id" in details(defect.error)[0].metadata


async def test_the_page_s_retry_policy_is_that_of_the_client() -> None:
    folder = PAGE.parents[1] / "client" / "niyama" / "client"
    written = PAGE.read_text().partition("```json\n")[2].partition("```")[0]
    assert json.loads(written) == json.loads((folder / "service_config.json").read_text())


def mangled() -> dict[str, tuple[str, bytes, grpc.StatusCode]]:
    """What no client library sends: messages and what is answered."""
    whole, bad = asked(1).SerializeToString(), grpc.StatusCode.INVALID_ARGUMENT
    long = pb.GenerateRequest(qos=pb.QualityOfService(tier="\n%é" * 300_000))
    many = pb.GenerateRequest(
        sampling=pb.Sampling(stop=["x" * 999] * 90), request_id="\x7f" * 10_000
    )
    durations = {
        "negative": Duration(seconds=-1),
        "with a sign that differs": Duration(seconds=1, nanos=-1),
        "with too many nanoseconds": Duration(nanos=10**9),
        "above what there is": Duration(seconds=2**62),
        "below what there is": Duration(seconds=-(2**63)),
        "zero": Duration(),
    }
    messages = {
        "cut off": whole[:-1],
        "of no type": b"\x0c",
        "of a wrong wire type": b"\x0d\0\0\0\0",
        "text that is no UTF-8": b"\x0a\x03\x0a\x01\xff",
        "groups in groups": b"\x9b\x06" * 5000,
        "nothing": b"",
        "a tier of a megabyte": long.SerializeToString(),
        "much that is wrong": many.SerializeToString(),
        "an importance that nobody knows": whole + b"\x1a\x02\x20\x63",
        "a negative importance": whole + b"\x1a\x0b\x20" + b"\xff" * 9 + b"\x01",
        "a temperature that is no number": whole + b"\x12\x05\x0d\0\0\xc0\x7f",
        **{
            f"a target {name}": pb.GenerateRequest(
                input=pb.Input(text="a"),
                qos=pb.QualityOfService(deadline=pb.DeadlineTargets(ttlt=each)),
            ).SerializeToString()
            for name, each in durations.items()
        },
    }
    return {name: ("Generate", message, bad) for name, message in messages.items()}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", mangled())
async def test_a_broken_message_is_told_to_be_one_in_few_bytes(running: Running, name: str) -> None:
    """However long its fields are, and streamed or not."""
    _, message, code = mangled()[name]
    for method in ("Generate", "GenerateStream"):
        error = await failure(raw(running, method)(message))
        assert error.code() is code
        bad_request, why = details(error)
        assert bad_request.field_violations
        assert why.reason == "INVALID_REQUEST"
        trailers = dict(error.trailing_metadata() or ())
        percent_encoded = sum(1 if 32 <= b < 127 else 3 for b in (error.details() or "").encode())
        in_base64 = len(trailers[DETAILS_KEY]) * 4 / 3
        assert percent_encoded + in_base64 < MOST_TRAILERS - 500


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("method", ["Estimate", "Explain", "CountTokens", "GetLoad"])
async def test_no_rpc_takes_what_is_no_message(running: Running, method: str) -> None:
    error = await failure(raw(running, method)(b"\xff" * 50))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(error)[-1].reason == "INVALID_REQUEST"


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("message", [b"\xff" * 50, b"\x0a\x88\x27" + b"x" * 5000])
async def test_nor_do_the_standard_services(running: Running, message: bytes) -> None:
    """A health check that was none was told that there is no such service."""
    channel = running.channel
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    calls = [
        channel.unary_unary("/grpc.health.v1.Health/Check")(message),
        channel.unary_stream("/grpc.health.v1.Health/Watch")(message).read(),
        channel.stream_stream(reflection)(iter([message])).read(),
    ]
    for call in calls:
        error = await failure(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [type(each).DESCRIPTOR.name for each in details(error)] == [
            "BadRequest",
            "ErrorInfo",
        ]


@pytest.mark.asyncio(loop_scope="session")
async def test_of_two_messages_the_first_is_answered(running: Running) -> None:
    call = running.channel.stream_unary("/niyama.v1.Inference/Generate")
    whole = asked(1).SerializeToString()
    answer = pb.GenerateResponse.FromString(await within(call(iter([whole, b"\xff"]))))
    assert len(answer.completions) == 1


async def test_situations_are_told_apart() -> None:
    assert max(Counter(row.situation for row in ROWS).values()) == 1
