"""The supervisor in the tests' own process; front ends and an engine without a model in theirs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psutil
import pytest
from structlog.testing import capture_logs

from engine.config import EngineConfig
from niyama.v1 import inference_pb2 as pb
from server.app import Server
from server.config import ServerConfig, StartError
from tests.engine.driving.engines import NULL
from tests.server.conftest import Stubs, until, within

FOREVER_S = 3600.0  # longer than any test waits


def config(**fields: Any) -> ServerConfig:
    fields = {"port": 0, "frontends": 2, "drain_s": FOREVER_S} | fields
    return ServerConfig(**fields, engine=EngineConfig(factory=NULL))


@contextlib.asynccontextmanager
async def supervised() -> AsyncIterator[Server]:
    server = Server(config())
    try:
        await within(server.start())
        yield server
    finally:
        await within(server.stop())


def workers() -> set[int]:
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended in the meantime
            if "server.frontends.worker" in child.cmdline():
                found.add(child.pid)
    return found


def kill_one() -> set[int]:
    """Returns the others."""
    victim, *others = workers()
    psutil.Process(victim).kill()
    return set(others)


def has_lost(lines: list[Any]) -> bool:
    return any(line["event"] == "front end lost" for line in lines)


@pytest.mark.parametrize("ends", ["drain", "stop"])
async def test_a_front_end_lost_just_before_the_end_is_not_replaced(ends: str) -> None:
    with capture_logs() as lines:
        async with supervised() as server:
            others = kill_one()
            await until(lambda: has_lost(lines))
            assert workers() == others
            await within(getattr(server, ends)())
    assert not workers()


async def test_calls_that_are_cancelled_at_any_moment_disturb_no_front_end() -> None:
    """Of every RPC; one that left while it asked the ledger ended the front end."""
    prompt, chance = pb.Input(text="Once"), random.Random(0)
    requests = {
        "Generate": pb.GenerateRequest(input=prompt),
        "GenerateStream": pb.GenerateStreamRequest(input=prompt),
        "Estimate": pb.EstimateRequest(prompt_tokens=5),
        "Explain": pb.ExplainRequest(request_id="nobody's"),
        "CountTokens": pb.CountTokensRequest(input=prompt),
        "GetServerInfo": pb.GetServerInfoRequest(),
        "GetLoad": pb.GetLoadRequest(),
    }
    async with supervised() as server:
        before = workers()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub: Any = Stubs(channel).inference
            for _ in range(50):
                calls = [getattr(stub, rpc)(request) for rpc, request in requests.items()]
                calls += [stub.Estimate(requests["Estimate"]) for _ in range(6)]
                await asyncio.sleep(chance.random() * 6e-3)  # any of the moments that a call has
                for call in calls:
                    call.cancel()
                ends = [call.code() for call in calls]
                await within(asyncio.gather(*ends))
        await until(lambda: not len(server.ledger.admission))
        server.ledger.admission.check()
        assert workers() == before


async def test_what_front_ends_have_counted_can_be_read_until_the_engine_has_ended() -> None:
    """A scrape at the end, while an engine took its time, found that no call had ever been."""
    async with supervised() as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub: Any = Stubs(channel).inference
            await within(stub.Generate(pb.GenerateRequest(input=pb.Input(text="Once"))))
        await within(server.drain())
        await within(server.front_ends.stop())
        counted = server.engine.registry.get_sample_value
        assert counted("niyama_rpcs_total", {"rpc": "Generate", "outcome": "OK"}) == 1
        await within(server.stop())
        assert counted("niyama_rpcs_total", {"rpc": "Generate", "outcome": "OK"}) is None


async def test_everything_is_killed_from_a_thread_though_no_event_loop_runs_there() -> None:
    """At a second signal the first front end alone was, and an engine that hung lived on."""
    async with supervised() as server:
        processes = [psutil.Process(pid) for pid in (server.engine.keeper.pid, *workers())]
        await asyncio.to_thread(server.kill)
        await until(lambda: not any(process.is_running() for process in processes))


async def test_the_end_does_not_wait_for_a_front_end_that_does_not_listen_yet() -> None:
    async with supervised() as server:
        others = kill_one()
        await until(lambda: len(workers() - others) == 1)
        await within(server.drain())
        assert not workers()


async def test_a_machine_that_starts_no_process_is_told_of_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    server = Server(config())
    with pytest.raises(StartError, match="a front-end process cannot be started"):
        await within(server.start())
    await within(server.stop())


def test_a_machine_without_a_temporary_folder_is_told_of_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(StartError, match="temporary folder for metrics: No such file"):
        Server(config())


async def test_a_front_end_goes_on_with_the_counters_of_the_one_before() -> None:
    """Their sums never fall, and the files of those that died do not pile up."""
    async with supervised():
        folder = psutil.Process(workers().pop()).environ()["PROMETHEUS_MULTIPROC_DIR"]
        files = set(os.listdir(folder))
        assert "counter_0.db" in files
        with capture_logs() as lines:
            others = kill_one()
            await until(lambda: has_lost(lines) and len(workers() - others) == 1)
        await until(lambda: set(os.listdir(folder)) == files)
