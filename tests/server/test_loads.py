"""What balancers are told of the load: a queue of people repels, a night's work does not."""

from __future__ import annotations

from typing import Any

import pytest

from engine.deciding.plan import Token
from engine.deciding.request import BEST_EFFORT, Importance, Targets
from engine.deciding.scheduler import Scheduler
from engine.deciding.stats import EngineStats, TierAsked
from engine.messages import EngineInfo
from niyama.client.load import from_load_response
from niyama.v1 import inference_pb2 as pb
from server.convert.load import to_load
from server.loads import Load, Rates, load_of
from tests.engine.deciding.parts import deadline, interactive, make_request, make_scheduler
from tests.server.conftest import Running, within
from tests.server.test_service import PROMPT

CHAT, BATCH = interactive(1.0, 0.05), deadline(3600.0)
TIERS = (
    TierAsked("chat", CHAT, Importance.NORMAL),
    TierAsked("batch", BATCH, Importance.NORMAL),
)
INFO = EngineInfo("m", "a", 2048, 100, 1, "f", "cpu", "niyama", 100, 16, 32, 1)


def submit(
    scheduler: Scheduler, number: int, targets: Targets, tier: str, length: int, now: float = 0.0
) -> None:
    for i in range(number):
        name = f"{tier}{i}/{len(scheduler.roster.sequences)}"
        scheduler.submit(make_request(name, length, 50, now, targets, tier=tier), now)


def run(scheduler: Scheduler, now: float, iterations: int) -> float:
    for _ in range(iterations):
        plan = scheduler.plan(now)
        assert plan is not None
        now += plan.predicted_s
        scheduler.commit(plan, [Token(0)] * len(plan.sampling), now)
    return now


def load(scheduler: Scheduler, now: float = 0.0) -> Load:
    stats = EngineStats(scheduler.stats(), scheduler.saturation(TIERS, now), 0, 0.0)
    return load_of(stats, INFO, Rates(1.0, 2.0, 3.0))


def test_a_night_s_work_repels_nobody_and_people_who_wait_do() -> None:
    """It takes a thousandth of a second for each token; there are 200,000 of bulk."""
    scheduler = make_scheduler()
    submit(scheduler, 500, BATCH, "batch", 200)
    submit(scheduler, 500, BEST_EFFORT, "", 200)
    before = load(scheduler, 1.0)
    assert before.waiting == (0, 0.0, 0)
    assert (before.backlog.num, before.backlog.tokens) == (1000, 200_000)
    assert before.tiers["batch"].waiting.num == before.tiers[""].best_effort.num == 500
    submit(scheduler, 10, CHAT, "chat", 20, 1.0)
    after = load(scheduler, 1.0)
    assert (after.waiting.num, after.waiting.tokens) == (10, 200)
    assert after.waiting.seconds == pytest.approx(after.tiers["chat"].waiting.seconds)
    assert after.backlog.num == 1000
    outlooks = {name: tier.outlook for name, tier in after.tiers.items()}
    assert outlooks[""] is None
    assert outlooks["chat"] is not None
    assert outlooks["batch"] is not None
    assert outlooks["batch"].ahead.num == 510, "one of batch comes behind them all"
    assert outlooks["chat"].headroom_s < 1.0 < outlooks["batch"].headroom_s


def test_who_was_relegated_repels_no_more() -> None:
    """Of a queue of 4 seconds with a second of time, most are given up, and the rest repels."""
    scheduler = make_scheduler()
    submit(scheduler, 40, CHAT, "chat", 100)
    scheduler.plan(0.0)
    told = load(scheduler)
    num_kept = told.tiers["chat"].waiting.num
    assert 0 < num_kept <= 12
    assert told.tiers["chat"].relegated.num == 40 - num_kept
    assert told.waiting.num <= num_kept
    assert told.waiting.num + told.backlog.num == 40


def test_where_prefills_go_by_arrival_all_that_came_before_repels() -> None:
    """It says what would come before a request, whatever the policy is."""
    scheduler = make_scheduler("fcfs")
    submit(scheduler, 20, BEST_EFFORT, "", 100)
    told = load(scheduler)
    assert (told.waiting.num, told.waiting.tokens) == (20, 2000)
    assert told.backlog == (0, 0.0, 0)


def test_memory_that_bulk_holds_repels_no_stream() -> None:
    """Nor does what is cached, and nobody reads."""
    scheduler = make_scheduler(num_pages=40, prefix_caching=True)
    submit(scheduler, 1, CHAT, "chat", 30)
    now = run(scheduler, 0.0, 1)
    assert load(scheduler, now).memory == (16, 40, 2, 0, 0, 1)
    assert load(scheduler, now).memory.usage == 2 / 40
    for number in range(6):  # no two begin alike
        prompt = range(1000 * number, 1000 * number + 100)
        request = make_request(f"b{number}", prompt, 20, now, BATCH, tier="batch")
        scheduler.submit(request, now)
    now = run(scheduler, now, 25)
    told = load(scheduler, now)
    assert told.memory.patient > 10
    assert told.memory.usage < 0.15
    assert told.running.tokens > 0
    while (plan := scheduler.plan(now)) is not None:
        now += plan.predicted_s
        scheduler.commit(plan, [Token(0)] * len(plan.sampling), now)
    assert load(scheduler, now).memory[2:] == (0, scheduler.pages.num_idle, 0, 0)
    assert scheduler.pages.num_idle > 0


@pytest.mark.asyncio(loop_scope="session")
async def test_anybody_who_speaks_for_others_is_told(running: Running) -> None:
    await within(
        running.stub.Generate(pb.GenerateRequest(input=PROMPT, sampling=pb.Sampling(max_tokens=2)))
    )
    stub: Any = running.stub
    told = from_load_response(await within(stub.GetLoad(pb.GetLoadRequest())))
    assert {"interactive", "standard", "batch"} <= set(told.tiers)
    assert told.memory.total_tokens > 0
    assert told.speeds.prefill_tokens_per_second > 0
    assert told.speeds.iteration > 0


def test_nothing_is_lost_on_the_way_to_a_client() -> None:
    scheduler = make_scheduler()
    submit(scheduler, 10, CHAT, "chat", 20)
    now = run(scheduler, 0.0, 2)
    own = load(scheduler, now)
    told = from_load_response(to_load(own))
    assert set(told.tiers) == set(own.tiers)
    for name in ("waiting", "backlog", "running"):
        amount, work = getattr(own, name), getattr(told, name)
        assert (work.sequences, work.tokens) == (amount.num, amount.tokens)
        assert work.seconds == pytest.approx(amount.seconds, abs=1e-9)
    outlook = own.tiers["chat"].outlook
    assert outlook is not None
    assert told.tiers["chat"].outlook is not None
    assert told.tiers["chat"].outlook.target == 1.0
    assert told.tiers["chat"].outlook.headroom == pytest.approx(outlook.headroom_s, abs=1e-9)
    assert told.memory.total_tokens == 16 * own.memory.total
    assert told.rates.prefilled_tokens == 3.0
