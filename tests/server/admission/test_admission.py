"""Who is admitted, refused and displaced: the rule by itself."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.deciding.request import EVERYBODY_ELSE, Importance
from engine.linking.errors import DuplicateRequest
from server.admission.admission import REMEMBERED_S, Admission
from server.admission.places import KEPT_PERCENT, Entry, Use
from server.errors import SPREAD, Refusal, Refused
from tests.server.admission.parts import HIGH, LOW, NORMAL, PLENTY, entry, filled, names, refused

# Importance


@pytest.mark.parametrize("flood", [LOW, NORMAL])
def test_high_calls_are_all_served_after_a_flood_of_less_important_ones(flood: Importance) -> None:
    admission = Admission(100, PLENTY)
    outcomes = Counter(refused(admission, entry(f"f{i}", flood)) for i in range(1500))
    assert outcomes[None] == 100 - KEPT_PERCENT[flood]
    displaced = [each for i in range(40) for each in admission.admit(entry(f"h{i}", HIGH), 1.0)]
    assert len(displaced) == 40 - KEPT_PERCENT[flood]
    assert len(set(displaced)) == len(displaced)
    again = Counter(refused(admission, entry(f"again{i}", flood), 1.0) for i in range(1500))
    assert again == {Refusal.QUEUE_FULL: 1500}, "who has given its place does not get it back"


def test_the_least_important_gives_way_and_of_those_the_largest_then_the_latest() -> None:
    admission = Admission(5, PLENTY)
    admission.admit(entry("normal", NORMAL, tokens=99), 0.0)
    admission.admit(entry("small", LOW, tokens=1), 0.0)
    for name in ("early", "late"):
        admission.admit(entry(name, LOW, tokens=5), 0.0)
    admission.admit(entry("large", LOW, tokens=9), 0.0)
    order = [names(admission.admit(entry(f"h{i}", HIGH), 0.0)) for i in range(5)]
    assert order == [["large"], ["late"], ["early"], ["small"], ["normal"]]
    assert refused(admission, entry("h9", HIGH)) is Refusal.QUEUE_FULL


def test_what_has_started_is_not_displaced_and_the_last_places_are_kept_for_the_important() -> None:
    admission = Admission(100, PLENTY)
    for importance in (LOW, NORMAL):
        for i in range(100):
            if refused(admission, entry(f"{importance}{i}", importance)) is None:
                admission.start(("", f"{importance}{i}"))
    assert admission.requests.by_importance == {LOW: 90, NORMAL: 5}
    assert [refused(admission, entry(f"h{i}", HIGH)) for i in range(5)] == [None] * 5
    assert refused(admission, entry("h5", HIGH)) is Refusal.QUEUE_FULL


def test_a_few_huge_calls_give_way_by_their_tokens() -> None:
    admission = Admission(1000, 10_000)
    for i in range(3):
        admission.admit(entry(f"huge{i}", LOW, tokens=3000), 0.0)
    assert refused(admission, entry("more", LOW, tokens=3000)) is Refusal.WORK_FULL
    assert names(admission.admit(entry("chat", HIGH, tokens=1500), 0.0)) == ["huge2"]
    assert admission.admit(entry("chat2", HIGH, tokens=1500), 0.0) == []


def test_one_call_of_any_size_finds_room_where_nothing_waits() -> None:
    admission = Admission(10, 100)
    admission.admit(entry("huge", LOW, tokens=5000), 0.0)
    assert refused(admission, entry("next", LOW)) is Refusal.WORK_FULL
    admission.start(("", "huge"))  # it waits no longer
    assert refused(admission, entry("next", LOW)) is None


def test_nobody_goes_where_that_would_not_be_enough() -> None:
    admission = Admission(10, 100)
    admission.admit(entry("normal", NORMAL, tokens=60), 0.0)
    admission.admit(entry("low", LOW, tokens=20), 0.0)
    assert refused(admission, entry("big", NORMAL, tokens=90)) is Refusal.WORK_FULL
    assert len(admission) == 2
    assert admission.requests.total == 2


def test_work_is_counted_as_it_turns_out() -> None:
    admission = Admission(10, 100)
    admission.admit(entry("guessed", NORMAL, tokens=90), 0.0)
    admission.resize(("", "guessed"), 10)
    assert refused(admission, entry("other", NORMAL, tokens=80)) is None


def test_a_call_counts_until_it_is_over() -> None:
    admission = filled(3, started=True, x=3)
    assert refused(admission, entry("c", share="x")) is Refusal.QUEUE_FULL
    with pytest.raises(DuplicateRequest):
        admission.admit(entry("x0", share="x"), 0.0)
    admission.leave(("x", "x0"))
    assert refused(admission, entry("x0", share="x")) is None


def test_an_id_is_its_tenant_s_own() -> None:
    admission = filled(9, a=1)
    theirs = entry("a0", share="b")
    admission.admit(theirs, 0.0)
    admission.leave(theirs.key)
    with pytest.raises(DuplicateRequest):
        admission.admit(entry("a0", share="a"), 0.0)


def test_a_tenant_that_is_named_while_its_call_is_in_flight_has_a_share_from_then_on() -> None:
    admission = Admission(10, PLENTY)
    admission.admit(Entry("acme", "x", EVERYBODY_ELSE, "chat", NORMAL, 1, 10), 0.0)
    with pytest.raises(DuplicateRequest):
        admission.admit(entry("x", share="acme"), 0.0)
    assert refused(admission, entry("y", share="acme")) is None
    assert refused(admission, entry("z")) is None
    assert admission.requests.held == {"": 2, "acme": 1}


def test_displaced_calls_that_do_not_end_are_no_way_round_the_limit() -> None:
    """Calls that wait, give their place, and hang on: at most as many as there are places."""
    admission = Admission(10, PLENTY)
    for turn in range(50):
        refused(admission, entry(f"low{turn}", LOW))
        if refused(admission, entry(f"high{turn}", HIGH)) is None:
            admission.leave(("", f"high{turn}"))
        admission.check()
    assert len(admission) <= 20


def test_a_refusal_tells_tier_importance_and_tenant() -> None:
    admission = filled(1, acme=1)
    with pytest.raises(Refused, match="of tenant 'acme' with tier 'chat' and importance low"):
        admission.admit(entry("low", LOW, "acme"), 0.0)
    told = admission.displaced(entry("low", LOW, "acme"), 0.0)
    assert told.about == {"tier": "chat", "importance": "low", "tenant": "acme"}
    assert "gave its place to more important work" in told.message


def test_a_question_changes_nothing() -> None:
    admission = filled(10, flood=10)
    refusal = admission.refusal(entry("?", NORMAL, "a", n=11), 0.0)
    assert refusal is not None
    assert refusal.refusal is Refusal.QUEUE_FULL
    admission.leave(("flood", "flood0"))
    assert refused(admission, entry("more", share="flood")) is None, "nobody else was there"


# Shares


def test_a_lone_share_may_use_the_whole_queue() -> None:
    assert refused(filled(10, flood=9), entry("x", share="flood")) is None
    assert refused(filled(10, flood=10), entry("x", share="flood")) is Refusal.QUEUE_FULL


def test_up_to_half_of_the_queue_nobody_is_held_to_a_share() -> None:
    assert refused(filled(10, flood=3, a=1), entry("x", share="flood")) is None
    beyond = entry("x", share="flood", n=4)
    assert refused(filled(10, flood=3, a=1), beyond) is Refusal.SHARE_USED
    assert refused(filled(14, flood=3, a=1, b=1, c=1), entry("x", share="flood")) is None


def test_beyond_half_each_active_share_has_its_part() -> None:
    assert refused(filled(12, flood=6, a=1), entry("x", share="flood")) is Refusal.SHARE_USED
    assert refused(filled(12, flood=6, a=5), entry("x", share="a")) is None
    assert refused(filled(12, flood=5, a=6), entry("x", share="a")) is Refusal.SHARE_USED
    assert refused(filled(12, flood=9), entry("x", share="b")) is None  # the caller is active


def test_a_part_goes_by_weight() -> None:
    heavy = [entry(f"h{i}", share="heavy", weight=3.0) for i in range(10)]
    admission = filled(12, light=2)
    assert [refused(admission, each) for each in heavy] == [None] * 9 + [Refusal.SHARE_USED]


def test_a_changed_weight_holds_for_what_is_in_the_queue_already() -> None:
    """The operator takes the weight of who has filled the queue away, so that others find room."""
    admission = Admission(12, PLENTY)
    heavy = [entry(f"h{i}", share="heavy", weight=100.0) for i in range(12)]
    assert [refused(admission, each) for each in heavy] == [None] * 12
    light = [entry(f"l{i}", share="light") for i in range(8)]
    assert [refused(admission, each) for each in light[:2]] == [None, Refusal.SHARE_USED]
    lighter = entry("h12", share="heavy")
    assert refused(admission, lighter) is Refusal.SHARE_USED
    assert [refused(admission, each) for each in light[1:]] == [None] * 5 + [Refusal.SHARE_USED] * 2
    assert admission.requests.held == {"heavy": 6, "light": 6}
    admission.check()


def test_more_shares_than_places_have_one_each() -> None:
    assert refused(filled(2, a=1), entry("x", share="c")) is None
    admission = filled(4, a=1, b=1, c=1)
    assert refused(admission, entry("x", share="a", n=2)) is Refusal.SHARE_USED
    assert refused(admission, entry("x", share="new")) is None


def test_invented_tenants_are_one_share_and_leave_a_named_one_its_half() -> None:
    admission = Admission(100, PLENTY)
    for i in range(10_000):
        invented = Entry(f"invented-{i}", "x", EVERYBODY_ELSE, "chat", NORMAL, 1, 10)
        refused(admission, invented)
    assert admission.requests.total == 95
    served = [refused(admission, entry(f"a{i}", share="acme")) for i in range(60)]
    assert served == [None] * 45 + [Refusal.QUEUE_FULL] * 15
    assert admission.requests.held == {"": 50, "acme": 45}
    assert len(admission.requests.held) == 2
    admission.check()


def test_an_equal_gives_way_only_where_its_share_is_beyond_its_part() -> None:
    admission = filled(12, flood=9, a=3)
    assert names(admission.admit(entry("mine", share="b"), 0.0)) == ["flood8"]
    assert refused(filled(12, started=True, flood=9, a=3), entry("x", share="b")) is not None
    assert refused(filled(6, a=2, b=2, c=2), entry("x", share="c")) is Refusal.SHARE_USED


def test_who_is_beyond_its_share_displaces_its_own_and_nobody_else() -> None:
    admission = filled(12, other=3)
    for i in range(6):
        admission.admit(entry(f"low{i}", LOW, "flood"), 0.0)
    assert names(admission.admit(entry("high", HIGH, "flood"), 0.0))[0].startswith("low")
    admission = Admission(12, PLENTY)
    for i in range(6):
        admission.admit(entry(f"high{i}", HIGH, "flood"), 0.0)
    for i in range(5):
        admission.admit(entry(f"low{i}", LOW, "other"), 0.0)
    assert refused(admission, entry("high", HIGH, "flood")) is Refusal.SHARE_USED


def test_who_found_the_queue_full_has_a_share_at_the_next_try() -> None:
    admission = filled(10, started=True, flood=10)
    with pytest.raises(Refused, match="the queue is full") as caught:
        admission.admit(entry("x", share="a"), 0.0)
    admission.leave(("flood", "flood0"))
    again = entry("again", share="flood")
    assert refused(admission, again, now=1.0) is Refusal.SHARE_USED  # the place is kept for "a"
    assert refused(admission, entry("x", share="a"), now=1.0) is None
    admission.leave(("a", "x"))
    later = 0.1 + REMEMBERED_S + (1 + SPREAD) * caught.value.retry_after_s
    assert refused(admission, again, now=later) is None  # "a" did not come back


def test_who_is_served_in_no_time_has_a_share_at_the_next_call() -> None:
    """One call after the other, each over at once, beside a flood that is more important and tries
    again at once: between two calls the flood took every place, and five of sixty were served.
    """
    admission = Admission(100, PLENTY)
    flood = [entry(f"f{i}", HIGH, "flood") for i in range(1000)]
    in_hand = [each for each in flood if refused(admission, each) is None]
    served = []
    for call in range(300):
        now = 0.1 * call
        admission.leave(in_hand.pop(0).key)
        asks = entry("acme", NORMAL, "acme")
        served.append(refused(admission, asks, now) is None)
        if served[-1]:
            admission.leave(asks.key)
        more = [entry(f"{call}/{i}", HIGH, "flood") for i in range(20)]
        in_hand += [each for each in more if refused(admission, each, now + 0.05) is None]
    first = served.index(True)
    assert first == KEPT_PERCENT[NORMAL], "as soon as what is kept for the important is free"
    assert all(served[first:])
    assert admission.requests.held == {"flood": 50}, "the flood has its part, and no less"


def test_other_limits_hold_for_who_comes_next() -> None:
    """Who has entered stays: a reload ends no call."""
    admission = Admission(10, 1000)
    entered = [entry(f"r{i}", HIGH) for i in range(10)]
    for each in entered:
        assert refused(admission, each, 0.0) is None
    admission.limit(5, 1000)
    admission.check()
    assert len(admission) == 10
    for each in entered[:5]:
        assert refused(admission, entry("more", HIGH), 0.0) is Refusal.QUEUE_FULL
        admission.leave(each.key)
    admission.leave(entered[5].key)
    assert refused(admission, entry("more", HIGH), 0.0) is None
    admission.limit(6, 1000)
    assert refused(admission, entry("one more", HIGH), 0.0) is None
    assert refused(admission, entry("too many", HIGH), 0.0) is Refusal.QUEUE_FULL


# What a tenant is allowed at once


def test_a_tenant_has_what_it_is_allowed_however_empty_the_queue_is() -> None:
    admission = filled(100, a=3, b=3)
    admission.limit(100, PLENTY, {"a": Use(3, 0)})
    assert refused(admission, entry("x", share="a")) is Refusal.TENANT_LIMIT
    assert refused(admission, entry("x", share="b")) is None
    admission.leave(("a", "a0"))
    assert refused(admission, entry("x", share="a")) is None
    admission.limit(100, PLENTY)
    assert refused(admission, entry("y", share="a")) is None


def test_beyond_it_only_its_own_less_important_calls_give_way() -> None:
    admission = filled(100, a=2, b=2)
    admission.limit(100, PLENTY, {"a": Use(2, 0)})
    assert names(admission.admit(entry("x", HIGH, "a"), 0.0)) == ["a1"]
    admission.start(("a", "a0"))  # and what has begun gives way to nobody
    assert refused(admission, entry("y", HIGH, "a")) is Refusal.TENANT_LIMIT


def test_waiting_work_is_allowed_for_one_call_whatever_its_size() -> None:
    admission = Admission(100, PLENTY)
    admission.limit(100, PLENTY, {"a": Use(0, 50)})
    assert refused(admission, entry("x", share="a", tokens=70)) is None
    assert refused(admission, entry("y", share="a", tokens=1)) is Refusal.TENANT_LIMIT
    admission.start(("a", "x"))
    assert refused(admission, entry("y", share="a", tokens=30)) is None
    with pytest.raises(Refused, match="as it may have at once: 50 tokens of waiting work"):
        admission.admit(entry("z", share="a", tokens=30), 0.0)
