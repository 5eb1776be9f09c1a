"""Long prompts are read elsewhere and served alike."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from engine.checkpoint.tokenizer import Tokenizer
from engine.config import EngineConfig
from niyama.v1 import inference_pb2 as pb
from server.app import Server
from server.config import ServerConfig
from server.reading.messages import SHORT_BYTES
from tests.engine.driving.engines import SLOW
from tests.server.conftest import Running, within
from tests.server.test_flood import LINES, make_long_context
from tests.server.test_service import read

LONG = LINES[0] * 1500
SHORT = LINES[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_long_context(tmp_path_factory.mktemp("roomy") / "model")


@pytest_asyncio.fixture
async def roomy(model: Path) -> AsyncIterator[Running]:
    engine = EngineConfig(model=model, factory="engine.driving.null:build")
    server = Server(ServerConfig(port=0, engine=engine))
    await within(server.start())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Running(server, channel)
    await within(server.stop())


async def test_every_form_of_a_long_prompt_is_served_with_all_that_was_asked_beside_it(
    roomy: Running, model: Path
) -> None:
    tokenizer = Tokenizer.load(model)
    for length, text in (("long", LONG), ("short", SHORT)):
        ids = tokenizer.encode(text)
        forms = {
            "text": pb.Input(text=text),
            "ids": pb.Input(token_ids=pb.TokenIds(ids=ids)),
            "chat": pb.Input(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=text)])),
        }
        for name, form in forms.items():
            count = pb.CountTokensRequest(input=form)
            assert (count.ByteSize() > SHORT_BYTES) == (length == "long")
            expected = ids[1:] if name == "chat" else ids  # this template writes no BOS
            counted = await within(roomy.stub.CountTokens(count))
            assert counted.count == len(expected)
            assert list(counted.token_ids) == expected
            sampling = pb.Sampling(max_tokens=3, n=2, seed=5, ignore_eos=True)
            request = pb.GenerateStreamRequest(
                input=form, sampling=sampling, request_id=f"{length}-{name}"
            )
            events = await read(roomy.stub.GenerateStream(request))
            assert events[0].accepted.request_id == f"{length}-{name}"
            assert events[0].accepted.prompt_tokens == len(expected)
            ended = [event.finished for event in events if event.HasField("finished")]
            assert [finished.usage.output_tokens for finished in ended] == [3, 3]


async def test_a_message_is_not_kept_once_it_has_been_read() -> None:
    """Each stream held all of its own, up to the most bytes of a message, until it had ended: four
    gigabytes for a thousand of them. Here what is beside the text is nothing that we know.
    """
    size = 1 << 20
    prompt = pb.Input(text="Once")
    prompt.MergeFromString(b"\xfa\x7f\x80\x80\x40" + bytes(size))
    sampling = pb.Sampling(max_tokens=1000, ignore_eos=True)
    request = pb.GenerateStreamRequest(input=prompt, sampling=sampling)
    server = Server(ServerConfig(port=0, engine=EngineConfig(factory=SLOW)))
    await within(server.start())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = Running(server, channel).stub
            tracemalloc.start()
            try:
                streams = [stub.GenerateStream(request) for _ in range(8)]
                for stream in streams:
                    assert (await within(stream.read())).HasField("accepted")
                kept = [
                    each.size for each in tracemalloc.take_snapshot().traces if each.size >= size
                ]
            finally:
                tracemalloc.stop()
            assert not any(stream.done() for stream in streams)
            assert not kept
    finally:
        await within(server.stop())
