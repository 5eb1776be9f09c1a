"""Every RPC as everybody: who may what, and what a stranger learns of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from niyama.v1 import inference_pb2 as pb
from niyama.v1 import inference_pb2_grpc
from tests.server.conftest import front_end_of, within
from tests.server.identity.authority import DAY, Authority
from tests.server.identity.conftest import Walled
from tests.server.test_service import failure

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = pb.Input(token_ids=pb.TokenIds(ids=[7, 8, 9]))
ONE = pb.Sampling(max_tokens=1)
RPCS = (
    *("Generate", "GenerateStream", "Estimate", "Explain", "CountTokens", "GetServerInfo"),
    "GetLoad",  # for who speaks for others
)
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
STANDARD = ("Check", "List", "Watch", "Reflect")
OK, UNKNOWN, DENIED, NOT_FOUND = "OK", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND"
STRANGERS = ("nobody", "wrong", "cut", "weak", "late", "basic", "twice")
SPEAK = ("edge", "ops", "operator")
KNOWN = ("acme", "zen", "free", "edge", "ops", "unnamed", "operator")


def request_of(rpc: str) -> Any:
    """What is asked by it; of `Explain`, about a request of acme's."""
    if rpc == "Generate":
        return pb.GenerateRequest(input=PROMPT, sampling=ONE)
    if rpc == "GenerateStream":
        return pb.GenerateStreamRequest(input=PROMPT, sampling=ONE)
    if rpc == "Estimate":
        return pb.EstimateRequest(prompt_tokens=3)
    if rpc == "Explain":
        return pb.ExplainRequest(request_id="of-acme")
    if rpc == "CountTokens":
        return pb.CountTokensRequest(input=PROMPT)
    return pb.GetLoadRequest() if rpc == "GetLoad" else pb.GetServerInfoRequest()


@contextlib.asynccontextmanager
async def logged(walled: Walled) -> AsyncIterator[list[Any]]:
    """Gathers the log's lines of calls that are made in the block: all of them, and no others."""
    calls = front_end_of(walled.server).serving.calls
    await within(calls.idle.wait())
    found: list[Any] = []
    with structlog.testing.capture_logs() as lines:
        yield found
        await within(calls.idle.wait())
    found += [line for line in lines if line["event"] == "call"]


async def ask(channel: grpc.aio.Channel, rpc: str, metadata: Any, request: Any = None) -> str:
    """The code with which a call ends."""
    try:
        await answer(channel, rpc, metadata, request)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return OK


def reflect_once(channel: grpc.aio.Channel) -> Any:
    """The stream of questions as a call of one, which goes out whole: where the server ends a call
    that grpc.aio still writes to, its client may say INTERNAL instead of what the server said.
    """
    return channel.unary_stream(
        REFLECT,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )


async def answer(channel: grpc.aio.Channel, rpc: str, metadata: Any, request: Any = None) -> Any:
    if rpc in RPCS:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        call = getattr(stub, rpc)(request or request_of(rpc), metadata=metadata)
        if rpc == "GenerateStream":
            return [event async for event in call]
        return await within(call)
    if rpc == "Reflect":
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        return await within(reflect_once(channel)(asked, metadata=metadata).read())
    health: Any = health_pb2_grpc.HealthStub(channel)
    if rpc == "Watch":
        call = health.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
        return await within(call.read())
    kind = health_pb2.HealthCheckRequest if rpc == "Check" else health_pb2.HealthListRequest
    return await within(getattr(health, rpc)(kind(), metadata=metadata))


def strange(asking: Walled, who: str) -> Any:
    """What somebody shows whom nobody knows."""
    good = asking.tokens["acme"]
    token = {"wrong": good[:-1] + "~", "cut": good[:30], "weak": "a" * 64, "basic": good}
    if who == "late":
        return asking.shows("late")
    if who == "nobody":
        return ()
    if who == "twice":
        return asking.shows("acme") * 2
    return (("authorization", f"{'Basic' if who == 'basic' else 'Bearer'} {token[who]}"),)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def channel(asking: Walled) -> AsyncIterator[grpc.aio.Channel]:
    async with asking.channel() as channel:
        request = pb.GenerateRequest(input=PROMPT, sampling=ONE, request_id="of-acme")
        await answer(channel, "Generate", asking.shows("acme"), request)
        yield channel


