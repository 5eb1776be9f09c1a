"""What the gateway is told of the load: the numbers by which it sends requests here or not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from smg_grpc_proto import vllm_engine_pb2 as vllm

from engine.deciding.request import BEST_EFFORT
from engine.tiers import Tier
from server.smg.loads import to_loads
from tests.server.conftest import Running, within
from tests.server.smg.asking import stub_of
from tests.server.test_loads import BATCH, CHAT, load, make_scheduler, run, submit


def test_bulk_diverts_nobody_and_trips_no_overload_protection_and_people_who_wait_do() -> None:
    scheduler = make_scheduler()
    submit(scheduler, 500, BATCH, "batch", 200)
    told = to_loads(load(scheduler, 1.0), 4096, now=datetime(2030, 1, 2, tzinfo=UTC))
    (bulk,) = told.loads
    assert (told.timestamp, told.dp_rank_count) == ("2030-01-02T00:00:00+00:00", 1)
    assert (bulk.num_waiting_reqs, bulk.token_usage) == (0, 0)
    assert bulk.num_waiting_uncached_tokens == 0
    assert (bulk.num_total_reqs, bulk.max_running_requests) == (500, 4096)
    submit(scheduler, 10, CHAT, "chat", 20, 1.0)
    (people,) = to_loads(load(scheduler, 1.0), 4096).loads
    assert (people.num_waiting_reqs, people.num_waiting_uncached_tokens) == (10, 200)
    wait_s = people.num_waiting_uncached_tokens / people.gen_throughput
    assert wait_s == pytest.approx(0.2, rel=0.1), "a thousandth of a second for each token"
    assert people.max_total_num_tokens == 16_000
    now = run(scheduler, 1.0, 20)
    (served,) = to_loads(load(scheduler, now), 4096).loads
    assert (served.num_running_reqs, served.num_waiting_reqs) == (10, 0)
    assert len(scheduler.roster.running) > 10, "some of bulk do, too"
    assert 0 < served.num_used_tokens == served.token_usage * served.max_total_num_tokens


def test_at_a_port_of_bulk_the_gateway_sees_what_bulk_waits_for() -> None:
    """Or it would send all of a night's work to one of two servers."""
    scheduler = make_scheduler()
    submit(scheduler, 500, BATCH, "batch", 200)
    submit(scheduler, 10, CHAT, "chat", 20)
    told = load(scheduler, run(scheduler, 0.0, 20))
    batch, chat, night = (
        Tier(name, of) for name, of in (("batch", BATCH), ("chat", CHAT), ("night", BEST_EFFORT))
    )
    (none, of_chat, of_batch, of_night) = (
        to_loads(told, 4096, tier).loads[0] for tier in (None, chat, batch, night)
    )
    assert none == of_chat
    assert (none.num_waiting_reqs, none.num_running_reqs) == (0, 10)
    assert none.token_usage < of_batch.token_usage
    for each in (of_batch, of_night):
        assert each.num_waiting_reqs > 400
        assert each.num_waiting_uncached_tokens > 400 * 200
        assert each.num_waiting_reqs + each.num_running_reqs == 510
        assert each.num_used_tokens == round(each.token_usage * each.max_total_num_tokens)


@pytest.mark.asyncio(loop_scope="session")
async def test_the_gateway_asks_how_loaded_it_is(running: Running) -> None:
    told = await within(stub_of(running.channel).GetLoads(vllm.GetLoadsRequest()))
    (load,) = told.loads
    assert load.gen_throughput > 0
    assert 0 <= load.token_usage <= load.num_used_tokens / load.max_total_num_tokens
