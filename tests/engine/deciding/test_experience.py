"""What is learnt from how requests fare: the chance of lateness, and promises that are kept."""

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.experience import (
    MEMORY,
    MOST_RISK,
    MOST_SLOWDOWN,
    STEP,
    TILINGS,
    Experience,
    Likeness,
)
from engine.deciding.plan import Accepted
from engine.deciding.request import BEST_EFFORT, Importance, Sampling
from engine.deciding.sequence import FinishReason
from engine.simulator import STOP, Arrival, Result, simulate
from tests.engine.deciding.parts import (
    Driver,
    deadline,
    interactive,
    is_late,
    late_share,
    make_replica,
    make_request,
    make_scheduler,
    make_sequence,
    poisson,
    serve,
)
from tests.engine.deciding.test_tenants import by_tenant

LIKE = Likeness.of(Importance.NORMAL, 2.0, 0.1)

likes = st.builds(
    Likeness.of,
    st.sampled_from(Importance),
    st.floats(0.0, 1e6),
    st.floats(0.0, 1e6),
)
outcomes = st.lists(st.tuples(likes, st.booleans()), max_size=60)


def experienced(seen: Iterable[tuple[Likeness, bool]]) -> Experience:
    experience = Experience()
    for index, (like, late) in enumerate(seen):
        experience.told(make_sequence(f"r{index}"), like, 1.0)
        experience.learn(f"r{index}", late)
    return experience


@given(likes)
def test_without_experience_the_plain_forecast_speaks(like: Likeness) -> None:
    assert Experience().late_chance(like) == (like.margin < 0)


@given(outcomes, likes)
def test_a_chance_is_one_and_has_the_same_value_whenever_it_is_asked(
    seen: list[tuple[Likeness, bool]], like: Likeness
) -> None:
    experience = experienced(seen)
    chance = experience.late_chance(like)
    assert 0 <= chance <= 1
    assert experience.late_chance(like) == chance == experienced(seen).late_chance(like)


@given(outcomes, likes)
def test_an_outcome_never_moves_the_chance_of_the_same_the_wrong_way(
    seen: list[tuple[Likeness, bool]], like: Likeness
) -> None:
    before = experienced(seen).late_chance(like)
    assert experienced([*seen, (like, True)]).late_chance(like) >= before - 1e-12
    assert experienced([*seen, (like, False)]).late_chance(like) <= before + 1e-12


@given(outcomes, likes)
def test_only_requests_of_the_same_importance_and_nearby_count(
    seen: list[tuple[Likeness, bool]], like: Likeness
) -> None:
    """More than a cell away in either direction, nothing is learnt."""
    near = [
        (each, late)
        for each, late in seen
        if each.importance is like.importance
        and abs(each.margin - like.margin) <= 1
        and abs(each.work - like.work) <= 1
    ]
    assert experienced(seen).late_chance(like) == pytest.approx(
        experienced(near).late_chance(like), abs=1e-12
    )


@given(likes, likes)
def test_the_nearer_the_more_cells_in_common(one: Likeness, other: Likeness) -> None:
    common = len(set(one.cells()) & set(other.cells()))
    if one == other:
        assert common == TILINGS
    away = max(abs(one.margin - other.margin), abs(one.work - other.work))
    if one.importance is other.importance:
        assert common >= TILINGS - 2 * (1 + int(TILINGS * away))  # each line crossed costs a cell


@given(st.lists(st.booleans(), min_size=1, max_size=MEMORY))
def test_the_chance_is_the_share_of_the_late_and_one_vote_of_the_plain_forecast(
    fates: list[bool],
) -> None:
    experience = experienced((LIKE, late) for late in fates)
    assert experience.late_chance(LIKE) == pytest.approx(sum(fates) / (len(fates) + 1))


@pytest.mark.parametrize("then", [True, False])
def test_what_has_changed_is_followed(then: bool) -> None:
    """After a long time of one kind, twice the memory of the other turns what is said."""
    fates = [not then] * 1000 + [then] * (4 * MEMORY)
    chance = experienced((LIKE, late) for late in fates).late_chance(LIKE)
    assert (chance >= MOST_RISK) == then


@given(outcomes)
def test_what_is_remembered_is_bounded(seen: list[tuple[Likeness, bool]]) -> None:
    """Whatever callers ask for, values are clamped: 8 by 20 cells at most for each tiling."""
    cells = {cell for like, _ in seen for cell in like.cells()}
    assert all(-3 <= across <= 4 and -9 <= along <= 12 for _, _, across, along in cells)
    assert len(experienced(seen)) == 0


