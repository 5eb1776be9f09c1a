"""A checkpoint in which one token's embedding is NaN: what ends, and what goes on as ever."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import pytest_asyncio
import torch
from google.rpc import error_details_pb2
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from engine.config import EngineConfig
from engine.embedded import FOLDER
from niyama.v1 import inference_pb2 as pb
from server.app import Server
from server.config import ServerConfig
from tests.server.conftest import BATCH, Running, within
from tests.server.test_service import failure

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHARED = list(range(100, 140))  # two pages and a half
NEIGHBOURS = [[*SHARED, 300], [*SHARED, *range(400, 430)], list(range(600, 620))]
FATAL = [500, 501, 502]  # what follows it is that token
NUM_TOKENS = 24


def asked(kind: type[Any], prompt: Sequence[int], request_id: str = "") -> Any:
    return kind(
        input=pb.Input(token_ids=pb.TokenIds(ids=prompt)),
        sampling=pb.Sampling(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True),
        request_id=request_id,
    )


async def complete(running: Running, prompt: Sequence[int]) -> list[int]:
    response = await within(running.stub.Generate(asked(pb.GenerateRequest, prompt)))
    return list(response.completions[0].token_ids)


class Broken(NamedTuple):
    running: Running
    token: int  # whose embedding is NaN
    expected: list[list[int]]  # what NEIGHBOURS get, each alone, from the model that is whole
    before: list[int]  # and what FATAL does, up to that token


def save_broken(folder: Path, token: int) -> Path:
    """The embedded model, but for the embedding of this token."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone()
    embedding[token] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest_asyncio.fixture(loop_scope="session", params=["off", "on"])
async def broken(
    running: Running, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Broken]:
    """A server with such a model, and with overlapping iterations or without."""
    expected = [await complete(running, prompt) for prompt in NEIGHBOURS]
    fatal = await complete(running, FATAL)
    known = {token for tokens in (*NEIGHBOURS, *expected, FATAL) for token in tokens}
    index = next(i for i, token in enumerate(fatal) if i >= 3 and token not in known)
    engine = EngineConfig(
        model=save_broken(tmp_path / "model", fatal[index]),
        max_batch_size=BATCH,
        kv_memory_mib=1,  # 32 pages: they are used again and again
        torch_threads=1,
        calibration_s=0,
        compile="off",
        dtype="float32",
        overlap=request.param,
    )
    server = Server(ServerConfig(port=0, engine=engine))
    await within(server.start())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Broken(Running(server, channel), fatal[index], expected, fatal[: index + 1])
    await within(server.stop())


class Stream:
    """A call, and what came of it so far."""

    def __init__(self, broken: Broken, prompt: Sequence[int], request_id: str = "") -> None:
        request = asked(pb.GenerateStreamRequest, prompt, request_id)
        self._call = broken.running.stub.GenerateStream(request)
        self.tokens: list[int] = []

    async def begin(self) -> None:
        while not self.tokens:
            self.tokens += (await self._call.read()).tokens.token_ids

    async def finish(self) -> None:
        while (event := await self._call.read()) is not grpc.aio.EOF:
            self.tokens += event.tokens.token_ids


async def in_company(
    broken: Broken, prompt: Sequence[int], request_id: str
) -> tuple[grpc.aio.AioRpcError, list[int]]:
    """Sends a prompt that cannot be completed between two others, while a third is under way.
    Returns how it ended, and its tokens before; the others must not have noticed.
    """
    third = Stream(broken, NEIGHBOURS[2])
    await within(third.begin())
    first = Stream(broken, NEIGHBOURS[0])
    fatal = Stream(broken, prompt, request_id)
    second = Stream(broken, NEIGHBOURS[1])
    reason = error_details_pb2.ErrorInfo()
    error = await failure(fatal.finish(), reason)
    assert (error.code(), reason.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_ERROR")
    assert error.details().startswith("the model's logits are not finite")
    for stream in (first, second, third):
        await within(stream.finish())
    assert [stream.tokens for stream in (first, second, third)] == broken.expected
    return error, fatal.tokens


async def test_a_request_whose_logits_are_not_finite_ends_internal_and_nobody_else_notices(
    broken: Broken,
) -> None:
    """Nor do those that have its pages afterwards. Metrics, explain and log tell of it."""
    running = broken.running
    with capture_logs() as logs:
        error, tokens = await in_company(broken, [*SHARED, broken.token, 7, 8, 9], "spoiled")
        await within(running.service.calls.idle.wait())
    assert tokens == []
    (line,) = (line for line in logs if line.get("request_id") == "spoiled")
    assert (line["outcome"], line["error"]) == ("INTERNAL", error.details())
    story = await within(running.stub.Explain(pb.ExplainRequest(request_id="spoiled")))
    assert story.summary == f"Failed: {error.details()}."
    for _ in range(3):  # more tokens than the memory holds
        found = await asyncio.gather(*(complete(running, prompt) for prompt in NEIGHBOURS))
        assert found == broken.expected
    await within(running.service.calls.idle.wait())
    await within(running.server.engine.refresh_metrics())
    sample = running.metrics.registry.get_sample_value
    assert sample("niyama_sequences_failed_total") == 1
    assert sample("niyama_rpcs_total", {"rpc": "GenerateStream", "outcome": "INTERNAL"}) == 1
    stats = await running.stats()
    assert stats.pages_free == stats.pages_total
    assert await running.status() == "SERVING"


async def test_what_was_streamed_before_the_failure_stands(broken: Broken) -> None:
    """The last token that came is right: what would follow it is not."""
    _, tokens = await in_company(broken, FATAL, "later")
    assert tokens == broken.before
