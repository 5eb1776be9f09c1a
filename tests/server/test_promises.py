"""What calls were promised at admission, and what came of it, as the metrics count it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.request import Targets
from proto.niyama.v1 import inference_pb2 as pb
from server.promises import Result, is_overdue, result
from tests.server.conftest import Running, within
from tests.server.test_questions import IMPOSSIBLE

PATIENT = pb.QualityOfService(tier="batch")
CHAT = Targets(ttft_s=1.0, tbt_s=0.125)


@pytest.mark.parametrize(
    ("num_missing", "is_on_time", "has_left", "was_overdue", "expected"),
    [
        (0, True, False, False, Result.MET),
        (0, True, True, True, Result.MET),  # left once it had everything
        (0, False, False, False, Result.MISSED),
        (1, True, False, False, Result.MISSED),  # expired, failed or displaced
        (1, True, True, False, Result.LEFT),
        (1, True, True, True, Result.MISSED),  # nobody waits for what does not come
        (1, False, True, False, Result.MISSED),  # another completion of the call was late
    ],
)
def test_what_came_of_a_call(
    num_missing: int, is_on_time: bool, has_left: bool, was_overdue: bool, expected: Result
) -> None:
    assert result(num_missing, is_on_time, has_left, was_overdue) is expected


def test_when_the_next_token_is_overdue() -> None:
    """With TTFT 1 and TBT 1/8 the first token is due at 1, the third at 1.25."""
    assert not is_overdue(CHAT, 0, 1.0)
    assert is_overdue(CHAT, 0, 1.01)
    assert not is_overdue(CHAT, 2, 1.25)
    assert is_overdue(CHAT, 2, 1.26)
    assert not is_overdue(Targets(ttlt_s=10.0), 5, 10.0)
    assert is_overdue(Targets(ttlt_s=10.0), 5, 10.1)
    assert not is_overdue(Targets(), 0, 1e9)


@given(st.integers(0, 3), st.booleans(), st.booleans(), st.booleans())
def test_nobody_s_promise_is_kept_without_all_of_the_output(
    num_missing: int, is_on_time: bool, has_left: bool, was_overdue: bool
) -> None:
    came = result(num_missing, is_on_time, has_left, was_overdue)
    assert (came is Result.MET) == (is_on_time and not num_missing)
    if not has_left:
        assert came is not Result.LEFT


def counts(running: Running) -> Counter[tuple[str, str, str]]:
    """Calls by tier, promise and result."""
    found: Counter[tuple[str, str, str]] = Counter()
    for metric in running.metrics.forecasts.collect():
        for sample in metric.samples:
            if sample.name == "niyama_forecasts_total":
                labels = sample.labels
                found[labels["tier"], labels["promised"], labels["result"]] = int(sample.value)
    return found


def asked(kind: type, qos: pb.QualityOfService, max_tokens: int = 4, n: int = 1) -> object:
    sampling = pb.Sampling(seed=1, max_tokens=max_tokens, ignore_eos=True, n=n)
    return kind(input=pb.Input(text="Once"), sampling=sampling, qos=qos)


@pytest.mark.asyncio(loop_scope="session")
async def test_every_call_that_was_promised_something_is_counted_once(running: Running) -> None:
    """Unary or not, with one completion or two; who is refused for a bad field is in no count."""
    await within(running.service.calls.idle.wait())
    before = counts(running)
    await within(running.stub.Generate(asked(pb.GenerateRequest, PATIENT)))
    await within(running.stub.Generate(asked(pb.GenerateRequest, PATIENT, n=2)))
    async for _ in running.stub.GenerateStream(asked(pb.GenerateStreamRequest, PATIENT)):
        pass
    await within(running.stub.Generate(asked(pb.GenerateRequest, IMPOSSIBLE)))
    leaver = running.stub.GenerateStream(asked(pb.GenerateStreamRequest, PATIENT, 4000))
    while not (await within(leaver.read())).HasField("tokens"):
        pass
    leaver.cancel()
    await within(running.service.calls.idle.wait())
    assert counts(running) - before == {
        ("batch", "on_time", "met"): 3,
        ("explicit", "late", "missed"): 1,
        ("batch", "on_time", "left"): 1,
    }
