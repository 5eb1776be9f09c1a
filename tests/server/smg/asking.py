"""Calls of VllmEngine as a gateway makes them, on the package's own stubs."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto import vllm_engine_pb2_grpc

from engine.checkpoint.tokenizer import Tokenizer
from engine.embedded import FOLDER
from tests.server.conftest import Running, within

TOKENIZER = Tokenizer.load(FOLDER)
TEXT = "In the beginning"
BARE = TOKENIZER.encode(TEXT, add_bos=False)  # as the gateway makes token ids


def stub_of(channel: grpc.aio.Channel) -> Any:
    return vllm_engine_pb2_grpc.VllmEngineStub(channel)


def request_of(
    request_id: str = "", ids: list[int] | None = None, stream: bool = True, **sampling: Any
) -> Any:
    """Greedy, unless said otherwise."""
    sampling = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | sampling
    return vllm.GenerateRequest(
        request_id=request_id,
        tokenized=vllm.TokenizedInput(input_ids=BARE if ids is None else ids),
        sampling_params=vllm.SamplingParams(**sampling),
        stream=stream,
    )


class Heard(NamedTuple):
    """What came of one completion."""

    ids: list[int]
    chunks: list[Any]
    complete: Any


async def ask(running: Running, request: Any, **more: Any) -> list[Heard]:
    """What came of each completion; a unary answer has no chunks."""

    async def collect() -> list[Any]:
        return [each async for each in stub_of(running.channel).Generate(request, **more)]

    responses = await within(collect())
    found = []
    for complete in sorted(
        (each.complete for each in responses if each.HasField("complete")), key=lambda c: c.index
    ):
        chunks = [
            each.chunk
            for each in responses
            if each.HasField("chunk") and each.chunk.index == complete.index
        ]
        ids = [i for chunk in chunks for i in chunk.token_ids]
        found.append(Heard(ids or list(complete.output_ids), chunks, complete))
    assert responses[-1].HasField("complete")
    return found
