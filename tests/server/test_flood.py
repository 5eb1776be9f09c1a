"""Many large messages at once: what they may hold, and whom they keep waiting."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import tokenizers
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from niyama.v1 import inference_pb2 as pb
from tests.server.attacks import MOST_GAP_S, bystander, memory_mib, message, send
from tests.server.conftest import Ended, until, within
from tests.server.test_templates import make_checkpoint
from tests.server_process import ServerProcess

MOST_BYTES = 1 << 20  # in a message; the default is four times that
CONTEXT = 1 << 15  # tokens: so much text may fit
LINES = ["And God said, Let there be light: and there was light, "] * 3
LARGE = message(pb.CountTokensRequest, input=pb.Input(text=LINES[0] * 18_000))
LONG = message(pb.CountTokensRequest, input=pb.Input(text=LINES[0] * 1_000))
SHORT = message(pb.CountTokensRequest, input=pb.Input(text=LINES[0] * 90))  # 5 KB
NUM_LARGE = 24


def make_long_context(folder: Path) -> Path:
    """The embedded model with a long context, and a tokenizer.json in its tokenizer's place."""
    make_checkpoint(folder, "{{ messages[0].content }}")
    (folder / "tokenizer.model").unlink()
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    made.save(str(folder / "tokenizer.json"))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("roomy")
    model = make_long_context(folder / "model")
    flags = ("--model", str(model), "--torch-threads", "1", "--calibration-s", "0")
    flags += ("--max-message-bytes", str(MOST_BYTES))
    with ServerProcess(folder / "log", *flags) as process:
        process.wait_ready()
        yield process


async def test_a_flood_of_large_messages_holds_neither_memory_nor_anybody_up(
    roomy: ServerProcess,
) -> None:
    """What waits to be read is bounded, by tenant and in all, and each tenant has its turn."""
    process = psutil.Process(roomy.child.pid)
    before = memory_mib(process)
    async with (
        grpc.aio.insecure_channel(roomy.address) as channel,
        bystander(roomy.address) as others,
    ):
        flood = [
            asyncio.create_task(send(channel, LARGE, "CountTokens", "flood"))
            for _ in range(NUM_LARGE)
        ]
        await until(lambda: any(task.done() for task in flood))
        for raw in (SHORT, LONG):
            counted = await send(channel, raw, "CountTokens", "other")
            assert pb.CountTokensResponse.FromString(counted).count
            assert not all(task.done() for task in flood)
        most = memory_mib(process)
        await within(asyncio.wait(flood))
    refused = [task.exception() for task in flood if task.exception() is not None]
    assert 0 < len(refused) <= NUM_LARGE - 8  # a tenant's share is read, and nothing in vain
    for error in refused:
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(Ended(error))
        assert status is not None
        assert status.details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    assert max(most, memory_mib(process)) - before < 400
    await until(lambda: memory_mib(process) - before < 100)  # and it is given back
    assert others.worst_gap_s() < MOST_GAP_S
    lines = [json.loads(line) for line in roomy.log.splitlines()]
    outcomes = [line["outcome"] for line in lines if line.get("rpc") == "CountTokens"]
    assert len(outcomes) == NUM_LARGE + 2


async def test_what_waits_for_a_reader_that_is_lost_waits_on(roomy: ServerProcess) -> None:
    """And what it was at work on is read by the next one."""
    children = psutil.Process(roomy.child.pid).children
    readers = {p.pid: p for p in children() if "server.reading.reader" in p.cmdline()}
    async with grpc.aio.insecure_channel(roomy.address) as channel:
        used = {pid: p.cpu_times().user for pid, p in readers.items()}
        sent = [asyncio.create_task(send(channel, LARGE, "CountTokens")) for _ in range(3)]
        await until(lambda: any(p.cpu_times().user > used[pid] for pid, p in readers.items()))
        (busy,) = [p for pid, p in readers.items() if p.cpu_times().user > used[pid]]
        busy.send_signal(signal.SIGKILL)
        counts = [pb.CountTokensResponse.FromString(await within(s)).count for s in sent]
    assert len(set(counts)) == 1
    assert counts[0] > 0
    assert '"event": "reader lost"' in roomy.log
