"""The tenant of a call: on a real server, each has a prefix cache and a memory of its own."""

from __future__ import annotations

import grpc
import pytest

from niyama.client import AsyncClient, InvalidRequest, NotFound
from niyama.v1 import inference_pb2 as pb
from tests.server.conftest import Running, within
from tests.server.test_service import failure

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = list(range(300, 364))  # four pages


async def cached_tokens(client: AsyncClient) -> int:
    """Of the prompt, when it is sent once more."""
    result = await within(client.complete(PROMPT, max_tokens=1))
    return result.finished.usage.cached_tokens


def client_of(running: Running, tenant: str = "") -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{running.server.port}", tenant=tenant)


async def test_no_tenant_reads_the_prefix_that_another_computed(running: Running) -> None:
    """The nameless tenant is one like any other."""
    async with client_of(running, "a") as a, client_of(running, "b") as b:
        assert await cached_tokens(a) == 0
        assert await cached_tokens(a) == 48  # all pages but the last, which yields the first token
        assert await cached_tokens(b) == 0
        async with client_of(running) as nameless:
            assert await cached_tokens(nameless) == 0
        assert await cached_tokens(b) == 48


async def test_one_client_may_speak_for_many_tenants(running: Running) -> None:
    async with client_of(running, "gateway") as client:
        for tenant in ("c", "d"):
            result = await within(client.complete(PROMPT, max_tokens=1, tenant=tenant))
            assert result.finished.usage.cached_tokens == 0
        result = await within(client.complete(PROMPT, max_tokens=1, tenant="c"))
        assert result.finished.usage.cached_tokens == 48


async def test_a_tenant_is_told_only_of_its_own_requests(running: Running) -> None:
    """To the others it is as if the request had never been, also where it had completions."""
    async with client_of(running, "mine") as mine, client_of(running, "other") as other:
        for request_id, n in (("story-1", 1), ("story-2", 2)):
            await within(mine.complete("Once", max_tokens=1, request_id=request_id, n=n))
            assert (await within(mine.explain(request_id))).decisions
            with pytest.raises(NotFound) as hidden:
                await within(other.explain(request_id))
            with pytest.raises(NotFound) as unknown:
                await within(other.explain("never-sent"))
            assert str(hidden.value).replace(request_id, "never-sent") == str(unknown.value)


async def test_a_bad_tenant_is_an_invalid_argument(running: Running) -> None:
    request = pb.GenerateRequest(input=pb.Input(text="Once"))
    long = (("niyama-tenant", "x" * 129),)
    error = await failure(running.stub.Generate(request, metadata=long))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "niyama-tenant: must be at most 128 bytes" in (error.details() or "")
    error = await failure(running.stub.Explain(pb.ExplainRequest(request_id="x"), metadata=long))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InvalidRequest) as caught:  # by the client itself
        client_of(running, "x" * 129)
    assert caught.value.field == "niyama-tenant"


@pytest.mark.parametrize("tenant", ["naïve", "two\nlines"])
async def test_a_tenant_that_no_header_can_carry_makes_no_client(tenant: str) -> None:
    with pytest.raises(InvalidRequest, match="printable ASCII"):
        AsyncClient(tenant=tenant)
