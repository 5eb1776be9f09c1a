"""gRPC's own retries, by the policy that the page on errors has, do as the server says."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from engine.deciding.request import Importance
from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from server.errors import Refusal, Refused
from tests.node.test_node_stream import node_modules
from tests.server.conftest import Running, within
from tests.server.error_table import PAGE
from tests.server.provoking import due, filled
from tests.server.test_service import details, failure

pytestmark = pytest.mark.asyncio(loop_scope="session")
assert node_modules  # a fixture
EVERYBODY = ("", Importance.NORMAL)
ROOT = PAGE.parents[1]
POLICY = (ROOT / "client" / "niyama" / "client" / "service_config.json").read_text()


def retrying(running: Running) -> grpc.aio.Channel:
    """A channel of the same server with that policy."""
    options = (("grpc.service_config", POLICY),)
    return grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}", options=options)


def asked(**fields: Any) -> pb.GenerateRequest:
    sampling = pb.Sampling(max_tokens=1, ignore_eos=True)
    return pb.GenerateRequest(input=pb.Input(text="Once"), sampling=sampling, **fields)


async def num_ended(running: Running, outcome: str) -> float:
    """How many calls have ended so: a client hears its status a moment before it is counted."""
    await within(running.service.calls.idle.wait())
    labels = {"rpc": "Generate", "outcome": outcome}
    return running.metrics.registry.get_sample_value("niyama_rpcs_total", labels) or 0.0


@pytest.fixture
def tries(running: Running, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When calls asked to be let in: the first is refused, and told to come back after 1.5 s."""
    admission, tries = running.server.ledger.admission, list[float]()
    admit = admission.admit

    def refuse_once(*arguments: Any) -> Any:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise Refused(Refusal.QUEUE_FULL, "full", 1.5)
        return admit(*arguments)

    monkeypatch.setattr(admission, "admit", refuse_once)
    return tries


async def test_a_call_that_is_refused_comes_back_when_told(
    running: Running, tries: list[float]
) -> None:
    """And not by the policy's own backoff, which is half a second at first."""
    async with retrying(running) as channel:
        answer = await within(inference_pb2_grpc.InferenceStub(channel).Generate(asked()))
    assert len(answer.completions) == 1
    first, second = tries
    assert second - first > 1.4


async def complete_by_node(running: Running, packages: Path, timeout_ms: int) -> Any:
    """What Node's client hears by the same policy."""
    address, root = f"127.0.0.1:{running.server.port}", ROOT
    request = {"input": {"text": "Once"}, "sampling": {"max_tokens": 1, "ignore_eos": True}}
    ran = await asyncio.create_subprocess_exec(
        *("node", root / "tests" / "node" / "complete.js", address, root, json.dumps(request)),
        *(POLICY, str(timeout_ms)),
        env={**os.environ, "NODE_PATH": str(packages)},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await within(ran.communicate())
    return json.loads(told)


async def test_so_does_node_s_client(
    running: Running, tries: list[float], node_modules: Path
) -> None:
    heard = await complete_by_node(running, node_modules, 60_000)
    assert heard == {"status": "OK", "completions": 1}
    first, second = tries
    assert second - first > 1.4


async def test_nor_does_node_s_client_wait_in_vain(running: Running, node_modules: Path) -> None:
    with filled(running, requests=running.server.ledger.admission.requests.limit):
        # Its deadline is far enough for a busy machine, and nearer than when it may come back.
        running.server.ledger.admission._returns._next_at[EVERYBODY] = time.monotonic() + 50
        heard = await complete_by_node(running, node_modules, 30_000)
    assert heard == {"status": "RESOURCE_EXHAUSTED", "pushback": ["-1"]}


async def test_who_has_no_time_to_come_back_is_told_why_at_once(running: Running) -> None:
    """Told to wait for longer than the call may take, gRPC waited, and said DEADLINE_EXCEEDED."""
    before = await num_ended(running, "RESOURCE_EXHAUSTED")
    with filled(running, requests=running.server.ledger.admission.requests.limit):
        async with retrying(running) as channel:
            stub: Any = inference_pb2_grpc.InferenceStub(channel)
            for _ in range(20):  # later ones are told to come back later than the deadline
                error = await failure(stub.Generate(asked(), timeout=0.9))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await num_ended(running, "RESOURCE_EXHAUSTED") == before + 20, "none was tried again"


async def test_who_would_rather_be_refused_than_late_is_not_tried_again(running: Running) -> None:
    before = await num_ended(running, "RESOURCE_EXHAUSTED")
    async with retrying(running) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        error = await failure(stub.Generate(asked(qos=due(1e-6, refuse_if_late=True))))
    assert details(error)[-1].reason == "WOULD_BE_LATE"
    assert await num_ended(running, "RESOURCE_EXHAUSTED") == before + 1


async def test_a_bad_request_is_not_tried_again(running: Running) -> None:
    before = await num_ended(running, "INVALID_ARGUMENT")
    async with retrying(running) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        await failure(stub.Generate(pb.GenerateRequest()))
    assert await num_ended(running, "INVALID_ARGUMENT") == before + 1


async def test_the_policy_is_one_that_grpc_takes() -> None:
    """It ignores one with a mistake, without a word: so this says what it must be."""

    (method,) = json.loads(POLICY)["methodConfig"]
    policy = method["retryPolicy"]
    assert method["name"] == [{"service": "niyama.v1.Inference"}]
    assert 2 <= policy["maxAttempts"] <= 5, "gRPC makes no more"
    assert all(policy[name].endswith("s") for name in ("initialBackoff", "maxBackoff"))
    assert all(hasattr(grpc.StatusCode, name) for name in policy["retryableStatusCodes"])
