"""What once stopped the service, thrown at one server, one attack after another, beside a bystander
who must not notice: calls that are large, malformed or many; a log that nobody reads; watchers and
streams that nobody reads; descriptors that run out; an engine that is stopped or killed.

Each was once enough to stop all others for six seconds to a minute, or for ever. The tests run in
the order of this file against the same process, so that what one leaves behind is the next one's
burden. Every load is bounded in count and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from engine.embedded import FOLDER
from niyama.client.client import AsyncClient
from niyama.client.errors import InvalidRequest
from niyama.v1 import inference_pb2 as pb
from tests.http2 import Http2
from tests.server.attacks import (
    METHOD,
    MOST_GAP_S,
    PROMPT,
    bystander,
    field_of,
    memory_mib,
    message,
    refusal,
    send,
)
from tests.server.conftest import Stubs, until, within
from tests.server.frontends.test_frontends import free_port
from tests.server_process import ServerProcess

WAIT_S = 60.0
MOST_GROWTH_MIB = 400.0  # of an attack; one took 1,300
MOST_LINE_BYTES = 16 << 10
DESCRIPTORS, CONNECTIONS = 96, 150
UNREAD = 8
WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

# As the embedded model's own, but for a conversation that begins with one of three words.
TEMPLATE = """{% if messages[0]['content'] == 'loop' -%}
{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}
{%- elif messages[0]['content'] == 'fail' -%}{{ 1 // 0 }}
{%- elif messages[0]['content'] == 'write' -%}
{% for i in range(99999) %}{{ 'again ' * 9999 }}{% endfor %}
{%- endif %}{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"""


class Besieged:
    """The server and who reads its log."""

    def __init__(self, process: ServerProcess, log: LogReader, metrics_port: int) -> None:
        self.log = log
        self._process = process
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"

    @property
    def address(self) -> str:
        return self._process.address

    @property
    def parent(self) -> psutil.Process:
        return psutil.Process(self._process.child.pid)

    def engine(self) -> psutil.Process | None:
        """None while there is none."""
        for child in self.parent.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "engine.driving" in child.cmdline():
                    return child
        return None

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = urllib.request.urlopen(self._metrics_url, timeout=WAIT_S).read().decode()
        samples = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
        return sum(float(value) for _, _, value in samples)

    async def end(self) -> int:
        """Asks it to end; returns its exit code."""
        self._process.signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait_exit)


class LogReader(threading.Thread):
    """Reads the server's stderr until it walks away."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._read, self.write = os.pipe()
        self.lines: list[bytes] = []
        self._is_leaving = False

    def run(self) -> None:
        with open(self._read, "rb") as file:
            for line in file:
                self.lines.append(line)
                if self._is_leaving:
                    return  # and closes the pipe

    def walk_away(self) -> None:
        """Once the next line has come."""
        self._is_leaving = True


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    folder = tmp_path_factory.mktemp("siege")
    log, port = LogReader(), free_port()
    flags = f"--torch-threads 1 --metrics-port {port} --read-s 2 --drain-s 2 --write-timeout-s 3"
    with ServerProcess(
        folder / "log",
        *("--model", str(hostile_model(folder / "model")), "--heartbeat-s", "2", *flags.split()),
        num_files=DESCRIPTORS,
        stderr=log.write,
    ) as process:
        os.close(log.write)
        log.start()
        process.wait_ready()
        yield Besieged(process, log, port)


def hostile_model(folder: Path) -> Path:
    """The embedded one with TEMPLATE."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"chat_template": TEMPLATE}
    path.write_text(json.dumps(settings))
    return folder


# What is sent


def chat(content: str, role: str = "user") -> pb.Input:
    return pb.Input(chat=pb.Chat(messages=[pb.ChatMessage(role=role, content=content)]))


def messages(count: int, one: bytes) -> pb.Input:
    """So many times the same, which is given as it is on the wire."""
    return pb.Input(chat=pb.Chat.FromString((b"\x0a" + bytes([len(one)]) + one) * count))


def text_to_count(size: int) -> bytes:
    return message(pb.CountTokensRequest, input=pb.Input(text="word " * (size // 5)))


# Field 2047 of a message that has none: bytes, of which nobody knows what they mean.
UNKNOWN = message() + b"\xfa\x7f" + b"\x80\x80\x80\x01" + bytes(2 << 20)
STOPS = message(sampling=pb.Sampling(stop_token_ids=[4000] * 1_500_000))
INVALID = {
    "stop tokens": ("sampling.stop_token_ids", STOPS),
    "wrong stop tokens": (
        "sampling.stop_token_ids[0]",
        message(sampling=pb.Sampling(stop_token_ids=[99999] * 90)),
    ),
    "stop strings": ("sampling.stop", message(sampling=pb.Sampling(stop=["a"] * 1_300_000))),
    "token ids": (
        "input.token_ids",
        message(input=pb.Input(token_ids=pb.TokenIds(ids=[5] * 4_000_000))),
    ),
    "text": ("input.text", message(input=pb.Input(text="And God said, " * 280_000))),
    "messages": ("input.chat.messages", message(input=messages(400_000, b"\x0a\x04user"))),
    "empty messages": ("input.chat.messages", message(input=messages(2_000_000, b""))),
    "role": ("input.chat.messages[0].role", message(input=chat("", role="x" * 4_000_000))),
    "request id": ("request_id", message(request_id="x" * 1_000_000)),
    "application": (
        "qos.application",
        message(qos=pb.QualityOfService(application="x" * 4_000_000)),
    ),
    "tier": ("qos.tier", message(qos=pb.QualityOfService(tier="x" * 4_000_000))),
    "template that loops": ("input.chat", message(input=chat("loop"))),
    "template that fails": ("input.chat", message(input=chat("fail"))),
    "template that writes on": ("input.chat", message(input=chat("write"))),
    "nested groups": ("", b"\x7b" * 4_000_000),
    "no message": ("", b"\xff" * 4_000_000),
    "unknown field": ("", UNKNOWN),
}


@pytest.mark.parametrize(("field", "raw"), INVALID.values(), ids=INVALID)
async def test_an_invalid_call_is_refused_by_its_field_and_nobody_notices(
    besieged: Besieged, field: str, raw: bytes
) -> None:
    before = memory_mib(besieged.parent)
    async with grpc.aio.insecure_channel(besieged.address) as channel:
        async with bystander(besieged.address) as others:
            error = await refusal(channel, raw)
        assert field_of(error) == field
    assert others.worst_gap_s() < MOST_GAP_S
    assert memory_mib(besieged.parent) - before < MOST_GROWTH_MIB


@pytest.mark.parametrize("rpc", ["CountTokens", "Estimate", "Explain", "GetServerInfo", "GetLoad"])
async def test_no_rpc_is_stopped_by_a_large_message(besieged: Besieged, rpc: str) -> None:
    """To these it is a field that they do not know, mostly."""
    async with grpc.aio.insecure_channel(besieged.address) as channel:
        async with bystander(besieged.address) as others:
            error = await refusal(channel, STOPS, rpc)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert others.worst_gap_s() < MOST_GAP_S


@pytest.mark.parametrize("raw", [b"\x0a\x00" * 2_000_000, b"\xff" * 40], ids=["large", "none"])
async def test_the_standard_services_read_no_long_message_either(
    besieged: Besieged, raw: bytes
) -> None:
    """It ends as a bad one, before it is parsed."""
    async with (
        grpc.aio.insecure_channel(besieged.address) as channel,
        bystander(besieged.address) as others,
    ):
        reflect = channel.stream_stream(REFLECT)(iter([raw]))
        for answer in (channel.unary_unary("/grpc.health.v1.Health/Check")(raw), reflect.read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await within(answer)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert others.worst_gap_s() < MOST_GAP_S


async def test_a_message_over_the_limit_is_an_invalid_request_to_the_client(
    besieged: Besieged,
) -> None:
    async with AsyncClient(besieged.address) as client, bystander(besieged.address) as others:
        with pytest.raises(InvalidRequest, match="4194304"):
            await within(client.complete("word " * 1_000_000))
    assert others.worst_gap_s() < MOST_GAP_S


@pytest.mark.parametrize(
    ("rpc", "raw"),
    [("CountTokens", text_to_count(4_000_000)), ("Generate", INVALID["messages"][1])],
    ids=["texts", "conversations"],
)
async def test_large_calls_at_once_neither_pile_up_nor_hold_others_up(
    besieged: Besieged, rpc: str, raw: bytes
) -> None:
    before = memory_mib(besieged.parent)
    async with grpc.aio.insecure_channel(besieged.address) as channel:
        async with bystander(besieged.address) as others:
            calls = (send(channel, raw, rpc, f"tenant-{i}") for i in range(24))
            errors = await asyncio.gather(*calls, return_exceptions=True)
        codes = {error.code() for error in errors if isinstance(error, grpc.aio.AioRpcError)}
    assert len(errors) == 24
    assert codes <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert others.worst_gap_s() < MOST_GAP_S
    assert memory_mib(besieged.parent) - before < MOST_GROWTH_MIB


async def test_a_line_of_the_log_is_bounded_whatever_was_sent(besieged: Besieged) -> None:
    async with grpc.aio.insecure_channel(besieged.address) as channel:
        await refusal(channel, message(request_id="x" * 30_000))
    await until(lambda: any(b"... (30000 characters)" in line for line in besieged.log.lines))
    assert max(map(len, besieged.log.lines)) < MOST_LINE_BYTES


# Who does not read: the log, health, tokens


async def test_a_log_that_nobody_reads_any_more_costs_nothing(besieged: Besieged) -> None:
    """All tests from here on run without a reader."""
    name = "niyama_log_lines_dropped_total"
    dropped = besieged.metric(name)
    async with bystander(besieged.address) as others:
        besieged.log.walk_away()
        async with grpc.aio.insecure_channel(besieged.address) as channel:
            for _ in range(3):  # of which each has a line in the log
                await refusal(channel, message(request_id="x" * 200))
        await until(lambda: besieged.metric(name) > dropped)
    assert others.worst_gap_s() < MOST_GAP_S
    assert not besieged.log.is_alive()


async def test_a_watcher_that_does_not_read_holds_no_other_up(besieged: Besieged) -> None:
    request = health_pb2.HealthCheckRequest()
    with Http2(besieged.address, window=0) as connection:
        for _ in range(UNREAD):
            connection.call(WATCH, request.SerializeToString())
        async with grpc.aio.insecure_channel(besieged.address) as channel:
            watch = Stubs(channel).health.Watch(request)
            assert (await within(watch.read())).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()


def unread_stream(connection: Http2, max_tokens: int) -> int:
    sampling = pb.Sampling(max_tokens=max_tokens, ignore_eos=True)
    return connection.call(METHOD + "GenerateStream", message(sampling=sampling))


async def test_streams_that_nobody_reads_count_until_they_are_ended(besieged: Besieged) -> None:
    async with bystander(besieged.address) as others:
        with Http2(besieged.address, window=0) as connection:
            for _ in range(UNREAD):
                unread_stream(connection, max_tokens=4)
            await until(lambda: besieged.metric("niyama_calls_in_flight") >= UNREAD)
            await until(lambda: besieged.metric("niyama_calls_in_flight") <= 1)
    assert others.worst_gap_s() < MOST_GAP_S


# Descriptors, and the engine


async def replace_engine(
    besieged: Besieged, number: signal.Signals, channel: grpc.aio.Channel
) -> None:
    """Sends the engine the signal; returns when another serves in its place."""
    before = besieged.engine()
    assert before is not None
    watch = Stubs(channel).health.Watch(health_pb2.HealthCheckRequest())
    assert (await within(watch.read())).status == health_pb2.HealthCheckResponse.SERVING
    before.send_signal(number)
    assert (await within(watch.read())).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await within(watch.read())).status == health_pb2.HealthCheckResponse.SERVING
    assert besieged.engine() not in (before, None)
    watch.cancel()


async def test_connections_beyond_the_descriptors_leave_room_for_a_new_engine(
    besieged: Besieged,
) -> None:
    host, _, port = besieged.address.rpartition(":")
    async with grpc.aio.insecure_channel(besieged.address) as channel:
        async with bystander(besieged.address) as others:
            crowd = [socket.create_connection((host, int(port)), 60) for _ in range(CONNECTIONS)]
        assert others.worst_gap_s() < MOST_GAP_S
        await replace_engine(besieged, signal.SIGKILL, channel)
    for connection in crowd:
        connection.close()


async def test_an_engine_that_is_stopped_is_found_out_and_replaced_as_it_was(
    besieged: Besieged,
) -> None:
    async with grpc.aio.insecure_channel(besieged.address) as channel:
        stub = Stubs(channel).inference
        before = await within(stub.GetServerInfo(pb.GetServerInfoRequest()))
        await replace_engine(besieged, signal.SIGSTOP, channel)
        assert await within(stub.GetServerInfo(pb.GetServerInfoRequest())) == before


async def test_what_waited_when_the_engine_died_is_run_by_the_next(besieged: Besieged) -> None:
    """A unary call has sent nothing before its end."""
    sampling = pb.Sampling(max_tokens=600, ignore_eos=True)
    request = pb.GenerateRequest(input=PROMPT, sampling=sampling)
    async with grpc.aio.insecure_channel(besieged.address) as channel:
        calls = [Stubs(channel).inference.Generate(request) for _ in range(8)]
        await until(lambda: besieged.metric("niyama_calls_in_flight") >= len(calls))
        await replace_engine(besieged, signal.SIGKILL, channel)
        answers = await within(asyncio.gather(*calls))
    assert [a.completions[0].finished.usage.output_tokens for a in answers] == [600] * 8


async def test_it_drains_in_its_time_whoever_does_not_read(besieged: Besieged) -> None:
    with Http2(besieged.address, window=0) as connection:
        connection.call(WATCH, health_pb2.HealthCheckRequest().SerializeToString())
        unread_stream(connection, max_tokens=2000)
        await until(lambda: besieged.metric("niyama_calls_in_flight") >= 1)
        assert await within(besieged.end()) == 0
