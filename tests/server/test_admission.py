"""The queue's places between tenants: the rule by itself, then on a real server."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from proto.niyama.v1 import inference_pb2 as pb
from server.admission import REMEMBERED_S, Admission
from server.errors import CallError
from tests.server.conftest import MAX_REQUESTS, Running, within
from tests.server.test_service import failure


def admits(admission: Admission, tenant: str, now: float = 0.0, n: int = 1, **queue: int) -> bool:
    try:
        admission.check(tenant, n, queue, now)
    except CallError:
        return False
    return True


def test_a_lone_tenant_may_use_the_whole_queue() -> None:
    assert admits(Admission(10), "flood", flood=9)
    assert not admits(Admission(10), "flood", flood=10)


def test_up_to_half_of_the_queue_nobody_is_held_to_a_share() -> None:
    assert admits(Admission(10), "flood", flood=3, a=1)
    assert not admits(Admission(10), "flood", n=4, flood=3, a=1)
    assert admits(Admission(14), "flood", flood=3, a=1, b=1, c=1)  # the 4th, of a share of 3


def test_beyond_half_each_active_tenant_has_an_equal_share() -> None:
    assert not admits(Admission(12), "flood", flood=6, a=1)
    assert admits(Admission(12), "a", flood=6, a=5)
    assert not admits(Admission(12), "a", flood=5, a=6)
    assert admits(Admission(12), "b", flood=9)  # the caller counts as active


def test_more_tenants_than_places_have_one_each() -> None:
    assert admits(Admission(2), "c", a=1)
    queue = {str(i): 1 for i in range(3)}
    assert admits(Admission(4), "new", **queue)
    assert not admits(Admission(4), "0", **queue, other=0, n=2)


def test_who_found_the_queue_full_has_a_share_at_the_next_try() -> None:
    admission = Admission(10)
    assert not admits(admission, "a", flood=10)
    assert not admits(admission, "flood", now=1.0, flood=9)  # the place is kept for "a"
    assert admits(admission, "a", now=1.0, flood=9)
    assert admits(admission, "flood", now=1.0, flood=9)  # "a" came, and went again
    assert not admits(admission, "a", now=1.0, flood=10)
    assert admits(admission, "flood", now=1.1 + REMEMBERED_S, flood=9)  # "a" did not come back


@pytest.mark.asyncio(loop_scope="session")
async def test_a_flooding_tenant_leaves_the_others_their_share(running: Running) -> None:
    def call(tenant: str, n: int = 1) -> grpc.aio.UnaryStreamCall:
        sampling = pb.Sampling(seed=1, max_tokens=4000, ignore_eos=True, n=n)
        request = pb.GenerateStreamRequest(input=pb.Input(text="Once"), sampling=sampling)
        return running.stub.GenerateStream(request, metadata=(("niyama-tenant", tenant),))

    calls = [call("flooder", MAX_REQUESTS - 2)]
    assert (await within(calls[0].read())).HasField("accepted")
    calls.append(call("other"))
    assert (await within(calls[1].read())).HasField("accepted")
    detail = error_details_pb2.RetryInfo()
    error = await failure(call("flooder").read(), detail)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail.retry_delay.ToSeconds() == 1
    calls.append(call("other"))
    assert (await within(calls[2].read())).HasField("accepted")
    for each in calls:
        each.cancel()
    await within(running.server.service.idle.wait())
