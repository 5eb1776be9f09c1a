"""What happens when the memory runs out: page by page, with sizes worked out by hand."""

from __future__ import annotations

import random
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.niyama import MAX_GIVEN
from engine.deciding.plan import Work
from engine.deciding.request import BEST_EFFORT, Importance, Targets
from engine.deciding.sequence import Status
from engine.deciding.streams import Streams
from tests.engine.deciding.parts import Driver, deadline, interactive, make_request, make_scheduler

SOON = interactive(100.0, 0.1)


def test_streams_that_sat_out_rejoin_when_the_one_they_waited_for_loses_its_pages() -> None:
    """ "calm" holds 3 of 16 pages and sits out, since the gap of "tight" (2 * 0.55 ms) has room for
    one decode of 1.1 ms and not for two. When "tight" needs a 14th page it has more slack (of
    100 s) than "calm" (of 50 s), so it loses its own, and cannot start again beside "calm".
    """
    driver = Driver(make_scheduler(num_pages=16, page_size=4, context_len=64, prefix_caching=False))
    driver.submit(make_request("calm", prompt=8, output=6, targets=deadline(50.0)))
    driver.step()
    driver.submit(make_request("tight", prompt=40, output=24, targets=interactive(100.0, 0.00055)))
    sequence = driver.scheduler.sequence
    while not sequence("tight").num_preemptions:
        held = driver.scheduler.stats().num_held
        driver.step()
    assert held == 1, "it sat out until then"
    assert sequence("tight").status is Status.WAITING
    assert driver.scheduler.stats().num_held == 0
    driver.drain()


def test_work_that_can_wait_leaves_places_open_for_interactive_requests() -> None:
    """Of 16 places, deadline requests take 14 (7/8), whatever their number, once an interactive
    request was seen; one that comes then starts at once, and so does a second.
    """
    driver = Driver(make_scheduler(num_pages=400, page_size=4, context_len=64, max_batch_size=16))
    driver.submit(make_request("first", prompt=4, output=1, targets=interactive(5.0, 5.0)))
    driver.drain()
    for i in range(30):
        driver.submit(make_request(f"bulk{i}", prompt=4, output=50, targets=deadline(100.0)))
    while driver.scheduler.stats().num_running < 14:
        driver.step()
    driver.step()
    assert driver.scheduler.stats().num_running == 14
    for name in ("chat0", "chat1"):
        driver.submit(make_request(name, prompt=4, output=5, targets=interactive(5.0, 5.0)))
    driver.step()
    assert driver.scheduler.sequence("chat0").status is Status.DECODING
    assert driver.scheduler.sequence("chat1").status is Status.DECODING
    driver.drain()


def test_the_places_stay_open_where_an_interactive_request_behind_can_wait() -> None:
    """Others may come that cannot."""
    driver = Driver(make_scheduler(num_pages=400, page_size=4, context_len=64, max_batch_size=16))
    for i in range(30):
        driver.submit(make_request(f"bulk{i}", prompt=4, output=50, targets=deadline(100.0)))
    driver.submit(make_request("calm", 4, 5, at=driver.now, targets=interactive(500.0, 5.0)))
    while driver.scheduler.stats().num_running < 14:
        driver.step()
    driver.step()
    assert driver.scheduler.stats().num_running == 14
    driver.submit(make_request("chat", 4, 5, at=driver.now, targets=interactive(0.05, 0.05)))
    driver.step()
    assert driver.scheduler.sequence("chat").status is Status.DECODING
    assert driver.scheduler.sequence("calm").status is Status.WAITING
    driver.drain()


@pytest.mark.parametrize(("factor", "takes"), [(0.9, True), (1.1, False)])
def test_a_kept_place_is_no_use_to_who_is_due_before_the_one_ahead_ends(
    factor: float, takes: bool
) -> None:
    """Until it has had a turn itself: then there is a place for it, or for nobody."""
    scheduler = make_scheduler(context_len=512, max_batch_size=16)
    scheduler.submit(make_request("report", 4, 300, targets=deadline(100.0)), 0.0)
    policy, report = scheduler.policy, scheduler.sequence("report")
    ttft_s = factor * policy.demand.decoding_s(report)
    scheduler.submit(make_request("chat", 4, 5, targets=interactive(ttft_s, 5.0)), 0.0)
    policy.begin(Streams(), Work(), 0.0)
    assert policy.takes_kept_place(report) is takes
    assert list(policy.order(scheduler.roster.waiting, 0.0)) == [scheduler.sequence("chat"), report]
    assert not policy.takes_kept_place(report)


def test_where_nothing_interactive_comes_work_that_can_wait_takes_every_place() -> None:
    driver = Driver(make_scheduler(num_pages=400, page_size=4, context_len=64, max_batch_size=16))
    for i in range(30):
        driver.submit(make_request(f"bulk{i}", prompt=4, output=50, targets=deadline(100.0)))
    while driver.scheduler.stats().num_running < 16:
        assert driver.step() is not None
    driver.drain()


