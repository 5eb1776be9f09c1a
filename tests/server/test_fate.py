"""What became of every call that arrived, as metrics and log have it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from engine.config import EngineConfig
from engine.deciding.outcome import Fate
from engine.deciding.request import Targets
from niyama.v1 import inference_pb2 as pb
from server.config import ServerConfig
from server.fate import SKEW_S, End, Progress, fate, is_expired, progress
from tests.engine.driving.engines import SLOW
from tests.server.conftest import Running, running_with, until, within
from tests.server.test_ending import GENERATE

CHAT = Targets(ttft_s=1.0, tbt_s=0.125)
seconds = st.floats(0, 1e6)


# How a call's end becomes a word


@pytest.mark.parametrize(
    ("end", "has_targets", "is_late", "expected"),
    [
        (End.COMPLETE, True, False, Fate.ON_TIME),
        (End.COMPLETE, True, True, Fate.LATE),
        (End.COMPLETE, False, False, Fate.BEST_EFFORT),
        (End.LEFT, True, False, Fate.CANCELLED),
        (End.LEFT, True, True, Fate.LATE),
        (End.LEFT, False, False, Fate.CANCELLED),
        (End.EXPIRED, True, True, Fate.EXPIRED),
        (End.EXPIRED, False, False, Fate.EXPIRED),
        (End.REFUSED, True, False, Fate.REFUSED),
        (End.BROKEN, True, False, Fate.FAILED),
    ],
)
def test_the_word_for_an_end(end: End, has_targets: bool, is_late: bool, expected: Fate) -> None:
    assert fate(end, has_targets, is_late) is expected


@given(st.sampled_from(End), st.booleans(), st.booleans())
def test_nothing_is_on_time_that_did_not_end_by_itself_with_all_targets_met(
    end: End, has_targets: bool, is_late: bool
) -> None:
    came = fate(end, has_targets, is_late)
    assert (came is Fate.ON_TIME) == (end is End.COMPLETE and has_targets and not is_late)
    if came is Fate.CANCELLED:  # the only one that is nobody's miss, with best effort
        assert end is End.LEFT


# Deadlines


@given(st.floats(1e-3, 1e6), st.floats(0, 0.01), st.floats(0, 0.05))
def test_a_caller_that_waits_for_its_deadline_has_expired(
    allowed_s: float, rounding: float, skew_s: float
) -> None:
    """gRPC rounds what it tells the server up, by at most 1 %, and the way takes a while."""
    told_s = allowed_s * (1 + rounding)
    remaining_s = min(told_s - allowed_s + skew_s, told_s / 2)
    assert is_expired(told_s, remaining_s)


@given(st.floats(1e-3, 1e6), st.floats(0, 1))
def test_a_caller_that_leaves_in_the_first_half_has_not(allowed_s: float, lived: float) -> None:
    remaining_s = allowed_s * (1 - lived / 2)
    if remaining_s > allowed_s / 2:
        assert not is_expired(allowed_s, remaining_s)


@given(seconds, seconds, seconds)
def test_who_has_less_time_left_has_rather_expired(allowed_s: float, a: float, b: float) -> None:
    assert is_expired(allowed_s, min(a, b)) >= is_expired(allowed_s, max(a, b))
    assert is_expired(allowed_s, 0.0)


def test_how_close_to_a_deadline_is_past_it() -> None:
    """100 ms, or 2 % where that is more; of a very short one half."""
    for allowed_s, skew_s in ((1.0, SKEW_S), (100.0, 2.0), (0.02, 0.01)):
        assert is_expired(allowed_s, skew_s)
        assert not is_expired(allowed_s, math.nextafter(skew_s, 1e9))


# What is overdue


def test_when_the_next_token_is_overdue() -> None:
    """With TTFT 1 and TBT 1/8 the first token is due at 1, the third at 1.25."""
    chat = progress(CHAT)
    assert not chat.is_overdue(1.0)
    assert chat.is_overdue(1.01)
    chat.add(2, 1.0)
    assert not chat.is_overdue(1.25)
    assert chat.is_overdue(1.26)
    report = progress(Targets(ttlt_s=10.0))
    report.add(5, 9.0)
    assert not report.is_overdue(10.0)
    assert report.is_overdue(10.1)
    assert not progress(Targets()).is_overdue(1e9)


def test_what_waits_for_a_slow_reader_is_not_late() -> None:
    chat = progress(CHAT)
    chat.add(1, 0.5)
    chat.add(9, 30.0, is_awaited=False)
    assert not chat.is_late


def test_what_came_late_stays_late_though_nothing_is_due_now() -> None:
    chat = progress(CHAT)
    chat.add(1, 1.01)
    assert chat.is_overdue(1.02)
    chat.add(100, 1.03)
    assert chat.is_overdue(1.04)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4)), max_size=20), st.floats(0, 5))
def test_progress_is_what_the_definitions_say(pieces: list[tuple[float, int]], rest: float) -> None:
    """Against them written out, token by token."""
    watched: Progress = progress(CHAT)
    now, at = 0.0, []
    for gap, tokens in pieces:
        now += gap
        watched.add(tokens, now)
        at += [now] * tokens
    late = [n for n, each in enumerate(at) if each > 1.0 + n * 0.125]
    end = now + rest
    assert watched.is_overdue(end) == (bool(late) or end > 1.0 + len(at) * 0.125)
    assert watched.first_s == (at[0] if at else math.inf)
    assert watched.worst_gap_s == max((b - a for a, b in itertools.pairwise(at)), default=0)


# Real calls of every fate

TIERS = """
default_tier = "batch"
[tiers.batch]
ttlt_s = 3600
[tiers.chat]
ttft_s = 0.000001
tbt_s = 0.000001
importance = "high"
[tenants.acme]
"""
MAX_REQUESTS = 3  # one that is computed, and two that wait
Key = tuple[str, str, str, str]
BEST_EFFORT = pb.QualityOfService(best_effort=pb.BestEffortTargets())
BATCH, CHAT_TIER = pb.QualityOfService(tier="batch"), pb.QualityOfService(tier="chat")
LOW = pb.QualityOfService(tier="batch", importance=pb.IMPORTANCE_LOW)
IN_NO_TIME = pb.QualityOfService(deadline=pb.DeadlineTargets(ttlt=Duration(nanos=1000)))


def values(running: Running, name: str) -> Counter[tuple[str, ...]]:
    """The values of a metric by its labels, those at 0 left out."""
    found: Counter[tuple[str, ...]] = Counter()
    for family in running.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == name and sample.value:
                found[tuple(sample.labels.values())] = int(sample.value)
    return found


@contextlib.contextmanager
def counted(running: Running, *keys: Key) -> Iterator[None]:
    """Of the calls in the block these are counted, and nothing else."""
    before = values(running, "niyama_requests_total")
    yield
    assert values(running, "niyama_requests_total") - before == Counter(keys)


def asked(
    qos: pb.QualityOfService | None = None, kind: type = pb.GenerateRequest, max_tokens: int = 4
) -> Any:
    sampling = pb.Sampling(seed=1, max_tokens=max_tokens, ignore_eos=True)
    return kind(input=pb.Input(text="Once"), sampling=sampling, qos=qos)


async def code_of(call: Any) -> str:
    try:
        await within(call)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except asyncio.CancelledError:
        return "CANCELLED"
    return "OK"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """It computes one request at a time."""
    path = tmp_path / "tiers.toml"
    path.write_text(TIERS)
    engine = EngineConfig(factory=SLOW, policy="fcfs", max_batch_size=1, rerun_s=0.0)
    config = ServerConfig(port=0, config=path, max_requests=MAX_REQUESTS, engine=engine)
    async with running_with(config) as server:
        yield server


async def idle(running: Running) -> None:
    await within(running.service.calls.idle.wait())


async def begun(running: Running, qos: pb.QualityOfService, event: str, tokens: int = 4) -> Any:
    """A stream that has sent this event."""
    call = running.stub.GenerateStream(asked(qos, pb.GenerateStreamRequest, tokens))
    while not (await within(call.read())).HasField(event):
        pass
    return call


async def test_every_arrival_is_counted_once_with_what_became_of_it(running: Running) -> None:
    with capture_logs() as lines:
        await while_others_are_served(running)
        await while_the_engine_is_lost(running)
        await while_all_are_served(running)
        await while_the_server_drains(running)
    logged = Counter(line["result"] for line in lines if "result" in line)
    results = Counter[str]()
    for (*_, name), count in values(running, "niyama_requests_total").items():
        results[name] += count
    assert logged == results
    assert set(results) == {each.value for each in Fate}
    refused = values(running, "niyama_refused_total")
    assert refused.total() == results["refused"]
    assert {reason for _, _, reason, _ in refused} == {"queue_full", "displaced", "draining"}


async def while_others_are_served(running: Running) -> None:
    """Expired, left in time and too late, refused and displaced; and what is no arrival."""
    stub, service = running.stub, running.service
    ahead = await begun(running, BEST_EFFORT, "tokens", 3000)
    with counted(running, ("batch", "normal", "other", "cancelled")):
        (await begun(running, BATCH, "accepted")).cancel()
        await until(lambda: alone(running))
    with counted(running, ("chat", "high", "other", "late")):
        (await begun(running, CHAT_TIER, "accepted")).cancel()
        await until(lambda: alone(running))
    low = ("batch", "low", "other")
    came = (*low, "refused"), (*low, "refused"), (*low, "cancelled")
    with counted(running, *came, ("batch", "normal", "other", "cancelled")):
        waiting = [await begun(running, LOW, "accepted") for _ in range(MAX_REQUESTS - 1)]
        assert await code_of(stub.Generate(asked(LOW))) == "RESOURCE_EXHAUSTED"
        waiting.append(await begun(running, BATCH, "accepted"))  # and one gave its place
        for call in waiting:
            call.cancel()
        await until(lambda: alone(running))
    metadata = (("niyama-tenant", "acme"),)
    with counted(running, ("batch", "normal", "acme", "expired")):
        call = stub.Generate(asked(), timeout=0.2, metadata=metadata)
        assert await code_of(call) == "DEADLINE_EXCEEDED"
        await until(lambda: alone(running))
    with counted(running):  # broken rules, and a message that never comes
        assert await code_of(stub.Generate(pb.GenerateRequest())) == "INVALID_ARGUMENT"
        call = running.channel.stream_unary(GENERATE)()
        await until(lambda: len(service.calls.uploads) == 1)
        call.cancel()
        await until(lambda: not len(service.calls.uploads))
    with counted(running, ("unknown", "unknown", "other", "expired")):
        call = running.channel.stream_unary(GENERATE)(timeout=0.2)
        assert await code_of(call) == "DEADLINE_EXCEEDED"
        await until(lambda: not len(service.calls.uploads))
    waited = [("batch",), ("chat",), ("unknown",)]
    assert values(running, "niyama_ttft_seconds_count") == Counter(waited)
    assert values(running, "niyama_ttlt_seconds_count") == Counter(waited)
    assert values(running, "niyama_latency_lower_bounds_total") == Counter(
        (*tier, latency) for tier in waited for latency in ("ttft", "ttlt")
    )
    with counted(running, ("explicit", "normal", "other", "cancelled")):
        ahead.cancel()
        await idle(running)


def alone(running: Running) -> bool:
    """Whether nothing is left but the call that is ahead of the others."""
    return running.metrics.in_flight._value.get() == 1


async def while_the_engine_is_lost(running: Running) -> None:
    """Those that it had, and who comes before there is another."""
    with counted(running, *[("batch", "normal", "other", "failed")] * 2):
        call = await begun(running, BATCH, "tokens", 3000)
        pid = running.server.engine.keeper.pid
        assert pid is not None
        psutil.Process(pid).kill()
        assert await within(call.code()) is grpc.StatusCode.UNAVAILABLE
        assert await code_of(running.stub.Generate(asked())) == "UNAVAILABLE"
        await idle(running)
    await until(lambda: running.server.engine.link.serves)


async def while_all_are_served(running: Running) -> None:
    for qos, key in (
        (None, ("batch", "normal", "other", "on_time")),
        (IN_NO_TIME, ("explicit", "normal", "other", "late")),
        (BEST_EFFORT, ("explicit", "normal", "other", "best_effort")),
    ):
        with counted(running, key, key):
            assert await code_of(running.stub.Generate(asked(qos))) == "OK"
            async for _ in running.stub.GenerateStream(asked(qos, pb.GenerateStreamRequest)):
                pass
            await idle(running)


async def while_the_server_drains(running: Running) -> None:
    with counted(running, ("chat", "high", "other", "refused")):
        await within(running.server.drain())
        assert await code_of(running.stub.Generate(asked(CHAT_TIER))) == "UNAVAILABLE"
        await idle(running)
