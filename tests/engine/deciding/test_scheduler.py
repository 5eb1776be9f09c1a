"""What every policy owes under random schedules: the Driver of parts.py asserts it on each call."""

from __future__ import annotations

import gc
import math
import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pace import PaceConfig
from engine.deciding.plan import NOTHING_LEFT, Event, Finished, Token
from engine.deciding.policies import ORDERS, POLICIES
from engine.deciding.request import EVERYBODY_ELSE, Importance, Request, Sampling, Share, Targets
from engine.deciding.sequence import FinishReason, Sequence
from engine.deciding.story import summary as told
from tests.engine.deciding.memory import BAD, Memory
from tests.engine.deciding.parts import (
    TARGETS,
    Driver,
    deadline,
    interactive,
    make_request,
    make_scheduler,
)

PAGE_SIZE = 4
CONTEXT = 64
CLOSE = (interactive(0.1, 0.02), interactive(0.3, 0.02), deadline(0.2), deadline(0.3))


def random_request(rng: random.Random, name: str, at: float) -> Request:
    """Prompts share prefixes within and across tenants; most need several small chunks."""
    output = rng.randint(1, 12)
    stops = frozenset({rng.randrange(12)} if rng.random() < 0.2 else ())
    prompt = [rng.choice((1, 2))] * rng.randint(1, 24) + [rng.randrange(9)] * rng.randint(0, 24)
    return make_request(
        name,
        prompt=prompt[: CONTEXT - output],
        at=at,
        targets=rng.choice(TARGETS),
        importance=rng.choice(list(Importance)),
        tenant=rng.choice("ab"),
        application=rng.choice(("", "chat", "code")),
        sampling=Sampling(temperature=0.0, max_tokens=output, stop_token_ids=stops),
    )