# When an outcome counts


def test_an_outcome_counts_once_and_the_first_does() -> None:
    """As for one that was relegated, and whose deadline passes after that, before it ends."""
    experience = Experience()
    experience.told(make_sequence("r"), LIKE, 1.0)
    experience.learn("r", is_late=True)
    once = experience.late_chance(LIKE)
    experience.learn("r", is_late=False)
    experience.learn("never told", is_late=False)
    assert experience.late_chance(LIKE) == once


def test_a_deadline_that_passes_counts_at_once_unless_the_first_token_is_there() -> None:
    """A is to have ended by 1, B and C their first tokens, of which only B's came."""
    experience = Experience()
    sequences = {
        "a": make_sequence("a", targets=deadline(1.0)),
        "b": make_sequence("b", targets=interactive(1.0, 0.5)),
        "c": make_sequence("c", targets=interactive(1.0, 0.5)),
    }
    for sequence in sequences.values():
        experience.told(sequence, LIKE, 2.0)
    for came in ("a", "b"):
        sequences[came].expect_token(0.5)
        sequences[came].take_token(0, 0.9)
    experience.pass_time(sequences, 1.0)
    assert len(experience) == 3, "it is not late yet"
    experience.pass_time(sequences, 1.01)
    assert len(experience) == 1
    assert experience.late_chance(LIKE) == pytest.approx(2 / 3)
    experience.learn("b", is_late=False)
    assert experience.late_chance(LIKE) == pytest.approx(2 / 4)


def test_nothing_is_learnt_of_who_leaves_or_has_no_target() -> None:
    driver = Driver(make_scheduler())
    experience = driver.scheduler.experience
    driver.submit(make_request("leaves", 100, 50, targets=interactive(5.0, 1.0)))
    driver.submit(make_request("patient", 100, 50, targets=BEST_EFFORT))
    assert len(experience) == 1
    driver.step()
    driver.cancel("leaves")
    driver.drain()
    assert len(experience) == 0
    again = make_request("again", 100, 50, targets=interactive(5.0, 1.0))
    (said,) = driver.scheduler.submit(again, driver.now)
    assert isinstance(said, Accepted)
    assert said.on_time


def test_who_gave_its_place_to_others_counts_as_late() -> None:
    scheduler = make_scheduler()
    for at, on_time in ((0.0, True), (1.0, False)):
        request = make_request("r", 100, 5, at, interactive(5.0, 1.0))
        (said,) = scheduler.submit(request, at)
        assert isinstance(said, Accepted)
        assert said.on_time == on_time
        scheduler.cancel("r", FinishReason.DISPLACED, at + 0.5)


# How slow


@given(st.floats(0.2, 20.0), st.lists(st.floats(0.1, 10.0), min_size=400, max_size=400))
def test_half_come_earlier_than_told_and_half_later(pace: float, works: list[float]) -> None:
    """Where every second of work takes `pace` seconds, what is told comes to say so."""
    experience = Experience()
    for index, work_s in enumerate(works):
        request_id = f"r{index}"
        experience.told(make_sequence(request_id), LIKE, experience.slowdown * work_s)
        experience.began(request_id, pace * work_s)
        experience.learn(request_id, is_late=False)
    assert pace / STEP**2 <= experience.slowdown <= pace * STEP**2


def test_who_was_given_up_does_not_say_how_slow_the_others_are() -> None:
    experience = Experience()
    experience.told(make_sequence("r"), LIKE, 1.0)
    experience.learn("r", is_late=True)
    experience.began("r", 100.0)
    assert experience.slowdown == 1.0


def test_a_first_token_that_is_overdue_is_later_than_told() -> None:
    experience, sequence = Experience(), make_sequence("r", targets=interactive(2.0, 1.0))
    experience.told(sequence, LIKE, 1.0)
    experience.pass_time({"r": sequence}, 3.0)
    assert experience.slowdown == STEP
    experience.began("r", 4.0)
    assert experience.slowdown == STEP, "once"


