"""The load as balancers of gRPC read it: from a real server, and from answers that are known."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest

from engine.deciding.memory import Memory
from engine.deciding.questions import Stats
from engine.deciding.queued_work import NOTHING, Amount
from engine.deciding.stats import EngineStats, Outlook, Speeds
from engine.linking.errors import EngineLost
from server.listening import orca
from server.loads import FRESH_S, STALE_S, Load, Loads, Rates, TierLoad
from tests.server.conftest import Running, within

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOAD = Load(
    tiers={
        "batch": TierLoad(NOTHING, Amount(2, 8.0, 90), Amount(3, 1.0, 10), Amount(1, 0.5, 5)),
        "chat": TierLoad(
            *(Amount(3, 0.5, 60), NOTHING, NOTHING, Amount(3, 0.5, 15)),
            Outlook(2.5, 0.1, 0.75, Amount(3, 0.5, 60), 1.0),
        ),
    },
    waiting=Amount(3, 0.5, 60),
    backlog=Amount(5, 9.0, 100),
    running=Amount(4, 1.0, 20),
    demand=1.5,
    rates=Rates(2.0, 30.0, 40.0),
    speeds=Speeds(0.02, 900.0, 0.001, 1.25),
    memory=Memory(16, total=100, held=50, idle=5, patient=25),
    batch_fill=0.5,
    cache_hits=0.0,
)


def reports(running: Running, seconds: float = 0.0) -> Any:
    """Of the load, as a client asks for them out of band."""
    rpc: Any = running.channel.unary_stream(
        f"/{orca.SERVICE}/StreamCoreMetrics",
        request_serializer=orca.Request.SerializeToString,
        response_deserializer=orca.Report.FromString,
    )
    return rpc(orca.Request(report_interval=timedelta(seconds=seconds)))


async def engine_stats(running: Running) -> EngineStats:
    return await within(running.server.engine.link.ask(Stats()))


async def test_the_fields_are_those_that_were_published() -> None:
    """https://github.com/cncf/xds: a number is what goes over the wire."""
    report = orca.DATA.message_types_by_name["OrcaLoadReport"]
    assert {field.name: field.number for field in report.fields} == {
        "request_cost": 4,
        "rps_fractional": 6,
        "named_metrics": 8,
        "application_utilization": 9,
    }
    assert report.full_name == "xds.data.orca.v3.OrcaLoadReport"
    (service,) = orca.DESCRIPTOR.services_by_name.values()
    assert service.full_name == orca.SERVICE


async def test_a_client_is_told_the_load_again_and_again(running: Running) -> None:
    stream = reports(running)
    first, second = await within(stream.read()), await within(stream.read())
    stream.cancel()
    for report in (first, second):
        assert 0 <= report.named_metrics["kv_cache_usage_perc"] <= 1
        assert report.named_metrics["num_requests_waiting"] == 0
        assert "headroom_seconds.interactive" in report.named_metrics or not report.rps_fractional


async def test_a_call_ends_with_the_load_and_what_it_has_cost() -> None:
    """What a client reads of it: tests/node/orca.js. gRPC's own for Python shows it to nobody."""
    known = [LOAD]
    trailers = orca.CallReports(lambda: known[0]).trailers
    for load, cost in ((LOAD, 3.0), (LOAD, 4.0), (LOAD._replace(demand=0.5), 3.0)):
        known[0] = load
        ((key, text),) = trailers({"output_tokens": cost})
        whole = orca.report_of(load)
        whole.request_cost["output_tokens"] = cost
        assert key == "endpoint-load-metrics-bin"
        assert orca.Report.FromString(text) == whole


async def test_a_call_waits_for_no_load(running: Running) -> None:
    """Where none is known its trailers have none, and the next call's do."""

    async def never() -> Any:
        await asyncio.Event().wait()

    loads = Loads(never, lambda: running.service.info)
    assert orca.CallReports(loads.newest).trailers({}) == ()
    assert loads.newest() is None
    await loads.stop()


async def test_a_report_has_the_load_by_the_names_that_gateways_know() -> None:
    report = orca.report_of(LOAD)
    assert report.application_utilization == 1.5
    assert report.rps_fractional == 2.0
    assert report.named_metrics == {
        "kv_cache_usage_perc": 0.25,
        **{"num_requests_waiting": 3.0, "waiting_seconds": 0.5, "waiting_tokens": 60.0},
        **{"num_requests_backlog": 5.0, "backlog_seconds": 9.0, "backlog_tokens": 100.0},
        **{"num_requests_running": 4.0, "running_seconds": 1.0, "running_tokens": 20.0},
        "batch_fill": 0.5,
        "generated_tokens_per_second": 30.0,
        "prefilled_tokens_per_second": 40.0,
        "prefill_tokens_per_second": 900.0,
        "iteration_seconds": 0.02,
        "slowdown": 1.25,
        "queued_work_seconds.batch": 9.0,
        "queued_work_seconds.chat": 0.5,
        "headroom_seconds.chat": 2.5,
        "ahead_seconds.chat": 0.5,
    }


async def test_the_engine_is_asked_once_a_second_however_many_ask(running: Running) -> None:
    clock, answers = [100.0], []

    async def ask() -> Any:
        await asyncio.sleep(0)
        answers.append(await engine_stats(running))
        return answers[-1]

    loads = Loads(ask, lambda: running.service.info, lambda: clock[0])
    first = await within(asyncio.gather(*(loads.now() for _ in range(5))))
    assert len(answers) == 1
    assert len({id(each) for each in first}) == 1
    clock[0] += FRESH_S / 2
    assert await within(loads.now()) is loads.newest() is first[0]
    clock[0] += FRESH_S
    assert loads.newest() is first[0]  # and the engine is asked, for the next
    assert await within(loads.now()) is not first[0]
    assert len(answers) == 2
    clock[0] += STALE_S
    assert loads.newest() is None
    await loads.stop()


async def test_nothing_is_told_of_an_engine_that_is_lost(running: Running) -> None:
    async def lost() -> Any:
        raise EngineLost("gone")

    loads = Loads(lost, lambda: running.service.info)
    assert await within(loads.now()) is None
    assert orca.CallReports(loads.newest).trailers({"output_tokens": 1}) == ()


async def test_who_takes_no_reports_is_sent_no_more_than_it_has_room_for(running: Running) -> None:
    """A stream is one task that sleeps, and it ends with its client."""
    streams = [reports(running, 3600.0) for _ in range(20)]
    for stream in streams:
        await within(stream.read())
        stream.cancel()
    for stream in streams:
        assert await within(stream.code()) is grpc.StatusCode.CANCELLED
