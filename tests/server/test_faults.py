"""A defect of ours in a handler is called one, and a client that left is not mistaken for it."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from niyama.v1 import inference_pb2 as pb
from server.call import Call
from server.generation import Ended, Output
from server.reading.prompts import Prompts
from tests.server.conftest import Running, within
from tests.server.test_cancellation import asked, outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")


def broken(*arguments: object) -> object:
    raise RuntimeError("a mistake of ours")


@pytest.mark.parametrize(
    ("owner", "name"), [(Prompts, "encode"), (Call, "to_message")], ids=["queueing", "streaming"]
)
async def test_an_unexpected_exception_is_internal_and_frees_what_was_held(
    running: Running, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.setattr(owner, name, broken)
    before = outcome(running, "INTERNAL")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(running.stub.GenerateStream(asked()).read())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    await within(running.service.calls.idle.wait())
    assert outcome(running, "INTERNAL") == before + 1
    stats = await running.stats()
    assert stats.pages_free == stats.pages_total
    assert len(running.server.engine.link.in_flight) == 0


async def test_a_client_that_leaves_before_admission_is_counted_as_such(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def encode(*arguments: object) -> list[int]:
        reached.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(Prompts, "encode", encode)
    before = {name: outcome(running, name) for name in ("OK", "CANCELLED", "INTERNAL")}
    call = running.stub.GenerateStream(asked())
    await within(reached.wait())
    call.cancel()
    await within(running.service.calls.idle.wait())
    before["CANCELLED"] += 1
    assert {name: outcome(running, name) for name in before} == before


async def test_a_write_to_a_dead_call_is_the_client_s_leaving(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What grpc.aio raises where the task is not cancelled in time."""

    def dead(*arguments: object) -> pb.GenerateStreamResponse:
        raise grpc.aio.InternalError("Failed execute_batch")

    monkeypatch.setattr(Call, "to_message", dead)
    before = outcome(running, "CANCELLED")
    call = running.stub.GenerateStream(asked())
    while outcome(running, "CANCELLED") == before:
        await running.stats()
    call.cancel()
    await within(running.service.calls.idle.wait())
    assert outcome(running, "CANCELLED") == before + 1


async def test_a_client_that_leaves_with_its_last_message_was_served(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many read no further than `finished`, and end the call before its status is there."""
    to_message = Call.to_message

    def dead(call: Call, output: Output) -> pb.GenerateStreamResponse:
        message = to_message(call, output)
        if isinstance(output, Ended):
            raise grpc.aio.InternalError("Failed execute_batch")
        return message

    monkeypatch.setattr(Call, "to_message", dead)
    before = {name: outcome(running, name) for name in ("OK", "CANCELLED")}
    call = running.stub.GenerateStream(asked(max_tokens=2))
    while outcome(running, "OK") + outcome(running, "CANCELLED") == sum(before.values()):
        await running.stats()
    call.cancel()
    await within(running.service.calls.idle.wait())
    before["OK"] += 1
    assert {name: outcome(running, name) for name in before} == before
