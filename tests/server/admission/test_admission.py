"""Who is admitted, refused and displaced: the rule by itself, under everything that may happen."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.deciding.request import EVERYBODY_ELSE, Importance, Share
from engine.linking.errors import DuplicateRequest
from server.admission.admission import REMEMBERED_S, Admission
from server.admission.places import KEPT_PERCENT, Entry, Use
from server.errors import SPREAD, Refusal, Refused

LOW, NORMAL, HIGH = Importance.LOW, Importance.NORMAL, Importance.HIGH
PLENTY = 10**9  # tokens


def entry(
    name: str,
    importance: Importance = NORMAL,
    share: str = "",
    n: int = 1,
    tokens: int = 10,
    weight: float = 1.0,
) -> Entry:
    """Of a tenant that is called as its share."""
    of = Share(share, weight) if share else EVERYBODY_ELSE
    return Entry(share, name, of, "chat", importance, n, tokens)


def filled(size: int, max_tokens: int = PLENTY, started: bool = False, **calls: int) -> Admission:
    """`calls`: how many of each share."""
    admission = Admission(size, max_tokens)
    for share, count in calls.items():
        for i in range(count):
            admission.admit(entry(f"{share}{i}", NORMAL, share), 0.0)
            if started:
                admission.start((share, f"{share}{i}"))
    return admission


def refused(admission: Admission, asks: Entry, now: float = 0.0) -> Refusal | None:
    """Why; None where it is admitted."""
    try:
        admission.admit(asks, now)
    except Refused as error:
        return error.refusal
    return None


def names(entries: list[Entry]) -> list[str]:
    return [each.request_id for each in entries]


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


# Everything that may happen


class AnyLoad(RuleBasedStateMachine):
    """Calls come, turn out larger, start and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(20, 200)
        self.alive: dict[tuple[str, str], Entry] = {}
        self.displaced: set[tuple[str, str]] = set()
        self.started: set[tuple[str, str]] = set()
        self.shares: dict[str, Share] = {}  # by name, as they last called
        self.active_until: dict[str, float] = {}  # by the share's name
        self.count = 0
        self.now = 0.0

    @rule(
        importance=st.sampled_from(Importance),
        share=st.sampled_from(["", "a", "b"]),
        n=st.integers(1, 4),
        tokens=st.integers(1, 90),
        weight=st.sampled_from([1.0, 1.0, 3.0]),
        passes=st.floats(0.0, 1.0),
    )
    def arrive(
        self,
        importance: Importance,
        share: str,
        n: int,
        tokens: int,
        weight: float,
        passes: float,
    ) -> None:
        self.count += 1
        self.now += passes
        asks = entry(f"r{self.count}", importance, share, n, tokens, weight)
        self.shares[share] = asks.share
        self.stays_active(share, REMEMBERED_S)
        before = self.waiting()
        foretold = self.admission.refusal(asks, self.now)
        try:
            victims = self.admission.admit(asks, self.now)
        except Refused as refusal:
            reason, retry_s = refusal.refusal, refusal.retry_after_s
            self.stays_active(share, REMEMBERED_S + (1 + SPREAD) * retry_s)
        else:
            reason, retry_s = None, None
        told = None if foretold is None else (foretold.refusal, foretold.retry_after_s)
        assert told == (None if reason is None else (reason, retry_s))
        if reason is None:
            self.check_admitted(asks, victims, before)
        else:
            assert self.waiting() == before, "a refusal displaces nobody"
            self.check_refused(asks, reason, before)

    def check_admitted(self, asks: Entry, victims: list[Entry], before: set[Entry]) -> None:
        """Nobody less important displaces, and everybody is told once."""
        self.alive[asks.key] = asks
        for victim in victims:
            assert victim.key not in self.displaced
            assert victim in before
            is_equal = victim.importance == asks.importance
            is_other = victim.share.name != asks.share.name
            assert is_other if is_equal else victim.importance < asks.importance
            self.displaced.add(victim.key)
        assert len(set(victims)) == len(victims)
        if not any(victim.share.name == asks.share.name for victim in victims):
            highest = max((victim.importance for victim in victims), default=LOW)
            assert all(each.importance >= highest for each in self.waiting() - {asks})

    def check_refused(self, asks: Entry, reason: Refusal, before: set[Entry]) -> None:
        """Only where all that waits and is less important would not have made room."""
        lower = [each for each in before if each.importance < asks.importance]
        if reason is Refusal.SHARE_USED:
            lower = [each for each in lower if each.share.name == asks.share.name]
            active = self.active_weight()
            beyond = [
                self.admission.requests.beyond(asks.share, active, asks.n),
                self.admission.tokens.beyond(asks.share, active, asks.tokens),
            ]
            assert any(beyond)
            return
        requests, tokens = self.admission.requests, self.admission.tokens
        freed = sum(each.n for each in lower), sum(each.tokens for each in lower)
        few = (
            requests.missing(asks.n, asks.importance) > freed[0]
            or tokens.missing(asks.tokens, asks.importance) > freed[1]
        )
        assert few or len(self.displaced) >= requests.limit - len(lower)
        assert requests.total + tokens.total > 0

    def stays_active(self, share: str, for_s: float) -> None:
        known = self.active_until.get(share, 0.0)
        self.active_until[share] = max(known, self.now + for_s)

    def waiting(self) -> set[Entry]:
        gone = self.started | self.displaced
        return {each for key, each in self.alive.items() if key not in gone}

    def active_weight(self) -> float:
        """Returns the weight of the shares that hold something, or have called a moment ago."""
        recent = [name for name, until in self.active_until.items() if self.now <= until]
        return sum(self.shares[name].weight for name in {*recent, *self.admission.requests.held})

    @rule(which=st.integers(0, 99), tokens=st.integers(1, 90))
    def turn_out(self, which: int, tokens: int) -> None:
        if self.alive:
            key = sorted(self.alive)[which % len(self.alive)]
            self.admission.resize(key, tokens)
            self.alive[key] = self.alive[key]._replace(tokens=tokens)

    @rule(which=st.integers(0, 99))
    def start(self, which: int) -> None:
        keys = sorted(self.alive.keys() - self.displaced)
        if keys:
            key = keys[which % len(keys)]
            self.admission.start(key)
            self.started.add(key)

    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        if self.alive:
            key = sorted(self.alive)[which % len(self.alive)]
            self.admission.leave(key)
            del self.alive[key]
            self.displaced.discard(key)
            self.started.discard(key)

    @invariant()
    def holds(self) -> None:
        self.admission.check()
        assert self.admission.requests.total <= 20
        assert len(self.admission) == len(self.alive)


