"""A tenant that may not have gold does not get it, whichever way it asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from tests.server.conftest import within
from tests.server.identity.authority import Authority
from tests.server.identity.conftest import Walled, walled
from tests.server.identity.test_walk import ONE, PROMPT
from tests.server.test_service import failure

pytestmark = pytest.mark.asyncio(loop_scope="session")

SOON = Duration(nanos=100_000_000)
INTERACTIVE = pb.InteractiveTargets(ttft=SOON, tbt=SOON)
OBJECTIVE, TTFT = "x-llm-d-inference-objective", "x-llm-d-slo-ttft-ms"
GATEWAY = (("niyama-tenant", "free"),)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> AsyncIterator[Walled]:
    """Believes gateways. Its default tier is gold, and calls' deadlines are targets."""
    folder: Path = tmp_path_factory.mktemp("gold")
    async with walled(folder, authority, gateway_metadata=True) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stub(server: Walled) -> AsyncIterator[Any]:
    async with server.channel() as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


def asked(qos: pb.QualityOfService) -> pb.GenerateRequest:
    return pb.GenerateRequest(input=PROMPT, sampling=ONE, qos=qos)


@pytest.mark.parametrize(
    ("qos", "field", "reason"),
    [
        ({"tier": "gold"}, "qos.tier", "TIER_NOT_ALLOWED"),
        ({"tier": "no-such-tier"}, "qos.tier", "TIER_NOT_ALLOWED"),  # nor whether there is one
        ({"interactive": INTERACTIVE}, "qos.targets", "TARGETS_NOT_ALLOWED"),
        ({"deadline": pb.DeadlineTargets(ttlt=SOON)}, "qos.targets", "TARGETS_NOT_ALLOWED"),
        ({"importance": pb.IMPORTANCE_HIGH}, "qos.importance", "IMPORTANCE_NOT_ALLOWED"),
        (
            {"tier": "bronze", "importance": pb.IMPORTANCE_HIGH},
            "qos.importance",
            "IMPORTANCE_NOT_ALLOWED",
        ),
    ],
)
@pytest.mark.parametrize("who", ["free", "edge"])
async def test_what_it_states_is_denied_with_the_field(
    server: Walled, stub: Any, who: str, qos: dict[str, Any], field: str, reason: str
) -> None:
    """Also through a gateway that may have all of it: what counts is on whose behalf it asks."""
    wanted = pb.QualityOfService(**qos)
    metadata = (*server.shows(who), *(GATEWAY if who == "edge" else ()))
    for call in (
        stub.Generate(asked(wanted), metadata=metadata),
        stub.Estimate(pb.EstimateRequest(prompt_tokens=3, qos=wanted), metadata=metadata),
    ):
        detail = error_details_pb2.ErrorInfo()
        error = await failure(call, detail)
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert (detail.reason, detail.metadata["field"]) == (reason, field)
        assert (error.details() or "").startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("qos", "more", "timeout_s", "tier"),
    [
        ({}, (), None, "bronze"),  # its own default: the server's is gold
        ({}, (), 0.9, "bronze"),  # a deadline, though deadlines are targets
        ({"application": "golden"}, (), None, "bronze"),
        ({"application": "own"}, (), None, "bronze"),
        ({"application": "hurried"}, (), None, "silver"),
        ({"application": "hurried"}, (), 0.9, "silver"),
        ({"tier": "silver"}, (), 0.9, "silver"),
        ({}, ((OBJECTIVE, "gold"),), None, "bronze"),
        ({}, ((OBJECTIVE, "own"),), None, "bronze"),
        ({}, ((OBJECTIVE, "silver"),), None, "silver"),
        ({}, ((TTFT, "100"),), None, "bronze"),
        ({}, (("x-smg-priority", "system"),), None, "bronze"),
        ({}, (("tracestate", "niyama=tier:gold;importance:high"),), None, "bronze"),
        ({"best_effort": pb.BestEffortTargets()}, (), None, ""),
    ],
)
async def test_what_others_state_for_it_is_served_within_what_it_may_have(
    server: Walled, stub: Any, qos: dict[str, Any], more: Any, timeout_s: float | None, tier: str
) -> None:
    request = asked(pb.QualityOfService(**qos))
    call = stub.Generate(request, metadata=(*server.shows("free"), *more), timeout=timeout_s)
    targets = (await within(call)).targets
    assert targets.tier == tier
    assert targets.ttlt.seconds == {"bronze": 60, "silver": 10, "": 0}[tier]
    assert targets.importance in (pb.IMPORTANCE_LOW, pb.IMPORTANCE_NORMAL)


async def test_who_may_have_it_gets_it(server: Walled, stub: Any) -> None:
    """And what a gateway's flow names as its tenant is believed of a gateway alone."""
    high = pb.QualityOfService(tier="gold", importance=pb.IMPORTANCE_HIGH)
    for who in ("acme", "unnamed", "edge", "operator"):
        targets = (await within(stub.Generate(asked(high), metadata=server.shows(who)))).targets
        assert (targets.tier, targets.importance) == ("gold", pb.IMPORTANCE_HIGH)
    flow = (("x-llm-d-inference-fairness-id", "acme"),)
    for who, tier in (("free", "bronze"), ("edge", "gold")):
        request = asked(pb.QualityOfService())
        response = await within(stub.Generate(request, metadata=(*server.shows(who), *flow)))
        assert response.targets.tier == tier


async def test_a_tenant_is_told_of_the_tiers_that_it_may_have(server: Walled, stub: Any) -> None:
    found = {}
    for who in ("free", "acme"):
        info = await within(
            stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=server.shows(who))
        )
        found[who] = (info.default_tier, [tier.name for tier in info.tiers])
    assert found == {
        "free": ("bronze", ["silver", "bronze"]),
        "acme": ("gold", ["gold", "silver", "bronze"]),
    }
