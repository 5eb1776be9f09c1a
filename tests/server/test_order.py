"""What a call passes, in order: its checks, the ledger, the tokenizer, the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from niyama.v1 import inference_pb2 as pb
from server.call import Call
from server.metrics import Metrics
from server.reading.prompts import Prompts
from tests.server.conftest import MAX_REQUESTS, Running, within
from tests.server.test_service import asked, failure, read

of_session = pytest.mark.asyncio(loop_scope="session")

FILLS = asked(pb.GenerateRequest, n=MAX_REQUESTS, max_tokens=1)  # the queue, to its last place


@of_session
async def test_a_call_that_is_refused_for_its_queue_has_not_been_tokenized(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = Prompts.encode, []

    async def note(prompts: Prompts, *arguments: object) -> Sequence[int]:
        encoded.append(arguments)
        return await encode(prompts, *arguments)  # type: ignore[arg-type]  # as they came

    occupant = running.stub.GenerateStream(asked(max_tokens=3000))
    await within(occupant.read())
    monkeypatch.setattr(Prompts, "encode", note)
    error = await failure(running.stub.Generate(FILLS))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not encoded
    occupant.cancel()
    await within(running.service.calls.idle.wait())
    await within(running.stub.Generate(FILLS))
    assert len(encoded) == 1


@of_session
async def test_a_call_holds_its_place_while_it_is_tokenized_and_no_longer(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a client that leaves in that moment nor a prompt that is too long keeps it."""
    reached = asyncio.Event()

    async def wait(*_: object) -> list[int]:
        reached.set()
        await asyncio.Event().wait()
        return []

    with monkeypatch.context() as patch:
        patch.setattr(Prompts, "encode", wait)
        call = running.stub.Generate(FILLS)
        await within(reached.wait())
        error = await failure(running.stub.Generate(FILLS))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        await within(running.service.calls.idle.wait())
    info = running.server.engine.link.info
    assert info is not None
    too_long = pb.GenerateStreamRequest(
        input=pb.Input(token_ids=pb.TokenIds(ids=[5] * info.context_len)), sampling=FILLS.sampling
    )
    too_long.request_id = "mine"
    error = await failure(read(running.stub.GenerateStream(too_long)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    again = pb.GenerateRequest(request_id="mine", input=FILLS.input, sampling=FILLS.sampling)
    assert len((await within(running.stub.Generate(again))).completions) == MAX_REQUESTS


class Remaining:
    """Of a call's context, what its deadline leaves."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def time_remaining(self) -> float | None:
        return self._seconds


def test_a_deadline_caps_targets_from_the_arrival_whatever_reading_took() -> None:
    """Ten seconds of waiting to be read and five that are left are fifteen from the arrival; of
    five, the target of an hour had passed before the engine knew of it.
    """
    metrics = Metrics(CollectorRegistry())

    def timeout_s(remaining: float | None) -> float | None:
        context: Any = Remaining(remaining)
        call = Call("Generate", time.monotonic() - 10.0, context, metrics, remaining)
        return call.timeout_s()

    given = timeout_s(5.0)
    assert given is not None
    assert given >= 15.0
    assert timeout_s(None) is None
