"""To which replica a request goes: properties of every routing, and what the decision promises."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.request import Importance, Targets
from engine.routing import qos
from engine.routing.prefixes import PREFIX_LEN, KnownPrefixes, prefix_keys
from engine.routing.router import ROUTINGS, Router
from engine.routing.states import STALE_S, Asked, Moment, Replica, TierTold, Told

CHAT, REPORT, BULK = Targets(ttft_s=1.0, tbt_s=0.05), Targets(ttlt_s=60.0), Targets()
TIERS = {"chat": CHAT, "report": REPORT, "bulk": BULK}
PREFILL_S, DECODE_S = 1e-4, 1e-3


def asked(tier: str = "chat", prompt_len: int = 500, output_len: float = 100.0) -> Asked:
    return Asked(tier, TIERS[tier], Importance.NORMAL, prompt_len, output_len)


def told(
    at: float = 0.0,
    waiting_s: float = 0.0,
    running_s: float = 0.0,
    report_s: float = 0.0,
    backlog_s: float = 0.0,
) -> Told:
    """What a replica tells that has so much of interactive, of deadline and of other work."""
    ahead_s = waiting_s + report_s
    tiers = {
        "chat": TierTold(1.0, max(0.0, 0.9 - waiting_s), waiting_s, running_s, 500, waiting_s),
        "report": TierTold(60.0, max(0.0, 55.0 - ahead_s), report_s, 0.0, 500, ahead_s),
        "bulk": TierTold(math.inf),
    }
    return Told(at, tiers, backlog_s, PREFILL_S, DECODE_S)


works = st.floats(0.0, 3.0)
tolds = st.builds(told, st.just(0.0), works, works, st.floats(0.0, 90.0), st.floats(0.0, 1e4))
replicas = st.builds(
    Replica,
    st.one_of(st.none(), tolds),
    st.dictionaries(st.sampled_from([1.0, 60.0, math.inf]), works),
    st.integers(0, 100_000),
    st.integers(0, 200),
    st.dictionaries(st.sampled_from([1.0, 60.0, math.inf]), st.integers(0, 60)),
    st.integers(0, 499),
    st.integers(0, 10_000),
)
requests = st.builds(asked, st.sampled_from(sorted(TIERS)), st.integers(1, 8000))
moments = st.builds(
    Moment, st.floats(0.0, 5.0), st.integers(0, 1000), st.floats(0.0, 1.0, exclude_max=True)
)


@given(requests, st.lists(replicas, max_size=6), moments)
def test_every_replica_is_ranked_once(
    request: Asked, several: list[Replica], moment: Moment
) -> None:
    for rank in ROUTINGS.values():
        order = rank(request, several, moment)
        assert sorted(order) == list(range(len(several)))
        assert order == rank(request, several, moment)


@pytest.mark.parametrize("routing", ROUTINGS)
@settings(max_examples=15)
@given(
    st.lists(st.tuples(requests, st.sets(st.sampled_from("abcd"))), max_size=30),
    st.integers(0, 5),
)
def test_who_is_not_available_is_not_chosen_and_a_seed_repeats_every_choice(
    routing: str, asks: list[tuple[Asked, set[str]]], seed: int
) -> None:
    def choices() -> list[list[str]]:
        router, found = Router(routing, seed), []
        for name in "abcd":
            router.told(name, told())
        for number, (request, available) in enumerate(asks):
            names = sorted(available)
            found.append(router.ranked(request, names, 0.01 * number))
            assert sorted(found[-1]) == names
            if names:
                router.sent(found[-1][0], request, 0.01 * number)
        return found

    assert choices() == choices()


@given(tolds, st.floats(0.0, 1e5), moments)
def test_no_backlog_moves_an_interactive_request(one: Told, more_s: float, moment: Moment) -> None:
    """Two replicas differ in nothing but their backlog: chance decides alone."""
    burdened = one._replace(backlog_s=one.backlog_s + more_s)
    pair = [Replica(one), Replica(burdened)]
    assert qos.ranked(asked(), pair, moment) == qos.ranked(asked(), pair[::-1], moment)


@given(tolds, works, st.floats(0.0, 1.0), moments)
def test_nothing_that_is_due_later_moves_a_request_either(
    one: Told, more_s: float, sent_s: float, moment: Moment
) -> None:
    report = one.tiers["report"]
    burdened = one._replace(tiers={**one.tiers, "report": report._replace(waiting_s=1e3 + more_s)})
    pair = [Replica(one), Replica(burdened, {60.0: sent_s, math.inf: sent_s})]
    assert qos.ranked(asked(), pair, moment) == qos.ranked(asked(), pair[::-1], moment)


@given(works, works, st.floats(0.16, 3.0), moments)
def test_an_interactive_request_goes_where_it_is_on_time_more_surely(
    waiting_s: float, running_s: float, more_s: float, moment: Moment
) -> None:
    """By more than a tenth of its target; what runs there makes no difference to that."""
    emptier = told(moment.now, waiting_s, running_s)
    fuller = told(moment.now, waiting_s + more_s)
    assert qos.ranked(asked(), [Replica(fuller), Replica(emptier)], moment)[0] == 1


@given(requests, tolds, st.floats(0.0, 3.0), st.floats(0.001, 3.0), st.floats(0.0, 2.0))
def test_slack_shrinks_with_what_was_sent_and_grows_with_time_and_what_is_held(
    request: Asked, one: Told, sent_s: float, more_s: float, now: float
) -> None:
    due_s = min(1.0, request.target_s)

    def slack(work_s: float, at: float, held: int = 0) -> float:
        return qos.view(request, Replica(one, {due_s: work_s}, cached_len=held), at).slack_s

    before = slack(sent_s, now)
    assert slack(sent_s + more_s, now) <= before + 1e-9
    assert slack(sent_s, now + more_s) >= before - 1e-9
    assert slack(sent_s, now, request.prompt_len - 1) >= before - 1e-9


@given(st.lists(st.floats(0.0, 500.0), min_size=2, max_size=5), moments)
def test_batch_goes_where_most_room_is(backlogs: list[float], moment: Moment) -> None:
    """Within the request's own work, which is what chance may decide."""
    several = [Replica(told(moment.now, backlog_s=each)) for each in backlogs]
    for request in (asked("bulk"), asked("report")):
        best = qos.ranked(request, several, moment)[0]
        assert backlogs[best] <= min(backlogs) + 500 * PREFILL_S + 100 * DECODE_S + 1e-9


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_what_was_told_a_second_ago_makes_no_herd(num: int, seed: int) -> None:
    """All of a second's requests are routed by what was told before it; one replica was emptier."""
    router, counts = Router("qos", seed), Counter[str]()
    names = [str(i) for i in range(num)]
    for name in names:
        router.told(name, told(0.0, 0.0 if name == "0" else 0.05))
    for number in range(20 * num):
        at = number / (20 * num)
        best = router.ranked(asked(), names, at)[0]
        router.sent(best, asked(), at)
        counts[best] += 1
    assert max(counts.values()) <= 24
    assert min(counts.values()) >= 17


