"""What a gateway says of a call where it can set nothing but its id and its trace."""

from __future__ import annotations

import pytest

from niyama.v1 import inference_pb2 as pb
from tests.server.conftest import Running, within
from tests.server.smg.asking import ask, request_of
from tests.server.test_gateway import UUID

pytestmark = pytest.mark.asyncio(loop_scope="session")
TRACE = ("tracestate", "vendor=1,niyama=standard;importance=low")


async def targets(
    running: Running, request_id: str, *metadata: tuple[str, str]
) -> pb.ResolvedTargets:
    """Those with which a call of that id was served, by which it is known."""
    await ask(running, request_of(request_id, max_tokens=1), metadata=metadata)
    request = pb.ExplainRequest(request_id=request_id[:128])
    return (await within(running.stub.Explain(request))).targets


async def test_the_beginning_of_an_id_says_how_a_call_is_served(running: Running) -> None:
    """Though the operator believes no metadata."""
    told = await targets(running, f"batch;importance=low-{UUID}")
    assert (told.tier, told.importance) == ("batch", pb.IMPORTANCE_LOW)
    assert (told.source, told.reason) == (pb.TARGET_SOURCE_GATEWAY, "request id")
    numbers = await targets(running, f"ttft=2000;tbt=500-p1-{UUID}")
    assert (numbers.ttft.ToMilliseconds(), numbers.tbt.ToMilliseconds()) == (2000, 500)


async def test_a_trace_says_it_first_and_other_metadata_nothing(running: Running) -> None:
    other = ("x-llm-d-inference-objective", "interactive")
    traced = await targets(running, f"batch-p7-{UUID}", TRACE, other)
    assert (traced.tier, traced.reason) == ("standard", "tracestate")
    plain = await targets(running, f"cmpl-7-{UUID}", other)
    assert (plain.tier, plain.source) == ("interactive", pb.TARGET_SOURCE_DEFAULT)


async def test_nothing_in_an_id_ends_a_call(running: Running) -> None:
    """An id is as long as its caller likes, and what is in it of no use is told."""
    sample = running.metrics.registry.get_sample_value
    labels = {"key": "request id", "reason": "malformed"}
    before = sample("niyama_gateway_metadata_ignored_total", labels) or 0
    odd = await targets(running, f"batch;ttft=soon-{UUID}")
    assert odd.tier == "batch"
    assert sample("niyama_gateway_metadata_ignored_total", labels) == before + 1
    told = await targets(running, "batch;" + "x" * 5000)
    assert (told.tier, told.reason) == ("batch", "request id")