def test_nobody_is_measured_against_an_iteration_who_finds_no_place() -> None:
    """The batch has one place, which "first" has; so there is no room to be asked for, though 20
    others wait, and the policy is told of the one whose turn it was.
    """
    driver = small(max_batch_size=1)
    driver.submit(make_request("first", prompt=4, output=10))
    driver.step()
    for i in range(20):
        driver.submit(make_request(f"other{i}", prompt=4, output=1))
    policy = driver.scheduler.policy
    with (
        mock.patch.object(policy, "room", wraps=policy.room) as room,
        mock.patch.object(policy, "crowded_out", wraps=policy.crowded_out) as crowded_out,
    ):
        driver.step()
    assert not room.called
    assert [call.args[0].id for call in crowded_out.call_args_list] == ["other0"]
    driver.drain()


def most_begun(driver: Driver, are_coming: bool) -> int:
    """How many requests with long prompts had begun at most, while short ones came or none did."""
    most = 0
    for i in range(100):
        if are_coming:
            driver.submit(make_request(f"short{i}", prompt=4, output=1, targets=SOON))
        if driver.step() is None:
            break
        roster = driver.scheduler.roster
        begun = [s for s in (*roster.running, *roster.partial) if len(s.request.prompt) > 4]
        most = max(most, len(begun))
    return most


def test_where_much_is_given_up_it_leaves_a_quarter_of_the_memory_to_those_that_come() -> None:
    """Six of these prompts fit into the memory, and four into three quarters of it."""
    late, missed = small(), small()
    for i in range(10):
        for driver in (late, missed):
            driver.submit(make_request(f"long{i}", 250, 40, targets=interactive(0.01, 0.1)))
    assert most_begun(late, are_coming=True) == 4
    assert most_begun(missed, are_coming=False) > 4, "nobody comes for whom to keep a place"


def test_where_much_is_given_up_best_effort_that_comes_later_waits_behind_it() -> None:
    """Places are taken by best effort, of which four always wait, and become free one by one."""
    driver = small(max_batch_size=32)
    rng = random.Random(1)
    lengths = iter(rng.randint(50, 250) for _ in range(10_000))
    began: dict[str, float] = {}
    for i in range(3000):
        while driver.scheduler.stats().num_waiting < 4:
            name = f"free{len(driver.stories)}"
            driver.submit(make_request(name, 8, next(lengths), at=driver.now))
        if i % 20 == 0:
            driver.submit(make_request(f"short{i}", 2, 1, targets=SOON, at=driver.now))
        if i % 400 == 200:
            lost = make_request(f"lost{i}", 60, 100, targets=interactive(0.001, 0.1), at=driver.now)
            driver.submit(lost)
        driver.step()
        for sequence in (*driver.scheduler.roster.running, *driver.scheduler.roster.partial):
            began.setdefault(sequence.id, driver.now - sequence.request.arrived_at)
    waits = [wait for name, wait in began.items() if name.startswith("lost")]
    assert len(waits) == 7
    assert max(waits) < 2.0


# Who gives memory for whom. MILLI: a prompt of n tokens takes a little more than n ms.


def small(max_batch_size: int = 64) -> Driver:
    """A memory of 1,600 positions, of which deadline requests and best effort take 1,400."""
    return Driver(
        make_scheduler(
            num_pages=400,
            page_size=4,
            context_len=1600,
            max_batch_size=max_batch_size,
            prefix_caching=False,
        )
    )


def gifts(driver: Driver, name: str) -> list[str]:
    """How often a request gave its memory, and for whom."""
    decisions = driver.scheduler.explain(name).decisions
    return [d.detail for d in decisions if d.kind == "preempted" and "another" in d.detail]


def is_met(driver: Driver, name: str) -> bool:
    finished = driver.stories[name].finished
    assert finished is not None
    return finished.timings.ttft_met is not False and finished.timings.ttlt_met is not False


def test_best_effort_that_has_begun_gives_its_memory_for_who_would_be_late() -> None:
    """It holds 640 positions, and has 0.6 s of prefill and 0.5 s of decodes before it frees them;
    the other needs 1,000, takes 1.0 s, and is due in 1.3 s.
    """
    driver = small()
    driver.submit(make_request("patient", prompt=1200, output=400))
    while driver.scheduler.sequence("patient").num_computed < 640:
        driver.step()
    driver.submit(make_request("chat", 1000, 5, at=driver.now, targets=interactive(1.3, 0.5)))
    driver.drain()
    assert is_met(driver, "chat")
    assert gifts(driver, "patient") == ["another needed its memory (saves chat)"]