@pytest.mark.parametrize(("first_at", "slowdown"), [(1.9, 1 / STEP), (2.1, STEP)])
def test_a_deadline_before_the_instant_told_does_not_hide_whether_it_is_kept(
    first_at: float, slowdown: float
) -> None:
    """Told for 2 s and due at 1 s, it has no token by then: that is not earlier than told yet."""
    experience, sequence = Experience(), make_sequence("r", targets=interactive(1.0, 1.0))
    experience.told(sequence, LIKE, 2.0)
    experience.pass_time({"r": sequence}, 1.5)
    assert experience.slowdown == 1.0
    experience.began("r", first_at)
    experience.pass_time({"r": sequence}, 9.0)
    assert experience.slowdown == slowdown


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 900)), max_size=6))
def test_the_slowdown_is_bounded_whatever_comes(runs: list[tuple[bool, int]]) -> None:
    experience = Experience()
    for is_later, count in runs:
        for _ in range(count):
            experience.told(make_sequence("r"), LIKE, 1.0)
            experience.began("r", 2.0 if is_later else 0.5)
            experience.forget("r")
        assert 1 / MOST_SLOWDOWN <= experience.slowdown <= MOST_SLOWDOWN


# Promises under load


def mixed(
    rate: float, seed: int, low: float = 0.0, policy: str = "niyama", ttft_s: float = 1.0
) -> list[Result]:
    """Returns what became of 8 minutes of chat with TTFT 1 s and TBT 25 ms, and of work due in one
    minute and in three, in equal parts; a share `low` is of low importance. Lengths are lognormal
    with the median and the ninth decile of Azure-Code; those of outputs nobody knows beforehand.
    """
    rng = random.Random(seed)
    sampling = Sampling(max_tokens=2048, stop_token_ids=frozenset((STOP,)))
    arrivals = []
    for index, at in enumerate(poisson(rate, 480.0, rng)):
        prompt = min(12_000, 1 + int(rng.lognormvariate(7.57, 0.92)))
        output = min(2_048, 1 + int(rng.lognormvariate(2.08, 1.31)))
        targets = rng.choice((interactive(ttft_s, 0.025), deadline(60.0), deadline(180.0)))
        importance = Importance.LOW if rng.random() < low else Importance.NORMAL
        request = make_request(
            f"r{index}", prompt, at=at, targets=targets, importance=importance, sampling=sampling
        )
        request = replace(request, application=f"due in {targets.ttlt_s}")
        arrivals.append(Arrival(request, output_len=output))
    return list(simulate(arrivals, [make_replica(policy)]))


def promises(results: Iterable[Result]) -> tuple[float, float, int]:
    """Returns the share of broken promises, the share of the late that were foretold, and how many
    were warned needlessly.
    """
    told = [(each.promised, is_late(each)) for each in results]
    broken, foretold = told.count((True, True)), told.count((False, True))
    kept, needless = told.count((True, False)), told.count((False, False))
    return broken / (broken + kept), foretold / max(1, foretold + broken), needless


@pytest.mark.parametrize(("seed", "low"), [(0, 0.0), (1, 0.0), (2, 0.3)])
def test_promises_are_kept_under_a_sustained_overload(seed: int, low: float) -> None:
    """At five a second one in ten is late. Nearly all of those were once told that they would be on
    time: who was to make them late had not come yet.
    """
    results = mixed(5.0, seed, low)
    broken, recall, _ = promises(results)
    assert late_share(results) > 0.05
    assert broken <= 0.1
    assert recall >= 0.7


@pytest.mark.parametrize("policy", ["edf", "edf-dynamic", "qoserve", "fairbatching"])
def test_other_policies_keep_their_promises_too(policy: str) -> None:
    results = mixed(3.0, 0, policy=policy)
    broken, recall, _ = promises(results)
    assert late_share(results) > 0.05
    assert broken <= 0.1
    assert recall >= 0.7


def test_nobody_is_warned_needlessly_where_nearly_all_are_on_time() -> None:
    """Also where only a prompt that takes longer than its TTFT by itself is late."""
    broken, _, needless = promises(mixed(2.0, 0, ttft_s=6.0))
    assert broken == needless == 0
    results = mixed(1.0, 0)
    broken, _, needless = promises(results)
    assert broken <= 0.01
    assert needless <= 0.02 * len(results)


def test_who_asks_for_more_than_its_part_is_not_compared_with_the_others() -> None:
    """One of ten tenants floods; that it is late says nothing of the others, of whom nobody is."""
    requests = by_tenant(1.5, 3)
    results = serve(requests, make_replica()).values()
    assert late_share(r for r in results if r.request.tenant == "flood") > 0.4
    others = [r for r in results if r.request.tenant != "flood"]
    assert all(r.promised and not is_late(r) for r in others)
