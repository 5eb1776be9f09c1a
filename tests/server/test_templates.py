"""A chat template is a program out of a checkpoint, and may do anything with the messages."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from engine.embedded import FOLDER
from niyama.v1 import inference_pb2 as pb
from tests.server.attacks import (
    MOST_GAP_S,
    bystander,
    field_of,
    memory_mib,
    message,
    refusal,
    send,
)
from tests.server.conftest import until
from tests.server_process import ServerProcess

READ_S = 1.0
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
# What the template does, by the content of the first message.
DOES = {
    "loops": LOOPS,
    "quiet loops": LOOPS.replace("{% endfor %}", "{% set x = 1 / 3 %}{% endfor %}", 1),
    "power": "{{ ten ** (ten ** 9) }}",
    "writes": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "writes once": "{{ 'x' * ten ** 8 }}",
    "memory": "{{ 'x' * ten ** 12 }}",
    "divides": "{{ 1 / 0 }}",
    "adds": "{{ 1 + 'x' }}",
    "undefined": "{{ nobody.name }}",
    "overflows": "{{ 2.0 ** 5000 }}",
    "recurses": "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}",
    "keys": "{{ {}['x'].y }}",
    "values": "{{ 'x'.encode('nothing') }}",
    "raises": "{{ raise_exception('x' * 1000000) }}",
    "escapes": "{{ messages.__class__.__mro__ }}",
}


def make_checkpoint(folder: Path, template: str) -> Path:
    """The embedded model, with another chat template."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(settings | {"chat_template": template}), encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def make_template() -> str:
    branches = [
        f"{{% elif messages[0].content == {name!r} %}}{does}" for name, does in DOES.items()
    ]
    ten = "{% set ten = 10 * messages | length %}"  # what is constant is computed at the start
    return (
        ten
        + "{% if false %}"
        + "".join(branches)
        + "{% else %}{{ messages[0].content }}{% endif %}"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "hostile", make_template())


FLAGS = ("--torch-threads", "1", "--calibration-s", "0", "--read-s", str(READ_S))


@pytest.fixture(scope="module")
def hostile(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("hostile") / "log"
    with ServerProcess(log, "--model", str(model), *FLAGS) as process:
        process.wait_ready()
        yield process


def says(content: str) -> bytes:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=content)])
    return message(input=pb.Input(chat=chat), sampling=pb.Sampling(max_tokens=1))


@pytest.mark.parametrize("does", DOES)
async def test_whatever_a_template_does_is_an_invalid_chat_and_nobody_notices(
    hostile: ServerProcess, does: str
) -> None:
    process = psutil.Process(hostile.child.pid)
    async with grpc.aio.insecure_channel(hostile.address) as channel:
        async with bystander(hostile.address) as others:
            error = await refusal(channel, says(does))
        assert field_of(error) == "input.chat"
        await send(channel, says("And it came to pass"))  # the next conversation is served
    assert others.worst_gap_s() < MOST_GAP_S
    assert memory_mib(process) < 1500


async def test_a_conversation_that_takes_long_does_not_hold_up_a_drain(
    model: Path, tmp_path: Path
) -> None:
    flags = ("--model", str(model), *FLAGS, "--read-s", "600", "--drain-s", "600")
    with ServerProcess(tmp_path / "log", *flags) as process:
        process.wait_ready()
        async with grpc.aio.insecure_channel(process.address) as channel:
            children = psutil.Process(process.child.pid).children()
            readers = [p for p in children if "server.reading.reader" in p.cmdline()]
            assert len(readers) == 2
            sent = asyncio.create_task(refusal(channel, says("loops")))
            await until(lambda: any(reader.cpu_times().user > 1.0 for reader in readers))
            process.signal(signal.SIGTERM)
            await until(lambda: "draining" in process.log)
            process.signal(signal.SIGTERM)
            code = await asyncio.to_thread(process.wait_exit)
            assert code == 128 + signal.SIGTERM
            assert (await sent).code() is grpc.StatusCode.UNAVAILABLE
        _, alive = await asyncio.to_thread(psutil.wait_procs, readers, 30)
        assert not alive  # not even what was at work
