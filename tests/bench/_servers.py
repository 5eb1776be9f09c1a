"""The servers that `bench frontend` and `bench service` measure, each in a process of its own:

    python -m tests.bench._servers {echo,null,model}

prints its port and serves until its standard input ends. `echo` is a bare grpc.aio server that
repeats one message; `null` is the real front end before an engine that costs nothing and gives
every stream a token per iteration, at the pace that the client names; `model` is niyama as it is.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable

import grpc
import uvloop

from engine.config import EngineConfig
from engine.deciding.plan import Pending, Plan
from engine.driving import null
from engine.driving.loop import Engine
from engine.processes import collector
from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from server import logs
from server.app import Server
from server.config import ServerConfig

MAX_STREAMS = 1024


class Paced:
    """An executor whose iterations begin at least a period apart. The period in seconds is what
    the requests call their application; "" for none.
    """

    def __init__(self, inner: null.NullExecutor) -> None:
        self._inner = inner
        self._due_at = 0.0

    @property
    def compilations(self) -> int:
        return self._inner.compilations

    def launch(self, plan: Plan) -> Pending:
        sampling = plan.sampling
        period_s = float(sampling[0].request.application or 0) if sampling else 0.0
        now = time.monotonic()
        if now < self._due_at:
            time.sleep(self._due_at - now)
        # An iteration that comes late is not made up for: that would be a burst.
        self._due_at = max(self._due_at, now) + period_s
        return self._inner.launch(plan)


def build(config: EngineConfig) -> Engine:
    """Builds the null engine at the pace that requests ask for: a factory for EngineConfig."""
    engine = null.build(config)
    assert isinstance(engine.executor, null.NullExecutor)
    return engine._replace(executor=Paced(engine.executor))


class Echo(inference_pb2_grpc.InferenceServicer):
    """Answers with a message of the request's own making, as often as it says."""

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: grpc.aio.ServicerContext
    ) -> None:
        message = pb.GenerateStreamResponse.FromString(request.input.text.encode("latin-1"))
        for _ in range(request.sampling.max_tokens):
            await context.write(message)


async def serve_echo(stopped: Awaitable[object]) -> None:
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await stopped
    await server.stop(grace=None)


async def serve_null(stopped: Awaitable[object]) -> None:
    engine = EngineConfig(
        factory="tests.bench._servers:build",
        policy="fcfs",
        max_batch_size=MAX_STREAMS,
        kv_memory_mib=16384,  # pages of no memory: enough that no stream waits for them
    )
    await _serve(engine, stopped)


async def serve_model(stopped: Awaitable[object]) -> None:
    await _serve(EngineConfig(factory="tests.bench._engines:build"), stopped)


async def _serve(engine: EngineConfig, stopped: Awaitable[object]) -> None:
    server = Server(ServerConfig(port=0, max_requests=2 * MAX_STREAMS, drain_s=0.0, engine=engine))
    await server.start()
    collector.settle()
    print(server.port, flush=True)
    await stopped
    await server.stop()


async def main(name: str) -> None:
    logs.configure("json", "error")
    stopped = asyncio.to_thread(sys.stdin.read)
    servers = {"echo": serve_echo, "null": serve_null, "model": serve_model}
    await servers[name](stopped)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
