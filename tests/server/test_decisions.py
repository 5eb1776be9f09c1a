"""What the scheduler decided and predicted, as a live server shows it."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from engine.config import EngineConfig
from engine.deciding.outcome import Fate
from engine.decision_log import DecisionLogReader
from niyama.v1 import inference_pb2 as pb
from server.app import Server
from server.config import ServerConfig
from server.unserved import MOST_PER_S
from tests.server.conftest import BATCH, Running, within

pytestmark = pytest.mark.asyncio(loop_scope="session")


def asked(request_id: str, max_tokens: int = 4, tier: str = "", prompt_len: int = 5) -> object:
    return pb.GenerateRequest(
        input=pb.Input(token_ids=pb.TokenIds(ids=[7 + i % 90 for i in range(prompt_len)])),
        sampling=pb.Sampling(max_tokens=max_tokens, ignore_eos=True),
        qos=pb.QualityOfService(tier=tier),
        request_id=request_id,
    )


async def serve_one(engine: EngineConfig) -> list[object]:
    """Starts a server, serves a request, drains; returns what was logged."""
    with capture_logs() as logs:
        server = Server(ServerConfig(port=0, engine=engine))
        await within(server.start())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            running = Running(server, channel)
            response = await within(running.stub.Generate(asked("noted")))
            assert response.completions[0].finished.usage.output_tokens == 4
            await running.stats()  # answered after the last decision was written
        await within(server.stop())
    return [line.get("notice") for line in logs]


async def test_the_decision_log_has_every_decision_a_line(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    await serve_one(EngineConfig(factory="engine.driving.null:build", decision_log=path))
    header, *entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["kind"] == "engine"
    assert {entry["request_id"] for entry in entries} == {"noted"}
    kinds = [entry["kind"] for entry in entries]
    assert kinds == ["arrived", "admitted", "chunk", "first_token", "finished"]
    assert entries[1]["predicted_at"] >= entries[1]["at"]
    assert "7, 8, 9" not in path.read_text(), "a prompt is in no log"


async def test_the_decision_log_says_what_is_refused_before_the_engine_sees_it(
    tmp_path: Path,
) -> None:
    """One at a time is let in. The first ten refusals or so are told one by one, a flood as sums;
    and Explain knows of them.
    """
    path = tmp_path / "decisions.jsonl"
    config = "[tiers.chat]\nttft_s = 0.5\ntbt_s = 0.5\n[tenants.acme]\nweight = 2\n"
    (tmp_path / "config.toml").write_text('default_tier = "chat"\n' + config)
    engine = EngineConfig(factory="engine.driving.null:build", decision_log=path)
    told = ServerConfig(
        port=0, engine=engine, max_requests=1, config=tmp_path / "config.toml", frontends=1
    )
    server = Server(told)
    await within(server.start())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        running = Running(server, channel)
        calls = [
            asyncio.ensure_future(running.stub.Generate(asked(f"one-of-{i}", max_tokens=400)))
            for i in range(2 * MOST_PER_S)
        ]
        ends = await within(asyncio.gather(*calls, return_exceptions=True))
        refused_names = {f"one-of-{i}" for i, end in enumerate(ends) if isinstance(end, Exception)}
        asked_for = [pb.ExplainRequest(request_id=name) for name in sorted(refused_names)]
        explained = await within(
            asyncio.gather(*map(running.stub.Explain, asked_for), return_exceptions=True)
        )
        known = [each for each in explained if not isinstance(each, BaseException)]
        assert all("the queue is full" in each.summary for each in known)
    await within(server.stop())
    reader = DecisionLogReader([path])
    requests = list(reader.requests())
    assert reader.header is not None
    assert reader.header.service.weights == {"acme": 2.0}
    assert reader.header.service.max_requests == 1
    assert [tier.name for tier in reader.header.service.tiers] == ["chat"]
    assert sum(each.count for each in requests) == 2 * MOST_PER_S
    refused = [each for each in requests if each.fate is Fate.REFUSED]
    assert sum(each.count for each in refused) == len(refused_names) > MOST_PER_S
    told = [each.request_id for each in refused if each.request_id]
    assert len(known) >= MOST_PER_S
    assert {each.request_id for each in known} <= set(told)
    assert refused_names.issuperset(told)
    assert {(each.tier, each.reason) for each in refused} == {("chat", "queue_full")}
    assert {each.max_tokens for each in requests} == {400}
    assert {each.fate for each in requests} - {Fate.REFUSED} == {Fate.ON_TIME}


async def test_a_full_disk_costs_the_decision_log_and_nothing_else() -> None:
    """/dev/full refuses every write."""
    engine = EngineConfig(factory="engine.driving.null:build", decision_log=Path("/dev/full"))
    notices = await serve_one(engine)
    assert [n for n in notices if n] == [
        "decision log /dev/full loses entries: No space left on device"
    ]


async def test_every_iteration_of_a_mixed_load_is_judged_against_its_prediction(
    running: Running,
) -> None:
    before = (await running.stats()).totals.num_iterations
    tiers = ("interactive", "standard", "batch")
    number = 0
    while (await running.stats()).totals.num_iterations < before + 300:
        calls = [
            running.stub.Generate(asked(f"mixed-{number}-{i}", 40, tiers[i % 3], 20 + 90 * i))
            for i in range(2 * BATCH)
        ]
        await within(asyncio.gather(*calls))
        number += 1
    errors = (await running.stats()).latency_errors
    assert errors.count >= 300
    assert all(math.isfinite(v) and v >= 0 for v in errors.to_dict().values())
    assert errors.ratio_p50 <= errors.ratio_p95
    assert errors.error_p50 <= errors.error_p95
