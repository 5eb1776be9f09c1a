"""Start, loss, recovery, drain and refusal to start, on `python -m server` as it is run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from engine.checkpoint.detokenizer import SPACE
from engine.deciding.latency import LatencyProfile
from engine.embedded import FOLDER
from niyama.v1 import inference_pb2 as pb
from tests.server.conftest import Stubs, within
from tests.server_process import ServerProcess

Start = Callable[..., ServerProcess]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[ServerProcess] = []

    def start(*flags: str) -> ServerProcess:
        log = tmp_path / f"log{len(started)}"
        started.append(ServerProcess(log, "--torch-threads", "1", *flags))
        return started[-1]

    yield start
    for process in started:
        process.__exit__()


@asynccontextmanager
async def stubs_of(process: ServerProcess) -> AsyncIterator[Stubs]:
    async with grpc.aio.insecure_channel(process.address) as channel:
        yield Stubs(channel)


def asked(max_tokens: int) -> pb.GenerateStreamRequest:
    sampling = pb.Sampling(seed=1, max_tokens=max_tokens, ignore_eos=True)
    return pb.GenerateStreamRequest(
        input=pb.Input(text="Once"), sampling=sampling, request_id=f"of-{max_tokens}"
    )


def engine_of(process: ServerProcess) -> psutil.Process:
    children = psutil.Process(process.child.pid).children()
    (engine,) = [child for child in children if "engine.driving" in child.cmdline()]
    return engine


async def started(stubs: Stubs, max_tokens: int) -> grpc.aio.UnaryStreamCall:
    call = stubs.inference.GenerateStream(asked(max_tokens))
    while not (await within(call.read())).HasField("tokens"):
        pass
    return call


async def finish(call: grpc.aio.UnaryStreamCall) -> pb.Finished:
    while not (event := await within(call.read())).HasField("finished"):
        pass
    return event.finished


async def status_of(call: grpc.aio.UnaryStreamCall) -> grpc.StatusCode:
    """The status that ends a stream, after whatever messages still come."""

    async def read() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with contextlib.suppress(grpc.aio.AioRpcError):
        await within(read())
    return await within(call.code())


async def test_sigterm_lets_running_calls_finish_and_refuses_new_ones(start: Start) -> None:
    process = start("--drain-s", "60")
    assert "embedded" in process.wait_ready()
    async with stubs_of(process) as stubs:
        watch = stubs.health.Watch(health_pb2.HealthCheckRequest(service="niyama.v1.Inference"))
        assert (await within(watch.read())).status == SERVING
        running = await started(stubs, 800)
        process.signal(signal.SIGTERM)
        assert (await within(watch.read())).status == NOT_SERVING
        refused = stubs.inference.GenerateStream(asked(5))
        assert await status_of(refused) is grpc.StatusCode.UNAVAILABLE
        assert "draining" in await refused.details()
        assert (await finish(running)).usage.output_tokens == 800
        watch.cancel()
    assert await asyncio.to_thread(process.wait_exit) == 0
    lines = [json.loads(line) for line in process.log.splitlines()]
    finished = [line for line in lines if line.get("request_id") == "of-800"]
    assert [(line["event"], line["outcome"]) for line in finished] == [("call", "OK")]
    assert finished[0]["result"] in ("on_time", "late")


async def test_drain_time_is_limited_and_a_second_signal_ends_it_at_once(start: Start) -> None:
    brief, patient = start("--drain-s", "0"), start("--drain-s", "600")
    for process in (brief, patient):
        process.wait_ready()
    async with stubs_of(brief) as stubs:
        cut = await started(stubs, 4000)
        brief.signal(signal.SIGTERM)
        assert await status_of(cut) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert await asyncio.to_thread(brief.wait_exit) == 0
    lines = [json.loads(line) for line in brief.log.splitlines()]
    told = [(each["result"], each["error"]) for each in lines if each["event"] == "call"]
    assert told == [("failed", "the server has ended")]  # not cancelled: no caller left
    async with stubs_of(patient) as stubs:
        cut = await started(stubs, 4000)
        watch = stubs.health.Watch(health_pb2.HealthCheckRequest())
        await within(watch.read())
        engine = engine_of(patient)
        patient.signal(signal.SIGTERM)
        assert (await within(watch.read())).status == NOT_SERVING
        patient.signal(signal.SIGTERM)
        assert await asyncio.to_thread(patient.wait_exit) == 128 + signal.SIGTERM
        assert await status_of(cut) is grpc.StatusCode.UNAVAILABLE
        assert not engine.is_running()


async def test_a_lost_engine_fails_its_calls_and_the_service_recovers(start: Start) -> None:
    process = start()
    process.wait_ready()
    async with stubs_of(process) as stubs:
        watch = stubs.health.Watch(health_pb2.HealthCheckRequest(service="niyama.v1.Inference"))
        assert (await within(watch.read())).status == SERVING
        running = await started(stubs, 4000)
        engine_of(process).kill()
        assert await status_of(running) is grpc.StatusCode.UNAVAILABLE
        assert (await within(watch.read())).status == NOT_SERVING
        refused = stubs.inference.GenerateStream(asked(5))
        assert await status_of(refused) is grpc.StatusCode.UNAVAILABLE
        info = await within(stubs.inference.GetServerInfo(pb.GetServerInfoRequest()))
        assert info.model.name == "embedded"  # known from the engine before
        assert (await within(watch.read())).status == SERVING
        assert (await finish(stubs.inference.GenerateStream(asked(5)))).usage.output_tokens == 5
        watch.cancel()
    process.wait_line(lambda line: "engine lost" in line)
    process.wait_line(lambda line: "engine recovered" in line)


async def test_a_hugging_face_folder_is_served(
    start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = make_checkpoint(tmp_path_factory.mktemp("random-llama"))
    process = start("--model", str(folder), "--model-name", "random")
    assert "random" in process.wait_ready()
    async with stubs_of(process) as stubs:
        info = await within(stubs.inference.GetServerInfo(pb.GetServerInfoRequest()))
        assert (info.model.name, info.model.context_length) == ("random", 96)
        assert not info.model.has_chat_template
        finished = await finish(stubs.inference.GenerateStream(asked(7)))
        assert finished.usage.output_tokens == 7
        chat = pb.Input(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")]))
        refused = stubs.inference.CountTokens(pb.CountTokensRequest(input=chat))
        assert await within(refused.code()) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_token_that_the_model_does_not_know_is_refused_and_nothing_else_is(
    start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = make_checkpoint(tmp_path_factory.mktemp("small-table"), vocab_size=40)
    process = start("--model", str(folder))
    process.wait_ready()
    async with stubs_of(process) as stubs:
        request = pb.GenerateStreamRequest(input=pb.Input(text="Once 50"))
        call = stubs.inference.GenerateStream(request)
        assert await within(call.code()) is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == "input.text: holds token 57; the model knows those below 40"
        finished = await finish(stubs.inference.GenerateStream(asked(7)))
        assert finished.usage.output_tokens == 7


def make_checkpoint(folder: Path, vocab_size: int | None = None) -> Path:
    """A random Llama with a word tokenizer of 64, laid out as Hugging Face does."""
    import tokenizers
    import transformers

    words = ["Once", "upon", "a", "time", "there", "was", *map(str, range(57))]
    pieces = ["<unk>", *(SPACE + word for word in words)]
    model = tokenizers.models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = transformers.LlamaConfig(
        vocab_size=vocab_size or len(pieces),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def copy(folder: Path, *names: str) -> Path:
    """Some files of the embedded model."""
    for name in names:
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    return folder


def lack_a_shard(folder: Path) -> Path:
    """A folder whose index names two shards, of which it holds the first."""
    copy(folder, "tokenizer.model", "config.json")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / shards[0]).write_bytes((FOLDER / "model.safetensors").read_bytes())
    index = {"weight_map": {"model.norm.weight": shards[0], "lm_head.weight": shards[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def bad_tiers(tmp: Path) -> list[str]:
    (tmp / "tiers.toml").write_text("[tiers.a]\nttft_s = 1")
    return ["--config", str(tmp / "tiers.toml")]


REFUSALS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no folder": (lambda tmp: ["--model", f"{tmp}/none"], "no checkpoint folder"),
    "no tokenizer": (lambda tmp: ["--model", str(tmp)], "no tokenizer.model or tokenizer.json"),
    "no weights": (
        lambda tmp: ["--model", str(copy(tmp, "tokenizer.model", "config.json"))],
        "no model.safetensors",
    ),
    "no shard": (
        lambda tmp: ["--model", str(lack_a_shard(tmp))],
        "lacks shard 'model-00002-of-00002.safetensors'",
    ),
    "bad decision log": (
        lambda tmp: ["--decision-log", f"{tmp}/none/log"],
        ": there is no folder ",
    ),
    "too much KV memory": (
        lambda tmp: ["--kv-memory-mib", "100000000"],
        "tokens of KV memory: ",
    ),
    "bad profile": (
        lambda tmp: ["--save-profile", f"{tmp}/none/p"],
        ": there is no folder ",
    ),
    "no such device": (lambda tmp: ["--device", "cuda:99"], "--device cuda:99: "),
    "no tiers file": (
        lambda tmp: ["--config", "nofile.toml"],
        "nofile.toml: No such file or directory",
    ),
    "bad tiers": (bad_tiers, "tiers.a.tbt_s is required"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_server_that_cannot_start_says_why_in_one_line(
    start: Start, tmp_path: Path, name: str
) -> None:
    flags, line = REFUSALS[name]
    process = start(*flags(tmp_path))
    assert process.wait_exit() == 1
    (said,) = (line for line in process.said if not line.startswith("{"))
    assert said.startswith("niyama-server: error: ")
    assert line in said
    assert "[Errno" not in said


@pytest.mark.parametrize("frontends", ["1", "2"])
def test_a_profile_is_saved_and_the_command_ends(
    start: Start, server: ServerProcess, tmp_path: Path, frontends: str
) -> None:
    """It served on, so that no command after it was ever reached. A server that runs on the port
    is not in its way.
    """
    saved = tmp_path / "profile.json"
    port = server.address.rpartition(":")[2]
    process = start("--save-profile", str(saved), "--port", port, "--frontends", frontends)
    assert process.wait_exit() == 0
    assert process.child.stdout is not None
    assert process.child.stdout.read().decode() == f"niyama profile saved in {saved}\n"
    assert LatencyProfile.from_dict(json.loads(saved.read_text())).segments


@pytest.mark.parametrize("flags", [["--port"], ["--metrics-port"]])
def test_a_taken_port_is_told_in_one_line(
    start: Start, server: ServerProcess, flags: list[str]
) -> None:
    process = start(*flags, server.address.rpartition(":")[2])
    assert process.wait_exit() == 1
    line = f"niyama-server: error: cannot listen on {server.address}: address in use"
    assert process.said == [line]


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        return str(response.read().decode())


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
async def test_an_ipv6_address_needs_no_brackets(start: Start, host: str) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = str(probe.getsockname()[1])
    process = start("--host", host, "--metrics-host", host, "--metrics-port", port)
    process.wait_ready()
    assert process.address.startswith("[::1]:")
    async with stubs_of(process) as stubs:
        assert (await finish(stubs.inference.GenerateStream(asked(5)))).usage.output_tokens == 5
    assert "niyama_requests_total" in await asyncio.to_thread(read, f"http://[::1]:{port}/metrics")


def test_a_machine_without_numpy_starts_quietly(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start()
    process.wait_ready()
    assert [line for line in process.said if not line.startswith("{")] == []


def test_a_server_that_cannot_compile_says_why_once_and_serves(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    process = start("--compile", "auto")
    process.wait_ready()
    line = json.loads(process.wait_line(lambda line: '"event": "compile"' in line))
    assert line["level"] == "warning"
    assert line["note"] == "not compiled: no C++ compiler (no-such-compiler) is found"


def test_sigterm_while_loading_leaves_quietly(start: Start) -> None:
    process = start()
    parent = psutil.Process(process.child.pid)
    while not parent.children():  # the engine process, which takes seconds to load
        assert process.child.poll() is None
    process.signal(signal.SIGTERM)
    assert process.wait_exit() == 0
