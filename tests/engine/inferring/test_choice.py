"""What is inferred names the tier that meets a need, and is used only where it loosens."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.request import Importance, Request, Sampling, Targets
from engine.inferring.choice import choose
from engine.inferring.habit import Need, Shown
from engine.tiers import Tier, Tiers

CHAT = Tier("chat", Targets(ttft_s=1.0, tbt_s=0.05))
QUICK = Tier("quick", Targets(ttlt_s=1.0))
REPORT = Tier("report", Targets(ttlt_s=10.0), Importance.HIGH)
NIGHT = Tier("night", Targets(ttlt_s=60.0), Importance.LOW)


def tiers(*each: Tier) -> Tiers:
    """The first is the default one."""
    return Tiers({tier.name: tier for tier in each}, each[0].name)


def whole(by_s: float, output_len: int = 20) -> Need:
    return Need(Shown.WHOLE, by_s, output_len, "why")


WATCHED = Need(Shown.WATCHED, math.inf, 20, "why")
ALL = tiers(CHAT, QUICK, REPORT, NIGHT)


def test_the_loosest_tier_that_is_in_time_is_named() -> None:
    named = {by_s: choose(whole(by_s), ALL).tier.name for by_s in (0.5, 1, 5, 10, 59, math.inf)}
    assert named == {
        0.5: "chat",
        1: "quick",
        5: "quick",
        10: "report",
        59: "night",
        math.inf: "night",
    }


def test_what_is_watched_gets_the_default_tier_where_that_has_a_pace() -> None:
    choice = choose(WATCHED, ALL)
    assert choice.inferred is not None
    assert choice.inferred.tier == CHAT
    of_reports = tiers(REPORT, NIGHT, CHAT)
    assert choose(WATCHED, of_reports) == (CHAT, None)  # for the operator to approve


def test_what_is_tighter_than_the_default_tier_is_named_and_not_used() -> None:
    assert choose(whole(1.0), ALL) == (QUICK, None)
    assert choose(whole(1.0, output_len=1), ALL).inferred is not None  # due at 1 s as with chat
    assert choose(whole(10.0), tiers(NIGHT, REPORT)) == (REPORT, None)
    long = choose(whole(60.0, output_len=2000), ALL)  # by the default tier due after 101 s
    assert long == (NIGHT, None)


def test_patience_is_no_need_for_what_is_tighter() -> None:
    patient = Need(Shown.PATIENT, 1.0, 20, "why")
    choice = choose(patient, ALL)
    assert choice.tier == CHAT
    assert choice.inferred is not None
    assert choose(patient._replace(by_s=10.0), ALL).tier == REPORT
    assert choose(patient._replace(by_s=60.0, output_len=2000), ALL).tier == CHAT


def test_importance_is_not_inferred() -> None:
    for by_s in (10.0, 60.0):
        inferred = choose(whole(by_s), ALL).inferred
        assert inferred is not None
        assert inferred.tier.importance is CHAT.importance


targets = st.one_of(
    st.builds(
        Targets, st.floats(0.01, 50), st.floats(0.001, 2), max_gap=st.sampled_from([None, 2])
    ),
    st.builds(Targets, ttlt_s=st.floats(0.01, 2000)),
    st.just(Targets()),
)
some_tiers = st.lists(
    st.builds(Tier, st.sampled_from("abcdefgh"), targets, st.sampled_from(Importance)), min_size=1
).map(lambda each: tiers(*each))
needs = st.builds(
    Need,
    st.sampled_from(Shown),
    st.one_of(st.floats(0.01, 2000), st.just(math.inf)),
    st.integers(1, 4096),
    st.just("why"),
)


def due(request_targets: Targets, n: int) -> float:
    request = Request("r", range(1), Sampling(), 0.0, request_targets)
    return request.token_due_at(n)


@given(needs, some_tiers, st.data())
def test_nobody_is_due_earlier_by_what_was_inferred(
    need: Need, known: Tiers, data: st.DataObject
) -> None:
    """So nobody else has to make way who would not have had to before."""
    choice, default = choose(need, known), known.tiers[known.default]
    assert choice.tier in known.tiers.values()
    if choice.inferred is None:
        return
    used = choice.inferred.tier
    assert used == replace(choice.tier, importance=default.importance)
    n = data.draw(st.integers(1, need.output_len))
    assert due(used.targets, n) >= due(default.targets, n) - 1e-9