@pytest.mark.parametrize("num", [2, 5])
def test_several_routers_who_were_told_the_same_do_not_all_choose_the_same(num: int) -> None:
    names = [str(i) for i in range(num)]
    chosen = Counter[str]()
    for seed in range(40 * num):
        router = Router("qos", seed)
        for name in names:
            router.told(name, told(0.0))
        chosen[router.ranked(asked(), names, 0.5)[0]] += 1
    assert len(chosen) == num
    assert max(chosen.values()) < 80


def with_prefix(topic: int) -> Asked:
    """A chat of which a thousand tokens of twelve hundred are those of its topic."""
    prompt = [*range(topic * 10_000, topic * 10_000 + 1024), *range(176)]
    keys = prefix_keys("", prompt, PREFIX_LEN)
    return asked(prompt_len=1200)._replace(prefixes=keys, prefix_len=PREFIX_LEN)


def test_a_prefix_stays_with_its_replica_and_a_hot_one_is_spread() -> None:
    """It stays while that is on time for sure; a burst of one topic goes to others, too."""
    router, names = Router("qos"), ["a", "b", "c"]
    homes: dict[int, str] = {}
    for second in range(1, 40):
        for name in names:
            router.told(name, told(float(second)))
        for topic in range(4):
            request = with_prefix(topic)
            best = router.ranked(request, names, float(second))[0]
            assert homes.setdefault(topic, best) == best
            router.sent(best, request, float(second))
    burst = Counter[str]()
    for name in names:
        router.told(name, told(40.0))
    for _ in range(60):
        best = router.ranked(with_prefix(0), names, 40.0)[0]
        router.sent(best, with_prefix(0), 40.0)
        burst[best] += 1
    assert burst.most_common(1)[0][0] == homes[0]
    assert set(burst) == set(names)