def test_so_does_a_place_in_a_small_batch() -> None:
    driver = small(max_batch_size=1)
    driver.submit(make_request("patient", prompt=1000, output=50))
    driver.step()
    driver.submit(make_request("chat", 100, 5, at=driver.now, targets=interactive(0.5, 0.5)))
    driver.drain()
    assert is_met(driver, "chat")


def test_who_can_wait_for_the_end_of_another_takes_no_memory() -> None:
    driver = small()
    driver.submit(make_request("patient", prompt=1200, output=50))
    driver.step()
    driver.submit(make_request("chat", 600, 5, at=driver.now, targets=interactive(60.0, 0.5)))
    driver.drain()
    assert is_met(driver, "chat")
    assert not gifts(driver, "patient")


def test_a_promised_prefill_gives_its_memory_while_it_has_time_to_be_computed_again() -> None:
    """As above; but where it would then be late itself, the other is."""
    for ttlt_s, gives in ((20.0, True), (2.5, False)):
        driver = small()
        driver.submit(make_request("batch", 1200, 400, targets=deadline(ttlt_s)))
        while driver.scheduler.sequence("batch").num_computed < 640:
            driver.step()
        driver.submit(make_request("chat", 1000, 5, at=driver.now, targets=interactive(1.3, 0.5)))
        driver.drain()
        assert bool(gifts(driver, "batch")) == gives
        assert is_met(driver, "batch")
        assert is_met(driver, "chat") == gives


@pytest.mark.parametrize("targets", [BEST_EFFORT, deadline(20.0)])
@pytest.mark.parametrize("giver", Importance)
@pytest.mark.parametrize("urgent", Importance)
def test_nobody_takes_memory_from_what_is_more_important(
    targets: Targets, giver: Importance, urgent: Importance
) -> None:
    driver = small()
    driver.submit(make_request("patient", 1200, 400, targets=targets, importance=giver))
    while driver.scheduler.sequence("patient").num_computed < 640:
        driver.step()
    wanted = interactive(1.3, 0.5)
    driver.submit(make_request("chat", 1000, 5, driver.now, wanted, importance=urgent))
    driver.drain()
    assert bool(gifts(driver, "patient")) == (urgent >= giver)
    assert is_met(driver, "chat") == (urgent >= giver)


def test_the_turn_of_a_prompt_without_memory_keeps_nobody_out() -> None:
    """A large best-effort prompt has earned its turn after 50 of the others or so, of whom one
    always runs, so that there is no memory for it.
    """
    driver = small()
    names = [f"chat{i}" for i in range(120)]
    for name in names:
        driver.submit(make_request(name, 100, 150, at=driver.now, targets=interactive(0.5, 0.5)))
        if name == "chat0":
            driver.step()
            driver.submit(make_request("patient", 1500, 5, at=driver.now))
        until = driver.now + 0.15
        while driver.now < until:
            assert driver.step() is not None
    assert not driver.scheduler.sequence("patient").pages
    driver.drain()
    assert all(is_met(driver, name) for name in names)


def test_a_prompt_beyond_the_patient_share_starts_beside_others() -> None:
    """It needs 1,500 of 1,600 positions, 100 more than patient work may take, and the stream holds
    50: it need not wait for the stream's end.
    """
    for targets in (deadline(30.0), BEST_EFFORT):
        driver = small()
        driver.submit(make_request("stream", 10, 40, targets=interactive(1.0, 0.5)))
        driver.step()
        driver.submit(make_request("large", 1500, 2, at=driver.now, targets=targets))
        driver.step()
        assert driver.scheduler.sequence("large").pages
        driver.drain()


WANTED = st.sampled_from((BEST_EFFORT, interactive(0.3, 0.05), deadline(1.0), deadline(30.0)))
ASKED = st.tuples(st.integers(1, 1500), st.integers(1, 60), WANTED, st.integers(0, 400))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(ASKED, min_size=2, max_size=12), st.sampled_from((1, 2, 64)))
def test_memory_is_not_given_to_and_fro(
    asked: list[tuple[int, int, Targets, int]], max_batch_size: int
) -> None:
    """Whoever comes and whatever they need: everybody ends, and nobody gives more than MAX_GIVEN
    times, so that at most as many times all prompts together are computed again for others.
    """
    driver = small(max_batch_size)
    for i, (prompt, output, targets, gap_ms) in enumerate(asked):
        driver.submit(make_request(f"r{i}", prompt, output, at=driver.now, targets=targets))
        until = driver.now + 1e-3 * gap_ms
        while driver.now < until and driver.in_flight:
            driver.step()
    driver.drain()
    for name, story in driver.stories.items():
        assert story.finished is not None
        assert len(story.token_at) == story.request.sampling.max_tokens
        assert len(gifts(driver, name)) <= MAX_GIVEN
