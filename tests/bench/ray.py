"""What the way through Ray Serve costs a stream, beside the same server called directly.

    python -m tests.bench ray [--streams 1,8] [--tokens 48] [--rounds 6]

Two servers of the embedded model with the same flags, one of them the only replica behind Ray's
gRPC proxy; the arms alternate, and while one is called the other is idle. A round sends that many
streams at once. Printed for each number of streams and each arm: median and 99th percentile of TTFT
and of the time between two messages of a stream (milliseconds, as the client sees them), tokens per
message, and the processor time per token of all processes of the arm but the engine. The last line
is a JSON object. It needs the extra `ray`, and fails where there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil

from loadgen.scoring.score import percentile
from loadgen.targets.local_server import serving
from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc

FLAGS = ("--calibration-s", "2", "--torch-threads", "1", "--allow-anonymous")
ARMS = {"direct": "server", "ray": "server.ray"}
PROMPT = [300] * 32
WARM_UP = 2  # rounds that are not counted
ENGINE = "engine.driving"


@dataclass
class Arm:
    """A running server, and what its streams have seen of it; times in seconds."""

    address: str
    processes: list[psutil.Process]
    ttfts_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_messages: int = 0
    cpu_s: float = 0.0

    async def call(self, num_streams: int, num_tokens: int, counts: bool) -> None:
        """Follows that many streams at once to their end."""
        sampling = pb.Sampling(max_tokens=num_tokens, ignore_eos=True, seed=1)
        prompt = pb.Input(token_ids=pb.TokenIds(ids=PROMPT))
        request = pb.GenerateStreamRequest(input=prompt, sampling=sampling)
        before = self._used_s()
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: Any = inference_pb2_grpc.InferenceStub(channel)
            follow = [_follow(stub.GenerateStream(request)) for _ in range(num_streams)]
            found = await asyncio.gather(*follow)
        if not counts:
            return
        self.cpu_s += self._used_s() - before
        self.num_tokens += num_streams * num_tokens
        for instants in found:
            self.num_messages += len(instants) - 1
            self.ttfts_s.append(instants[1] - instants[0])
            self.gaps_s.extend(b - a for a, b in itertools.pairwise(instants[1:]))

    def _used_s(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.processes)

    def summary(self) -> dict[str, float]:
        """Returns what there is to be said of the counted streams."""
        times = {"ttft": sorted(self.ttfts_s), "tbt": sorted(self.gaps_s)}
        found = {
            f"{name}_p{percent}_ms": round(1e3 * (percentile(seconds, percent) or 0.0), 1)
            for name, seconds in times.items()
            for percent in (50, 99)
        }
        return {
            **found,
            "tokens_per_message": round(self.num_tokens / self.num_messages, 2),
            "cpu_ms_per_token": round(1e3 * self.cpu_s / self.num_tokens, 2),
        }


async def _follow(stream: Any) -> list[float]:
    """Returns the instant of the call, and those of its messages with tokens."""
    began_at = time.perf_counter()
    return [began_at, *[time.perf_counter() async for e in stream if e.HasField("tokens")]]


def processes_of(known: set[int]) -> list[psutil.Process]:
    """Returns the processes that this one has started beside the known ones, engines left out."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if each.pid not in known and ENGINE not in each.cmdline()]


def machine() -> dict[str, Any]:
    return {"cores": len(os.sched_getaffinity(0)), "load_1min": round(os.getloadavg()[0], 2)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench ray", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--streams", default="1,8", help="numbers of streams at once")
    parser.add_argument("--tokens", type=int, default=48, help="of each stream")
    parser.add_argument("--rounds", type=int, default=6, help="of each arm, for each number")
    arguments = parser.parse_args(argv)
    where, rows = machine(), []
    print(f"through Ray Serve, and directly: {where}")
    with serving(FLAGS, ARMS["direct"]) as direct:
        of_direct = processes_of(set())
        known = {each.pid for each in psutil.Process().children(recursive=True)}
        with serving(FLAGS, ARMS["ray"]) as ray:
            of_ray = processes_of(known)
            for num_streams in map(int, arguments.streams.split(",")):
                arms = {"direct": Arm(direct, of_direct), "ray": Arm(ray, of_ray)}
                for i in range(WARM_UP + arguments.rounds):
                    for arm in arms.values():
                        asyncio.run(arm.call(num_streams, arguments.tokens, i >= WARM_UP))
                row = {name: arm.summary() for name, arm in arms.items()}
                print(f"{num_streams} streams at once")
                for name, found in row.items():
                    print(f"  {name:8s}" + "  ".join(f"{k} {v}" for k, v in found.items()))
                sys.stdout.flush()
                rows.append({"streams": num_streams, **row})
    print(json.dumps({"bench": "ray", "machine": where, "rows": rows, "passed": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
