"""What a caller can send to stop the others, ready on the wire, and somebody who would notice."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psutil
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from tests.server.conftest import Ended, within

PROMPT = pb.Input(text="In the beginning")
METHOD = "/niyama.v1.Inference/"
# That a bystander may see: many times what a busy machine makes. The attacks made 6 to 48 seconds.
MOST_GAP_S = 4.0


def message(kind: type[Any] = pb.GenerateRequest, **fields: Any) -> bytes:
    fields.setdefault("input", PROMPT)
    return bytes(kind(**fields).SerializeToString())


async def send(
    channel: grpc.aio.Channel, raw: bytes, rpc: str = "Generate", tenant: str = ""
) -> bytes:
    """As any client would, without its own work."""
    metadata = (("niyama-tenant", tenant),) if tenant else None
    return bytes(await within(channel.unary_unary(METHOD + rpc)(raw, metadata=metadata)))


async def refusal(channel: grpc.aio.Channel, raw: bytes, rpc: str = "Generate") -> Any:
    """The error that it ends with."""
    try:
        await send(channel, raw, rpc)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("it was served")


def field_of(error: Any) -> str:
    """The first field that the status of an invalid call names."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    status = rpc_status.from_call(Ended(error))
    detail = error_details_pb2.BadRequest()
    assert status is not None
    assert status.details[0].Unpack(detail)
    return detail.field_violations[0].field


class Bystander:
    """Checks the server's health all the time, and reads a stream; instants of the clock."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.checked_at: list[float] = []
        self.tokens_at: list[float] = []

    async def check(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                response = await stub.Check(health_pb2.HealthCheckRequest())
                assert response.status == health_pb2.HealthCheckResponse.SERVING
                self.checked_at.append(time.monotonic())
                await asyncio.sleep(0.005)

    async def read(self) -> None:
        sampling = pb.Sampling(max_tokens=3000, ignore_eos=True)
        request = pb.GenerateStreamRequest(input=PROMPT, sampling=sampling)
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub: Any = inference_pb2_grpc.InferenceStub(channel)
            while True:
                async for event in stub.GenerateStream(request):
                    if event.HasField("tokens"):
                        self.tokens_at.append(time.monotonic())

    def worst_gap_s(self) -> float:
        """In which it saw neither the one nor the other."""
        gaps = [
            after - before
            for instants in (self.checked_at, self.tokens_at)
            for before, after in itertools.pairwise(instants)
        ]
        return max(gaps)


@asynccontextmanager
async def bystander(address: str) -> AsyncIterator[Bystander]:
    """One that has seen both before the block begins, and after its end."""
    watching = Bystander(address)
    tasks = [asyncio.create_task(work) for work in (watching.check(), watching.read())]

    async def seen_more() -> None:
        before = len(watching.checked_at), len(watching.tokens_at)
        while not (len(watching.checked_at) > before[0] and len(watching.tokens_at) > before[1]):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.005)

    try:
        await within(seen_more())
        yield watching
        await within(seen_more())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def memory_mib(process: psutil.Process) -> float:
    """Of it and of the processes that read for it; not of the engine."""
    readers = [p for p in process.children() if "server.reading.reader" in p.cmdline()]
    return sum(p.memory_info().rss for p in [process, *readers]) / 2**20
