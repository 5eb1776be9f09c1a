"""The front end's message rate beside that of a bare grpc.aio streaming server.

    python -m tests.bench frontend [--streams 64,256] [--repeats 5] [--seconds 1] [--pin]

Two servers, each in a process of its own, and one client, this process, with the generated stub on
one channel. `echo` is a bare grpc.aio server whose handlers write one and the same protobuf message
as fast as they can. `niyama` is the real front end before an engine that costs nothing, which
offers every stream one token per iteration, paced: 80 % of the messages/s that the bare server has
just reached, then 100 %, then 200 %, where like the bare server it always has something to write.
Tokens that the front end merges into one message count as one message (tokens/message is told). The
echo repeats a one-token message that was received from niyama, and the arms alternate.

Printed for each number of streams and each offer: medians over the repeats of messages/s that the
client received, tokens per message, the ratio to the bare server's messages/s, and the CPU time per
message of the serving process, of the client and (per token) of the engine process. The message
rate is the best offer's median ratio. The last line is a JSON object; exit code 1 where that is
below 70 %.

On two cores the kernel's placement of threads decides much: gRPC sends every message by itself, the
client's threads wake on the server's core and displace it while the other core is idle. `--pin`
gives either serving process a core to itself and all others, niyama's engine too, the rest. It
slows the echo and speeds niyama up: a second figure to state beside the first, not in its place.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import psutil
import uvloop
from google.protobuf import __version__ as protobuf_version

from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc

GOAL = 0.70
LENGTH = 4000  # tokens of a stream, more than a run reads
PROMPT = [300] * 8
OFFERS = (0.8, 1.0, 2.0)  # of the bare server's rate
SETTLE_S = 0.3  # between the last stream's first message and the first measured instant


class Arm(NamedTuple):
    """A running server."""

    process: psutil.Process
    port: int


class Run(NamedTuple):
    """What the client saw of one server for some seconds. CPU times in seconds per message."""

    messages_per_s: float
    tokens_per_s: float
    server_s: float
    client_s: float
    engine_s: float  # per token; 0 where there is no engine

    @property
    def tokens_per_message(self) -> float:
        return self.tokens_per_s / self.messages_per_s


class Counter:
    """What the streams of one run have received."""

    def __init__(self) -> None:
        self.started = self.messages = self.tokens = 0
        self.all_started = asyncio.Event()

    async def follow(self, call: Any, num_streams: int) -> None:
        is_first = True
        async for message in call:
            self.messages += 1
            self.tokens += len(message.tokens.token_ids)
            if is_first and message.HasField("tokens"):
                is_first = False
                self.started += 1
                if self.started == num_streams:
                    self.all_started.set()


@contextmanager
def serving(name: str) -> Iterator[Arm]:
    """Runs a server of _servers.py until the end of the block."""
    command = [sys.executable, "-m", "tests.bench._servers", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield Arm(psutil.Process(child.pid), int(child.stdout.readline()))
        finally:
            child.stdin.close()


def isolate(process: psutil.Process, core: int) -> None:
    """Moves the process, without its children, to that core."""
    for thread in process.threads():
        os.sched_setaffinity(thread.id, {core})


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def measure(
    arm: Arm, request: pb.GenerateStreamRequest, num_streams: int, seconds: float
) -> Run:
    """Follows that many streams at once, and counts once all have begun."""
    counter = Counter()
    own, engines = psutil.Process(), arm.process.children()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{arm.port}") as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        calls = [stub.GenerateStream(request) for _ in range(num_streams)]
        followers = [asyncio.create_task(counter.follow(call, num_streams)) for call in calls]
        begun = asyncio.create_task(counter.all_started.wait())
        done, _ = await asyncio.wait([begun, *followers], return_when=asyncio.FIRST_COMPLETED)
        for ended in done - {begun}:
            ended.result()  # raises what ended a stream early
        await asyncio.sleep(SETTLE_S)
        processes = [arm.process, own, *engines]
        started_at, cpu = time.perf_counter(), [cpu_s(p) for p in processes]
        messages, tokens = counter.messages, counter.tokens
        await asyncio.sleep(seconds)
        lasted_s = time.perf_counter() - started_at
        messages, tokens = counter.messages - messages, counter.tokens - tokens
        used = [cpu_s(p) - before for p, before in zip(processes, cpu, strict=True)]
        for call in calls:
            if call.done():
                code, details = await call.code(), await call.details()
                raise SystemExit(f"a stream ended before the run did: {code} {details}")
        for call in calls:
            call.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
    return Run(
        messages / lasted_s,
        tokens / lasted_s,
        used[0] / messages,
        used[1] / messages,
        sum(used[2:]) / tokens,
    )


def asked(text: str = "", period_s: float | None = None, length: int = LENGTH) -> Any:
    sampling = pb.Sampling(max_tokens=length, ignore_eos=True, seed=1)
    tokens = pb.TokenIds(ids=PROMPT)
    form = pb.Input(text=text) if text else pb.Input(token_ids=tokens)
    application = "" if period_s is None else f"{period_s:.9f}"
    qos = pb.QualityOfService(best_effort=pb.BestEffortTargets(), application=application)
    return pb.GenerateStreamRequest(input=form, sampling=sampling, qos=qos)


async def typical_message(port: int) -> pb.GenerateStreamResponse:
    """Returns a message with one token as niyama sends it, of the median size."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        call = stub.GenerateStream(asked(period_s=0.01, length=20))
        found = [m async for m in call if m.HasField("tokens") and len(m.tokens.token_ids) == 1]
    return sorted(found, key=lambda m: m.ByteSize())[len(found) // 2]


async def compare(
    echo: Arm, niyama: Arm, num_streams: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """Returns the medians of runs in turn: of the bare server, and of niyama at each offer."""
    message = await typical_message(niyama.port)
    # The message travels as text, each of its bytes a character.
    repeat = asked(text=message.SerializeToString().decode("latin-1"), length=1 << 30)
    bare: list[Run] = []
    real: dict[float, list[Run]] = {offer: [] for offer in OFFERS}
    for _ in range(repeats):
        bare.append(await measure(echo, repeat, num_streams, seconds))
        for offer, runs in real.items():
            request = asked(period_s=num_streams / bare[-1].messages_per_s / offer)
            runs.append(await measure(niyama, request, num_streams, seconds))
    offers = [{"offer": offer} | summary(runs, bare) for offer, runs in real.items()]
    return {
        "streams": num_streams,
        "message_bytes": message.ByteSize(),
        "echo": summary(bare, bare),
        "niyama": offers,
        "ratio": max(row["ratio"] for row in offers),
    }


def summary(runs: Sequence[Run], bare: Sequence[Run]) -> dict[str, float]:
    """Returns medians; `ratio` is of each run's messages to those of the bare run beside it."""

    def median(values: Iterator[float]) -> float:
        return statistics.median(values)

    pairs = zip(runs, bare, strict=True)
    return {
        "ratio": round(median(r.messages_per_s / b.messages_per_s for r, b in pairs), 3),
        "messages_per_s": round(median(r.messages_per_s for r in runs)),
        "tokens_per_message": round(median(r.tokens_per_message for r in runs), 3),
        "server_us_per_message": round(1e6 * median(r.server_s for r in runs), 1),
        "client_us_per_message": round(1e6 * median(r.client_s for r in runs), 1),
        "engine_us_per_token": round(1e6 * median(r.engine_s for r in runs), 1),
    }


def show(row: dict[str, Any]) -> None:
    print(f"{row['streams']} streams, messages of {row['message_bytes']} bytes")
    for name, found in [("echo", row["echo"]), *(("niyama", offer) for offer in row["niyama"])]:
        print(f"  {name:8s}" + "  ".join(f"{key} {value}" for key, value in found.items()))
    print(f"  message rate {row['ratio']:.1%} of the bare server's", flush=True)


def machine() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "protobuf": protobuf_version,
        "uvloop": uvloop.__version__,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench frontend", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--streams", default="64,256", help="numbers of streams at once")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each arm")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured, for each run")
    parser.add_argument("--pin", action="store_true", help="the server on a core of its own")
    arguments = parser.parse_args(argv)
    where = machine() | {"pinned": arguments.pin}
    print(f"messages/s to one client: {where}")
    rows = []
    cores = sorted(os.sched_getaffinity(0))
    if arguments.pin:
        if len(cores) < 2:
            parser.error("--pin needs two cores")
        os.sched_setaffinity(0, cores[1:])  # inherited by all that it starts
    with serving("echo") as echo, serving("null") as niyama:
        if arguments.pin:
            for arm in (echo, niyama):
                isolate(arm.process, cores[0])
        for num_streams in map(int, arguments.streams.split(",")):
            rows.append(
                uvloop.run(compare(echo, niyama, num_streams, arguments.repeats, arguments.seconds))
            )
            show(rows[-1])
    passed = all(row["ratio"] >= GOAL for row in rows)
    print(json.dumps({"bench": "frontend", "machine": where, "rows": rows, "passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