AnyLoad.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, derandomize=True
)
TestAnyLoad = AnyLoad.TestCase


class AnyLimit(AnyLoad):
    """And limits change while they do."""

    @rule(requests=st.integers(4, 30), tokens=st.integers(90, 300))
    def reload(self, requests: int, tokens: int) -> None:
        before = self.waiting(), len(self.admission)
        self.admission.limit(requests, tokens)
        assert (self.waiting(), len(self.admission)) == before

    @invariant()
    def holds(self) -> None:
        self.admission.check()
        assert len(self.admission) == len(self.alive)


AnyLimit.TestCase.settings = settings(
    max_examples=30, stateful_step_count=60, deadline=None, derandomize=True
)
TestAnyLimit = AnyLimit.TestCase


class AnyAllowance(AnyLoad):
    """And two shares may have no more than the operator allows them at once."""

    allowed: ClassVar[dict[str, Use]] = {"a": Use(5, 0), "": Use(0, 60)}

    def __init__(self) -> None:
        super().__init__()
        self.admission.limit(20, 200, self.allowed)

    def check_refused(self, asks: Entry, reason: Refusal, before: set[Entry]) -> None:
        if reason is not Refusal.TENANT_LIMIT:
            super().check_refused(asks, reason, before)
            return
        allowed = self.allowed[asks.share.name]
        own = [each for each in self.alive.values() if each.share.name == asks.share.name]
        assert allowed.requests == 0 or sum(each.n for each in own) + asks.n > allowed.requests
        assert (
            allowed.tokens == 0 or sum(each.tokens for each in own) + asks.tokens > allowed.tokens
        )

    @invariant()
    def none_has_more(self) -> None:
        assert self.admission.requests.held["a"] <= self.allowed["a"].requests


AnyAllowance.TestCase.settings = AnyLoad.TestCase.settings
TestAnyAllowance = AnyAllowance.TestCase


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