def random_run(
    policy: str,
    seed: int,
    num_requests: int = 6,
    ahead: float = 0.0,
    bad_tokens: bool = False,
    niyama: NiyamaConfig | None = None,
    crowded: bool = False,
) -> Driver:
    """Arrivals at any time, also long before they are taken in; slow and quick iterations;
    cancellations of anybody at any moment; memory that seldom suffices. `ahead`: the share of
    iterations that are still in flight when the next is planned. `bad_tokens`: some of the prompts
    have one that no number comes of. `crowded`: most come
    several at once, with targets that are close for so many, and now and then most leave at once.
    """
    rng = random.Random(seed)
    scheduler = make_scheduler(
        policy,
        num_pages=rng.choice((16, 16, 20, 60)),  # 16 hold one sequence of CONTEXT
        page_size=PAGE_SIZE,
        context_len=CONTEXT,
        chunk_size=rng.choice((4, 9, 16, 64)),
        max_batch_size=rng.choice((1, 2, 4, 100)),
        prefix_caching=rng.random() < 0.5,
        niyama=niyama or NiyamaConfig(),
    )
    driver = Driver(scheduler, Memory(PAGE_SIZE) if bad_tokens else None)
    for i in range(num_requests):
        request = random_request(rng, f"r{i}", driver.now - rng.choice((0.0, 0.01)))
        if crowded and rng.random() < 0.7:
            request = replace(request, targets=rng.choice(CLOSE))
        driver.submit(request)
        if crowded and rng.random() < 0.8:
            continue
        for _ in range(rng.choice((0, 0, 1, 3, 10))):
            slowdown = rng.choice((0.5, 1.0, 1.0, 3.0))
            if driver.step(slowdown, ahead > 0 and rng.random() < ahead) is None:
                driver.now += rng.expovariate(50)
        if rng.random() < 0.15:
            driver.cancel(f"r{rng.randint(0, i)}")
        if crowded and rng.random() < 0.1:
            for name in rng.sample(driver.in_flight, len(driver.in_flight) * 3 // 4):
                driver.cancel(name)
    driver.drain()
    return driver


def random_settings(rng: random.Random) -> NiyamaConfig:
    """Waits, allowances and shares under which what is rare by default happens all the time."""
    return NiyamaConfig(
        PaceConfig(max_gap=rng.choice((1.0, 2.0, math.inf))),
        allowance=rng.choice((0.0, 0.3, 0.9)),
        background_share=rng.choice((0.0, 0.02, 0.5)),
        longest_wait_s=rng.choice((0.005, 0.02, 0.1, math.inf)),
        max_held_share=rng.choice((0.25, 0.9)),
        dynamic_chunks=rng.random() < 0.9,
        hybrid=rng.random() < 0.9,
        relegation=rng.random() < 0.9,
    )


@pytest.mark.parametrize("ahead", [0.0, 0.8])
def test_random_settings_of_niyama_keep_every_invariant(ahead: float) -> None:
    """Its own accounts, too (`Niyama.check`). All that it may do with a request must have been."""
    runs = [
        random_run(
            "niyama", seed, 30, ahead, niyama=random_settings(random.Random(seed)), crowded=True
        )
        for seed in range(80)
    ]
    finished = [s.finished for run in runs for s in run.stories.values() if s.finished]
    reasons = [f.reason for f in finished]
    assert reasons.count(FinishReason.DISPLACED) > 100
    assert reasons.count(FinishReason.CANCELLED) > 100
    assert reasons.count(FinishReason.REJECTED) > 5
    decisions = [
        decision
        for run in runs
        for name in run.stories
        for decision in run.scheduler.explain(name, None).decisions
    ]
    kinds = [d.kind for d in decisions]
    assert kinds.count("relegated") > 200
    assert kinds.count("restored") > 5
    assert kinds.count("held") > 5
    assert sum(d.detail.startswith("another needed its memory") for d in decisions) > 5


@pytest.mark.parametrize("ahead", [0.0, 0.8])
@pytest.mark.parametrize("policy", POLICIES)
def test_random_schedules_keep_every_invariant(policy: str, ahead: float) -> None:
    """Preemption and relegation are rare enough to be missed: the runs must have had both."""
    runs = [random_run(policy, seed, ahead=ahead) for seed in range(300)]
    finished = [s.finished for run in runs for s in run.stories.values() if s.finished]
    assert sum(f.num_preemptions for f in finished) > 15
    assert sum(f.cached_tokens for f in finished) > 100
    assert sum(f.reason is FinishReason.CANCELLED for f in finished) > (
        80 if policy == "edf-reject" else 100  # who is turned away cannot leave
    )
    assert sum(f.reason is FinishReason.STOP for f in finished) > 50
    relegated = sum(s.relegations for run in runs for s in run.stories.values())
    if policy in ORDERS or policy in ("edf-dynamic", "fairbatching"):
        assert relegated == 0
    else:
        assert relegated > (5 if policy == "edf-reject" else 100)
    rejected = sum(f.reason is FinishReason.REJECTED for f in finished)
    assert rejected > 100 if policy == "edf-reject" else rejected == 0


@pytest.mark.parametrize("ahead", [0.0, 0.8])
@pytest.mark.parametrize("policy", POLICIES)
def test_logits_that_are_not_finite_end_their_own_requests_alone(policy: str, ahead: float) -> None:
    """Among shared prefixes, preemptions, and cancellations before anybody knew; the Driver asserts
    who fails. Some that took pages of others are computed again.
    """
    runs = [random_run(policy, seed, ahead=ahead, bad_tokens=True) for seed in range(150)]
    finished = [s.finished for run in runs for s in run.stories.values() if s.finished]
    assert sum(f.reason is FinishReason.ERROR for f in finished) > 60
    assert sum(f.cached_tokens for f in finished) > (400 if policy == "edf-reject" else 500)
    assert sum(f.num_preemptions for f in finished) > 5
    kinds = [
        d.kind for run in runs for r in run.stories for d in run.scheduler.explain(r).decisions
    ]
    assert kinds.count("restarted") > 5


@pytest.mark.parametrize("ahead", [False, True])
def test_who_had_taken_spoiled_pages_is_computed_again_by_itself(ahead: bool) -> None:
    """Of a prompt in chunks of 16 the first chunk spoils the pages that another has already taken
    when its last, in the same iteration, is sampled. The third comes when nothing is left of it.
    """
    memory = Memory(PAGE_SIZE)
    scheduler = make_scheduler(
        "fcfs", page_size=PAGE_SIZE, context_len=CONTEXT, chunk_size=16, prefix_caching=True
    )
    driver = Driver(scheduler, memory)
    driver.submit(make_request("bad", [1] * 12 + [BAD] + [3] * 20))
    driver.submit(make_request("good", [1] * 12 + [2] * 3))
    for _ in range(3 + ahead):
        driver.step(ahead=ahead)
    assert scheduler.pages.num_cached == 0
    assert driver.in_flight == ["good"]
    num_spoiled = memory.num_spoiled
    driver.submit(make_request("later", [1] * 12 + [2] * 5))
    driver.drain()
    assert memory.num_spoiled == num_spoiled
    ends = [story.finished for story in driver.stories.values() if story.finished]
    length = FinishReason.LENGTH
    assert [end.reason for end in ends] == [FinishReason.ERROR, length, length]
    kinds = [decision.kind for decision in scheduler.explain("good").decisions]
    assert kinds.count("restarted") == 1
    assert "not finite" in told(scheduler.explain("bad"))


def test_a_request_for_which_no_token_is_left_ends_and_says_so() -> None:
    """Though it had taken pages of another: they are good, and so is the model."""
    scheduler = make_scheduler("fcfs", page_size=PAGE_SIZE, prefix_caching=True)
    driver = Driver(scheduler)
    driver.submit(make_request("first", [1] * 20))
    driver.drain()
    scheduler.submit(make_request("second", [1] * 20), driver.now)
    plan = scheduler.plan(driver.now)
    assert plan is not None
    (end,) = scheduler.commit(plan, [Token(NOTHING_LEFT)], driver.now + 1)[-1:]
    assert isinstance(end, Finished)
    assert end.cached_tokens > 0
    assert end.reason is FinishReason.ERROR
    assert end.detail.startswith("no token is left to pick: min_tokens")
    assert told(scheduler.explain("second")) == f"Failed: {end.detail}."
    assert scheduler.stats().totals.num_failed == 0
    scheduler.check()


def test_a_request_takes_shared_pages_when_there_is_room_to_compute_its_own() -> None:
    """Chunks are of 16: of the first prompt's 52 tokens 48 are there when the second can begin."""
    scheduler = make_scheduler("fcfs", page_size=PAGE_SIZE, chunk_size=16, prefix_caching=True)
    driver = Driver(scheduler)
    for name, last in (("first", 1), ("second", 2)):
        driver.submit(make_request(name, [*range(50), last, last]))
    driver.drain()
    second = driver.stories["second"].finished
    assert second is not None
    assert second.cached_tokens == 48
    assert scheduler.totals.prefill_tokens == 52 + 4


def test_pages_of_who_left_before_anybody_knew_spoil_nobody() -> None:
    """It is cancelled between the chunks of its prompt; another then has the only pages."""
    scheduler = make_scheduler(
        "fcfs", num_pages=4, page_size=PAGE_SIZE, context_len=16, chunk_size=4, prefix_caching=False
    )
    driver = Driver(scheduler, Memory(PAGE_SIZE))
    driver.submit(make_request("bad", [BAD] * 14, output=1))
    for _ in range(3):
        driver.step()
    driver.cancel("bad")
    driver.submit(make_request("good", [1] * 9, output=7))
    driver.drain()


class Schedules(RuleBasedStateMachine):
    """The same contract, with sequences of calls that hypothesis chooses and shrinks."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        num_pages=st.integers(16, 24),
        chunk_size=st.integers(1, 20),
        max_batch_size=st.integers(1, 4),
        prefix_caching=st.booleans(),
    )
    def start(self, policy: str, **config: int) -> None:
        scheduler = make_scheduler(policy, page_size=PAGE_SIZE, context_len=CONTEXT, **config)
        self.driver = Driver(scheduler, Memory(PAGE_SIZE))

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=52),
        bad_at=st.none() | st.none() | st.integers(0, 51),
        output=st.integers(1, 12),
        stops=st.frozensets(st.integers(0, 11), max_size=1),
        waited=st.sampled_from((0.0, 0.02)),
        slo=st.sampled_from(TARGETS),
        importance=st.sampled_from(Importance),
        tenant=st.sampled_from("ab"),
    )
    def submit(
        self,
        prompt: list[int],
        bad_at: int | None,
        output: int,
        stops: frozenset[int],
        waited: float,
        slo: Targets,
        importance: Importance,
        tenant: str,
    ) -> None:
        driver = self.driver
        if bad_at is not None and bad_at < len(prompt):
            prompt[bad_at] = BAD
        name, at = f"r{len(driver.stories)}", driver.now - waited
        sampling = Sampling(max_tokens=output, stop_token_ids=stops)
        request = make_request(
            name, prompt, 0, at, slo, importance, tenant=tenant, sampling=sampling
        )
        driver.submit(request)

    @rule(slowdown=st.sampled_from((0.5, 1.0, 4.0)), times=st.integers(1, 6), ahead=st.booleans())
    def step(self, slowdown: float, times: int, ahead: bool) -> None:
        for _ in range(times):
            self.driver.step(slowdown, ahead)

    @rule(seconds=st.floats(0.0, 1.0))
    def wait(self, seconds: float) -> None:
        self.driver.now += seconds

    @precondition(lambda self: self.driver.stories)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.driver.cancel(data.draw(st.sampled_from(sorted(self.driver.stories))))

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.drain()


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(
    max_examples=150, stateful_step_count=20, deadline=None, derandomize=True
)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stop_token_ends_a_request_once_min_tokens_are_reached(policy: str) -> None:
    """Token n has id n here: 1 is too early, 3 ends the request after its fourth token."""
    scheduler = make_scheduler(policy)
    sampling = Sampling(max_tokens=9, min_tokens=2, stop_token_ids=frozenset({1, 3}))
    scheduler.submit(make_request("r", sampling=sampling), 0.0)
    events: list[Event] = []
    while plan := scheduler.plan(0.0):
        (sequence,) = plan.sampling
        events += scheduler.commit(plan, [Token(len(sequence.output))], 0.0)
    *sampled, end = events
    assert len(sampled) == 4
    assert isinstance(end, Finished)
    assert (end.reason, end.output_tokens) == (FinishReason.STOP, 4)


def test_what_could_never_be_served_is_refused_before_any_state_exists() -> None:
    scheduler = make_scheduler(num_pages=4, page_size=16, context_len=100)
    scheduler.submit(make_request("fits", prompt=60, output=4), 0.0)
    with pytest.raises(ValueError, match="together are 65 tokens"):
        scheduler.submit(make_request("page", prompt=61, output=4), 0.0)
    with pytest.raises(ValueError, match="in flight"):
        scheduler.submit(make_request("fits", prompt=1), 0.0)
    assert scheduler.stats().totals.num_submitted == 1
    scheduler.check()


def test_it_counts_whose_work_it_was_asked_for() -> None:
    """By share and tier, as predicted on arrival: who has sent twice as much, has twice as much."""
    scheduler = make_scheduler(num_pages=64, page_size=16, context_len=100)
    for name, tier in (("a", "chat"), ("b", "chat"), ("c", "chat"), ("d", "")):
        share = EVERYBODY_ELSE if name == "c" else Share("big")
        scheduler.submit(make_request(name, prompt=30, output=4, share=share, tier=tier), 0.0)
    asked_s = scheduler.stats().asked_s
    assert asked_s["big", "chat"] == pytest.approx(2 * asked_s["", "chat"])
    assert asked_s["big", ""] == pytest.approx(asked_s["", "chat"])
    assert asked_s["", "chat"] > 0


def test_the_context_length_ends_a_sequence() -> None:
    """Prompt 6 + max_tokens 4 is the context of 10: the last token comes at known length 10."""
    driver = Driver(make_scheduler(context_len=10))
    driver.submit(make_request("r", prompt=6, output=4))
    driver.drain()
    finished = driver.stories["r"].finished
    assert finished is not None
    assert (finished.reason, finished.output_tokens) == (FinishReason.LENGTH, 4)


def test_a_decode_that_must_lose_its_pages_is_the_one_with_most_slack_for_it() -> None:
    """Two pages of 4 each and a fifth is needed: b, due at 2 s, has 1 s more slack than a, whose
    7 known tokens take no longer to compute again.
    """
    scheduler = make_scheduler("fcfs", num_pages=4, page_size=4, context_len=16)
    driver = Driver(scheduler)
    for name, due in (("a", 1.0), ("b", 2.0)):
        driver.submit(make_request(name, 6, 10, targets=deadline(due)))
    while not scheduler.totals.num_preemptions:
        driver.step()
    driver.drain()
    preemptions = {n: s.finished and s.finished.num_preemptions for n, s in driver.stories.items()}
    assert preemptions == {"a": 0, "b": 1}


def test_among_equals_the_decode_that_is_cheapest_to_compute_again_loses_its_pages() -> None:
    """Best effort has no deadline: 20 tokens against 6."""
    scheduler = make_scheduler("fcfs", num_pages=8, page_size=4, context_len=32)
    driver = Driver(scheduler)
    driver.submit(make_request("long", 20, 10))
    driver.submit(make_request("short", 6, 10))
    while not scheduler.totals.num_preemptions:
        driver.step()
    assert scheduler.sequence("short").num_preemptions == 1


@pytest.mark.parametrize("ahead", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_what_has_ended_leaves_no_state_behind(policy: str, ahead: float) -> None:
    """A server runs for months: a sequence that stays in some dict is a leak."""

    def count() -> int:
        gc.collect()
        return sum(type(o) is Sequence for o in gc.get_objects())

    before = count()
    driver = random_run(policy, seed=5, num_requests=60, ahead=ahead, bad_tokens=True)
    assert len(driver.stories) == 60
    assert count() == before


def test_a_policy_that_gives_room_to_nobody_is_a_fault_and_no_endless_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request(), 0.0)
    monkeypatch.setattr(scheduler.policy, "room", lambda work, sequence: 0)
    with pytest.raises(AssertionError, match="room to nobody"):
        scheduler.plan(0.0)
