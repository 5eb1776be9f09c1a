"""The histories of all sites are bounded, and nobody's calls touch another tenant's."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inferring.calls import CallSite, Ended, site_of
from engine.inferring.habits import Habits, Learnt, Observed
from tests.engine.inferring.parts import STREAM, UNARY, ended, endings, sites


@settings(max_examples=40)
@given(st.lists(st.tuples(sites, endings), max_size=150), st.integers(1, 12))
def test_it_keeps_to_its_bound_and_tells_each_change(
    calls: list[tuple[CallSite, Ended]], most: int
) -> None:
    """Whoever follows what is told knows what is known, no more and no less."""
    habits, told = Habits(most), {}
    for site, call in calls:
        for learnt in habits.observe(Observed(site, call)):
            told[learnt.site] = learnt.need
        assert len(habits) <= most
    assert {site: habit.need for site, habit in habits.known()} == {
        site: need for site, need in told.items() if need is not None
    }


@settings(max_examples=40)
@given(st.lists(st.tuples(sites, endings), max_size=100))
def test_nobody_s_calls_change_what_is_known_of_others(
    calls: list[tuple[CallSite, Ended]],
) -> None:
    together = Habits()
    for each in calls:
        together.observe(Observed(*each))
    known = {site: habit.need for site, habit in together.known()}
    for tenant in ("", "a", "b"):
        alone = Habits()
        for site, call in calls:
            if site.tenant == tenant:
                alone.observe(Observed(site, call))
        own = {site: need for site, need in known.items() if site.tenant == tenant}
        assert {site: habit.need for site, habit in alone.known()} == own


def test_invented_names_cost_only_the_share_of_who_invents_them() -> None:
    habits = Habits(most_sites=40)
    kept = [site_of("acme", "acme", f"app{i}", False) for i in range(10)]
    for site in kept:
        for _ in range(16):
            habits.observe(Observed(site, ended()))
    for i in range(1000):
        habits.observe(Observed(site_of("", f"t{i}", f"x{i}", True), ended()))
    assert [site for site, _ in habits.known()] == kept
    assert len(habits) == 40


def test_a_share_that_comes_late_has_its_part() -> None:
    habits = Habits(most_sites=40)
    for i in range(1000):
        habits.observe(Observed(site_of("", "", f"x{i}", True), ended()))
    late = [site_of("acme", "acme", f"app{i}", False) for i in range(20)]
    for _ in range(16):
        for site in late:
            habits.observe(Observed(site, ended()))
    assert Counter(site.share for site, _ in habits.known()) == {"acme": 20}


def test_what_is_forgotten_is_told() -> None:
    habits = Habits(most_sites=1)
    told = [learnt for _ in range(16) for learnt in habits.observe(Observed(UNARY, ended()))]
    assert [learnt.site for learnt in told] == [UNARY]
    assert habits.observe(Observed(STREAM, ended())) == [Learnt(UNARY, None)]
