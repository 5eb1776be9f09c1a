"""A server whose engine plans and launches an iteration before it has the tokens of the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from engine.config import EngineConfig
from niyama.v1 import inference_pb2 as pb
from server.app import Server
from server.config import ServerConfig
from tests.server.conftest import BATCH, Running, within

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAMPLINGS = [
    pb.Sampling(temperature=0.0, max_tokens=30),
    pb.Sampling(seed=7, top_p=0.9, max_tokens=40),
    pb.Sampling(seed=8, frequency_penalty=0.5, max_tokens=40),
    pb.Sampling(seed=9, stop=["the"], max_tokens=60, ignore_eos=True),
    pb.Sampling(temperature=0.0, max_tokens=1),
]


@pytest_asyncio.fixture(loop_scope="session")
async def ahead() -> AsyncIterator[Running]:
    engine = EngineConfig(
        max_batch_size=BATCH,
        torch_threads=1,
        calibration_s=0,
        compile="off",
        dtype="float32",
        overlap="on",
    )
    server = Server(ServerConfig(port=0, engine=engine))
    await within(server.start())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Running(server, channel)
    await within(server.stop())


async def test_completions_are_those_of_a_server_that_does_not(
    running: Running, ahead: Running
) -> None:
    """All at once, in a batch too small for them; one caller leaves in between."""

    async def completions(server: Running) -> list[tuple[str, list[int], int]]:
        calls = [
            server.stub.Generate(pb.GenerateRequest(input=pb.Input(text="Once"), sampling=s))
            for s in SAMPLINGS
        ]
        done = [(await within(call)).completions[0] for call in calls]
        return [(c.text, list(c.token_ids), c.finished.reason) for c in done]

    leaving = ahead.stub.GenerateStream(
        pb.GenerateStreamRequest(
            input=pb.Input(text="Once"),
            sampling=pb.Sampling(seed=1, max_tokens=4000, ignore_eos=True),
        )
    )
    while not (await within(leaving.read())).HasField("tokens"):
        pass
    asking = asyncio.ensure_future(completions(ahead))
    await ahead.until(lambda stats: stats.totals.num_submitted == 1 + len(SAMPLINGS))
    leaving.cancel()
    found, expected = await within(asking), await completions(running)
    # Past a stop string the engine computes on until it is told.
    assert [(text, reason) for text, _, reason in found] == [(t, r) for t, _, r in expected]
    assert [ids for _, ids, _ in found[:3]] == [ids for _, ids, _ in expected[:3]]
    await within(ahead.service.calls.idle.wait())
    stats = await ahead.stats()
    assert stats.pages_free == stats.pages_total
    assert stats.num_running == stats.num_waiting == 0