def test_who_has_said_nothing_for_long_comes_last_and_what_was_sent_is_not_kept_for_ever() -> None:
    router = Router("qos")
    router.told("silent", told(0.0))
    router.told("full", told(STALE_S, waiting_s=3.0))
    assert router.ranked(asked(), ["silent", "full"], STALE_S) == ["full", "silent"]
    router.told("full", told(0.0))  # out of order
    assert router.ranked(asked(), ["silent", "full"], STALE_S) == ["full", "silent"]
    for number in range(100):
        router.sent("silent", asked(), float(number))
    assert len(router._known["silent"].sent) <= STALE_S + 1
    for _ in range(200):
        router.ended("silent")
    router.lost("silent")
    router.ended("silent")
    assert router.ranked(asked(), ["silent"], 0.0) == ["silent"]


@given(st.lists(st.tuples(st.floats(0.01, 9.0), st.floats(0.0, 2.0), st.booleans()), max_size=60))
def test_of_targets_nothing_is_kept_that_nobody_has_any_more(
    sent: list[tuple[float, float, bool]],
) -> None:
    """Each of many callers states a target of its own, and some replicas never tell anything."""
    router, now = Router("qos"), 0.0
    router.told("a", told())
    for number, (ttft_s, after_s, tells) in enumerate(sent):
        now += after_s
        request = asked()._replace(targets=Targets(ttft_s=ttft_s, tbt_s=0.05))
        router.sent("a", request, now, str(number))
        if tells:
            router.told("a", told(now))
    known = router._known["a"]
    later = {t for at, t, *_ in known.sent}
    assert set(known.sent_s) == set(known.num_sent) == later
    assert known.num_sent.total() == len(known.sent)
    for number in range(len(sent)):
        router.ended("a", str(number))
        router.ended("a", str(number))  # once more, which is nothing
    assert (known.num_calls, known.in_flight, known.calls) == (0, {}, {})
    router.told("a", told(now))
    assert (known.sent_s, known.sent_tokens) == ({}, 0)


@given(st.lists(st.integers(0, 3), max_size=200), st.integers(0, 200))
def test_prefixes_are_equal_for_equal_beginnings_of_one_tenant(
    prompt: list[int], shared: int
) -> None:
    other = [*prompt[:shared], *(9 for _ in prompt[shared:])]
    keys, others = prefix_keys("a", prompt, 4), prefix_keys("a", other, 4)
    known = KnownPrefixes()
    known.add(keys)
    assert known.count(keys) == len(keys) == len(prompt) // 4
    assert known.count(others) == min(shared, len(prompt)) // 4
    assert known.count(prefix_keys("b", prompt, 4)) == 0
    few = KnownPrefixes(most=2)
    few.add(keys)
    assert len(few) == few.count(keys) == min(2, len(keys))