@pytest.mark.parametrize("who", STRANGERS)
async def test_a_stranger_is_answered_by_health_alone(
    asking: Walled, channel: grpc.aio.Channel, who: str
) -> None:
    """In the same words, whatever is wrong, and whatever it is asked about."""
    shows, told = strange(asking, who), set()
    for rpc in (*RPCS, "Reflect"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer(channel, rpc, (*shows, ("niyama-tenant", "acme")))
        assert caught.value.code().name == UNKNOWN, rpc
        told.add((caught.value.details(), str(caught.value.trailing_metadata())))
    for request_id in ("of-acme", "never-sent"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer(channel, "Explain", shows, pb.ExplainRequest(request_id=request_id))
        told.add((caught.value.details(), str(caught.value.trailing_metadata())))
    assert len(told) == 1
    assert "who calls is not known" in str(told)
    for rpc in ("Check", "List", "Watch"):
        assert await ask(channel, rpc, shows) == OK


@pytest.mark.parametrize("who", KNOWN)
async def test_who_is_known_may_ask_for_what_is_its_own(
    asking: Walled, channel: grpc.aio.Channel, who: str
) -> None:
    """And is told of no other tenant's request, but for the operator."""
    may_explain = {"acme", "ops", "operator"}
    for rpc in (*RPCS, *STANDARD):
        expected = OK if rpc != "Explain" or who in may_explain else NOT_FOUND
        if rpc == "GetLoad" and who not in SPEAK:
            expected = DENIED
        assert await ask(channel, rpc, asking.shows(who)) == expected, rpc


@pytest.mark.parametrize("who", ["nobody", "wrong", *KNOWN])
async def test_only_who_speaks_for_others_is_told_the_load_and_what_is_cached(
    asking: Walled, channel: grpc.aio.Channel, who: str
) -> None:
    """The latter has the tokens of prompts: as the gateway SMG asks for them."""
    package = pytest.importorskip("smg_grpc_proto")
    common = pytest.importorskip("smg_grpc_proto.generated.common_pb2")
    stub = package.vllm_engine_pb2_grpc.VllmEngineStub(channel)
    shows = asking.shows(who) if who in KNOWN else strange(asking, who)
    loads = package.vllm_engine_pb2.GetLoadsRequest()
    cached = common.SubscribeKvEventsRequest()
    expected = OK if who in SPEAK else DENIED if who in KNOWN else UNKNOWN
    stream = stub.SubscribeKvEvents(cached, metadata=shows)
    for call in (stub.GetLoads(loads, metadata=shows), stream.read()):
        try:
            await within(call)
            code = OK
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        assert code == expected
    stream.cancel()


@pytest.mark.parametrize("who", KNOWN)
async def test_only_who_speaks_for_others_may_name_another_tenant(
    asking: Walled, channel: grpc.aio.Channel, who: str
) -> None:
    speaks = who in SPEAK
    for rpc in RPCS:
        for named in ("acme", "nobody-ever-heard-of", ""):
            metadata = (*asking.shows(who), ("niyama-tenant", named))
            expected = OK if speaks or (named == who and rpc != "GetLoad") else DENIED
            if rpc == "Explain" and speaks and named != "acme":
                expected = NOT_FOUND
            assert await ask(channel, rpc, metadata) == expected, (rpc, named)


async def test_the_tenant_is_the_caller_s_and_the_log_says_who_spoke_for_it(
    asking: Walled, channel: grpc.aio.Channel
) -> None:
    async with logged(asking) as calls:
        await answer(channel, "Generate", asking.shows("acme"))
        await answer(channel, "Generate", (*asking.shows("edge"), ("niyama-tenant", "zen")))
        await answer(channel, "Generate", (*asking.shows("operator"), ("niyama-tenant", "zen")))
        assert await ask(channel, "Generate", strange(asking, "wrong")) == UNKNOWN
    assert [line["tenant"] for line in calls] == ["acme", "zen", "zen", ""]
    assert [line.get("caller") for line in calls] == [None, "edge", "operator", None]
    assert "result" not in calls[3]  # it is no arrival
    for token in (*asking.tokens.values(), strange(asking, "wrong")[0][1]):
        assert token not in str(calls)


async def test_a_reason_tells_programs_what_is_not_allowed(
    asking: Walled, channel: grpc.aio.Channel
) -> None:
    stub: Any = inference_pb2_grpc.InferenceStub(channel)
    detail = error_details_pb2.ErrorInfo()
    await failure(stub.Generate(request_of("Generate")), detail)
    assert (detail.reason, detail.domain) == ("UNAUTHENTICATED", "niyama.v1")
    metadata = (*asking.shows("zen"), ("niyama-tenant", "acme"))
    await failure(stub.Generate(request_of("Generate"), metadata=metadata), detail)
    assert detail.reason == "TENANT_NOT_ALLOWED"
    await failure(stub.GetLoad(pb.GetLoadRequest(), metadata=asking.shows("zen")), detail)
    assert detail.reason == "NOT_FOR_TENANTS"


# By the certificates of clients


@pytest.mark.parametrize(
    ("name", "uri", "tenant"),
    [
        ("anything", "spiffe://example.org/acme/chat", "acme"),
        ("zen", "", "zen"),
        ("zen", "spiffe://example.org/acme/chat", "acme"),  # the URI is asked first
        ("acme", "spiffe://example.com/acme/chat", None),
        ("spiffe://example.org/acme/chat", "", None),
        ("nobody", "CN=zen", None),  # a URI that looks like another kind of name
    ],
)
async def test_a_certificate_names_its_tenant(
    mutual: Walled, authority: Authority, name: str, uri: str, tenant: str | None
) -> None:
    async with mutual.channel(authority.issue(name, uri)) as channel:
        async with logged(mutual) as calls:
            expected = UNKNOWN if tenant is None else OK
            for rpc in ("Generate", "GetServerInfo", "Reflect"):
                assert await ask(channel, rpc, ()) == expected
            assert await ask(channel, "Check", ()) == OK
        assert [line["tenant"] for line in calls] == [tenant or ""] * 2
        if tenant:
            for other in ({"acme", "zen"} - {tenant}).pop(), "":
                assert await ask(channel, "Generate", (("niyama-tenant", other),)) == DENIED


async def test_a_token_says_more_than_a_certificate(mutual: Walled, authority: Authority) -> None:
    async with mutual.channel(authority.issue("zen")) as channel:
        async with logged(mutual) as calls:
            assert await ask(channel, "Explain", mutual.shows("operator")) == NOT_FOUND
            assert await ask(channel, "Generate", mutual.shows("acme")) == OK
        told = [(line["rpc"], line["tenant"]) for line in calls]
        assert told == [("Explain", ""), ("Generate", "acme")]
        assert await ask(channel, "Generate", strange(mutual, "wrong")) == UNKNOWN


@pytest.mark.parametrize("who", ["none", "expired", "early", "another's"])
async def test_a_client_without_a_good_certificate_is_told_nothing(
    mutual: Walled, authority: Authority, who: str
) -> None:
    """No handshake is made, whatever it would have shown or asked, health included."""
    shown = {
        "none": None,
        "expired": authority.issue("zen", ends=-DAY / 2),
        "early": authority.issue("zen", begins=DAY / 2),
        "another's": Authority().issue("zen"),
    }[who]
    async with mutual.channel(shown) as channel:
        for rpc in (*RPCS, *STANDARD):
            assert await ask(channel, rpc, mutual.shows("operator")) == "UNAVAILABLE"


async def test_plaintext_to_a_port_of_tls_is_told_nothing(asking: Walled) -> None:
    async with grpc.aio.insecure_channel(asking.address) as channel:
        for rpc in (*RPCS, *STANDARD):
            assert await ask(channel, rpc, asking.shows("operator")) == "UNAVAILABLE"
