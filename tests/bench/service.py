"""What the service costs beside the engine: tokens/s through gRPC against offline, TTFT when idle.

    python -m tests.bench service [--streams 64] [--repeats 5] [--probes 100]

Saturation: the same requests (the embedded model, prompts of random tokens with a median of 64,
outputs of 64 to 192) are all given at once to the engine without a service, in a process of its
own, and, one stream each, to niyama (front-end process, engine process; this process is the client,
with the generated stub). The arms alternate, each repeat with fresh prompts; both engines have the
same flags. `ratio` is tokens/s of the service over those of the engine alone. The client works on
the same cores: its CPU seconds are measured, and `ratio_without_client` is what the ratio would be
had that time been shared out over all cores, an upper bound.

Idle: one request at a time on an open channel. A request's time in the engine is from when the
engine process takes it off the pipe until it commits the first token; what the service adds is the
time that the client sees, from the call to its first token's message, minus that. It is told in
three parts, since all processes of a machine share the monotonic clock: from the call to its
arrival at the handler, from there to the engine, and from commit to receipt. `bare` is what a
stream's first message takes from a grpc.aio server that does nothing else.

Prints medians and, as the last line, a JSON object; exit code 1 where the ratio is under 85 % or
the median addition to TTFT is 2 ms or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import uvloop

from engine.processes.environment import environment
from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from tests.bench._engines import NOTES
from tests.bench.frontend import Arm, cpu_s, machine, serving

GOAL, TTFT_GOAL_S = 0.85, 2e-3
VOCABULARY = range(300, 2000)  # of the random prompts: plain tokens of the embedded model
Asked = list[tuple[list[int], int]]  # prompts, each with the number of tokens to generate


class Served(NamedTuple):
    """One run through gRPC."""

    seconds: float
    tokens: int
    messages: int
    client_s: float  # CPU seconds, as the two after it
    front_end_s: float
    engine_s: float


class Addition(NamedTuple):
    """Of one request, in seconds."""

    arriving_s: float  # from the call to the handler
    posting_s: float  # from there to the engine
    returning_s: float  # from commit to receipt


def requests(count: int, seed: int) -> Asked:
    rng = random.Random(seed)
    lengths = [min(512, max(4, int(rng.lognormvariate(4.16, 0.8)))) for _ in range(count)]
    return [(rng.choices(VOCABULARY, k=length), rng.randint(64, 192)) for length in lengths]


def message_for(prompt: list[int], length: int, request_id: str = "") -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(
        input=pb.Input(token_ids=pb.TokenIds(ids=prompt)),
        sampling=pb.Sampling(max_tokens=length, ignore_eos=True, seed=1),
        qos=pb.QualityOfService(best_effort=pb.BestEffortTargets()),
        request_id=request_id,
    )


@contextmanager
def offline() -> Iterator[subprocess.Popen[str]]:
    """Runs the engine alone until the end of the block, from when it is ready."""
    command = [sys.executable, "-m", "tests.bench._engines"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as child:  # type: ignore[call-overload]  # keywords in one
        assert child.stdout.readline() == "ready\n"
        try:
            yield child
        finally:
            child.stdin.close()


def run_offline(child: subprocess.Popen[str], asked: Asked) -> dict[str, float]:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(asked) + "\n")
    child.stdin.flush()
    found: dict[str, float] = json.loads(child.stdout.readline())
    return found


async def run_service(arm: Arm, asked: Asked) -> Served:
    """Sends all requests at once, and measures until the last stream has ended."""
    children = arm.process.children()
    (engine,) = [child for child in children if "engine.driving" in child.cmdline()]
    own = psutil.Process()
    processes = [own, arm.process, engine]

    async def follow(call: Any) -> tuple[int, int]:
        counts = [len(message.tokens.token_ids) async for message in call]
        return sum(counts), len(counts) - 2  # without `accepted` and `finished`

    async with grpc.aio.insecure_channel(f"127.0.0.1:{arm.port}") as channel:
        await channel.channel_ready()
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        cpu, started_at = [cpu_s(p) for p in processes], time.monotonic()
        calls = [stub.GenerateStream(message_for(*one)) for one in asked]
        followed = await asyncio.gather(*map(follow, calls))
        seconds = time.monotonic() - started_at
        used = [cpu_s(p) - before for p, before in zip(processes, cpu, strict=True)]
    tokens, messages = (sum(column) for column in zip(*followed, strict=True))
    return Served(seconds, tokens, messages, *used)


async def probe(arm: Arm, notes: Path, count: int) -> list[Addition]:
    """Sends one request after the other, and returns what the service added to each, by what the
    engine noted of them.
    """
    rng = random.Random(1)
    asked = [
        message_for(rng.choices(VOCABULARY, k=32), 2, f"probe-{number}") for number in range(count)
    ]
    seen = await first_tokens(arm, asked)
    lines = [line.split() for line in await asyncio.to_thread(_lines, notes)]
    noted = {name: list(map(float, instants)) for name, *instants in lines}
    return [
        Addition(
            noted[request.request_id][0] - called_at,
            noted[request.request_id][1] - noted[request.request_id][0],
            received_at - noted[request.request_id][2],
        )
        for request, (called_at, received_at) in zip(asked, seen, strict=True)
    ]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


async def bare(arm: Arm, count: int) -> list[float]:
    """Returns the seconds from a call to the first message of the echo, for `count` calls."""
    message = pb.GenerateStreamResponse(tokens=pb.Tokens(text=" once", token_ids=[1000]))
    text = message.SerializeToString().decode("latin-1")
    request = message_for([], 2)
    request.input.text = text
    return [end - start for start, end in await first_tokens(arm, [request] * count)]


async def first_tokens(
    arm: Arm, asked: Sequence[pb.GenerateStreamRequest]
) -> list[tuple[float, float]]:
    """Sends one request after the other; returns when each was sent, and when its first tokens
    came.
    """
    seen = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{arm.port}") as channel:
        await channel.channel_ready()
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        for request in asked:
            called_at, first_at = time.monotonic(), None
            async for message in stub.GenerateStream(request):
                if first_at is None and message.HasField("tokens"):
                    first_at = time.monotonic()
            assert first_at is not None
            seen.append((called_at, first_at))
    return seen


def compare(alone: subprocess.Popen[str], arm: Arm, streams: int, repeats: int) -> dict[str, Any]:
    """Measures engine and service with as many streams as saturate them, in turn. The first repeat
    warms both up.
    """
    engine, service = [], []
    for repeat in range(repeats + 1):
        asked = requests(streams, seed=repeat)
        engine.append(run_offline(alone, asked))
        service.append(uvloop.run(run_service(arm, asked)))
        assert engine[-1]["tokens"] == service[-1].tokens
    engine, service = engine[1:], service[1:]
    cores = len(os.sched_getaffinity(0))
    ratios = [e["seconds"] / s.seconds for e, s in zip(engine, service, strict=True)]
    freed = [
        e["seconds"] / (s.seconds - s.client_s / cores)
        for e, s in zip(engine, service, strict=True)
    ]
    return {
        "streams": streams,
        "engine_tokens_per_s": _median(e["tokens"] / e["seconds"] for e in engine),
        "service_tokens_per_s": _median(s.tokens / s.seconds for s in service),
        "tokens_per_message": _median(s.tokens / s.messages for s in service),
        "engine_alone_cpu_us_per_token": _median(1e6 * e["cpu_s"] / e["tokens"] for e in engine),
        "engine_cpu_us_per_token": _median(1e6 * s.engine_s / s.tokens for s in service),
        "front_end_cpu_us_per_token": _median(1e6 * s.front_end_s / s.tokens for s in service),
        "client_cpu_us_per_token": _median(1e6 * s.client_s / s.tokens for s in service),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_without_client": round(statistics.median(freed), 3),
    }


def idle(additions: Sequence[Addition]) -> dict[str, float]:
    """Returns what an idle service adds to the first token, in milliseconds."""
    total = sorted(1e3 * sum(addition) for addition in additions)
    return {
        "requests": len(total),
        "arriving_p50_ms": _median(1e3 * a.arriving_s for a in additions),
        "posting_p50_ms": _median(1e3 * a.posting_s for a in additions),
        "returning_p50_ms": _median(1e3 * a.returning_s for a in additions),
        "added_p50_ms": round(statistics.median(total), 3),
        "added_p90_ms": round(total[int(0.9 * len(total))], 3),
    }


def _median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench service", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--streams", type=int, default=64, help="requests at once")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each arm")
    parser.add_argument("--probes", type=int, default=100, help="requests when idle")
    arguments = parser.parse_args(argv)
    print(f"service against engine: {machine()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        os.environ[NOTES] = str(notes)
        with serving("model") as arm:
            uvloop.run(probe(arm, notes, 10))
            added = idle(uvloop.run(probe(arm, notes, arguments.probes)))
            with serving("echo") as echo:
                uvloop.run(bare(echo, 10))
                seconds = uvloop.run(bare(echo, arguments.probes))
            added["bare_p50_ms"] = _median(1e3 * s for s in seconds)
            print("idle       " + "  ".join(f"{key} {value}" for key, value in added.items()))
            with offline() as alone:
                row = compare(alone, arm, arguments.streams, arguments.repeats)
    print("saturation " + "  ".join(f"{key} {value}" for key, value in row.items()))
    passed = row["ratio"] >= GOAL and added["added_p50_ms"] < 1e3 * TTFT_GOAL_S
    report = {"bench": "service", "machine": machine(), "saturation": row, "idle": added}
    print(json.dumps(report | {"passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
