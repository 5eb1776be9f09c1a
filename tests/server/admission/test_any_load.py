"""Admission under everything that may happen: the rule holds in any order of calls."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.deciding.request import Importance, Share
from server.admission.admission import REMEMBERED_S, Admission
from server.admission.places import Entry, Use
from server.errors import SPREAD, Refusal, Refused
from tests.server.admission.parts import LOW, entry


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
