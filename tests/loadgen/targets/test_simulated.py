"""The simulated target: token instants, routing, callers that leave, limits, repeatability. The
costs are binary fractions, so that every instant is exact and worked out by hand:

    an iteration takes 1/2 s, and 1/4 s for each prefill token, 1/8 s for each decode
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import pytest

from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment
from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.pace import PaceConfig
from engine.deciding.policies import POLICIES
from loadgen.targets.profiles import A100, Profile
from loadgen.targets.record import Outcome, Record
from loadgen.targets.simulated import Setup, SimulatedTarget, target_info
from loadgen.targets.target import End, Progress
from loadgen.workload.lengths import Exact, Fixed, Lognormal, Stated
from loadgen.workload.plan import PlannedRequest, plan
from niyama.client.values import Importance, Targets, Tier
from tests.loadgen.examples import CHAT, REPORT, planned, workload

COSTS = LatencyProfile("eighths", (Segment(UNBOUNDED, 0.5, prefill=0.25, decode=0.125),))
PROFILE = Profile("eighths", COSTS, kv_tokens=1 << 14, context_len=512)
FCFS = Setup(PROFILE, policy="fcfs", chunk_size=8)
INFORMED = replace(FCFS, stated_output=Exact())  # its scheduler is told the lengths of outputs


def ignore(progress: Progress) -> None:
    """Nobody watches."""


def run(setup: Setup, requests: Sequence[PlannedRequest]) -> list[Record]:
    return SimulatedTarget(setup).run(requests, ignore).records


def instants(record: Record) -> list[float]:
    return list(record.token_at)


def test_tokens_come_at_the_ends_of_the_iterations_that_made_them() -> None:
    """Prefill of 4: 0.5 + 4 * 0.25 = 1.5; then two decodes of 0.5 + 0.125."""
    (record,) = run(FCFS, [planned(prompt_len=4, output_len=3)])
    assert instants(record) == [1.5, 2.125, 2.75]
    assert (record.outcome, record.ended_at, record.lag_s) == (Outcome.FINISHED, 2.75, 0.0)


def test_a_prompt_longer_than_the_chunk_takes_several_iterations() -> None:
    """Chunks of 8, 8 and 4: 2.5 + 2.5 + 1.5; from the arrival at 1.0."""
    (record,) = run(FCFS, [planned(at=1.0, prompt_len=20, output_len=1)])
    assert instants(record) == [7.5]


def test_who_arrives_during_an_iteration_joins_the_next() -> None:
    """The second waits for the prefill of the first (until 1.5), then shares its decode:
    0.5 + 0.125 + 2 * 0.25 = 1.125.
    """
    first = planned(0, prompt_len=4, output_len=2)
    second = planned(1, at=0.25, prompt_len=2, output_len=1)
    assert [instants(r) for r in run(FCFS, [first, second])] == [[1.5, 2.625], [2.625]]


def test_an_idle_engine_waits_for_the_next_arrival() -> None:
    requests = [planned(i, at=100.0 * i, prompt_len=4, output_len=1) for i in range(2)]
    assert [instants(r) for r in run(FCFS, requests)] == [[1.5], [101.5]]


def test_preempted_tokens_keep_the_instants_at_which_they_came() -> None:
    """Two pages of 64 positions for two sequences that outgrow one page each: one of them is
    computed again, and has a gap of more than one iteration.
    """
    profile = replace(PROFILE, kv_tokens=128)
    requests = [planned(i, prompt_len=60, output_len=10) for i in range(2)]
    records = run(replace(FCFS, profile=profile, chunk_size=200), requests)
    assert [len(r.token_at) for r in records] == [10, 10]
    gaps = [b - a for a, b in zip(records[1].token_at, records[1].token_at[1:], strict=False)]
    assert max(gaps) > 0.5 + 64 * 0.25, "its 64 tokens were prefilled again"
    assert sorted(records[1].token_at) == instants(records[1])


def test_round_robin_takes_replicas_in_turn_and_least_requests_the_idle_one() -> None:
    """A long request on replica 0, two short ones after it have ended when the third comes."""
    long = planned(0, prompt_len=8, output_len=100)
    short = [planned(i, at=10.0 * i, prompt_len=4, output_len=1) for i in (1, 2, 3)]
    setup = replace(FCFS, replicas=2)
    spread = run(replace(setup, routing="round-robin"), [long, *short])
    assert instants(spread[2])[0] - 20.0 > 1.5, "its turn was on the busy replica"
    idle = run(setup, [long, *short])
    assert [instants(r)[0] - r.request.at for r in idle[1:]] == [1.5, 1.5, 1.5]


def test_a_caller_that_leaves_is_recorded_with_what_it_got() -> None:
    (record,) = run(FCFS, [planned(prompt_len=4, output_len=9, cancel_after=2)])
    assert (record.outcome, instants(record)) == (Outcome.CANCELLED, [1.5, 2.125])


def test_a_deadline_of_the_call_ends_it_between_two_iterations() -> None:
    """After 2.0 s: the iteration that ends at 2.125 is the last."""
    (record,) = run(FCFS, [planned(prompt_len=4, output_len=9, timeout_s=2.0)])
    assert (record.outcome, instants(record)) == (Outcome.TIMED_OUT, [1.5, 2.125])
    assert record.ended_at == 2.125


def test_no_target_is_later_than_the_call_s_own_deadline() -> None:
    """As a server has it: who is given up after 4 s comes before who has 10 s, though its target
    was a minute; and it is judged by that target.
    """
    patient = planned(0, targets=Targets(ttlt=10.0), prompt_len=4, output_len=1)
    hurried = planned(1, targets=Targets(ttlt=60.0), prompt_len=4, output_len=1, timeout_s=4.0)
    setup = replace(FCFS, policy="edf", chunk_size=4)
    records = run(setup, [patient, hurried])
    assert [instants(r) for r in records] == [[3.0], [1.5]]
    assert records[1].request.targets.ttlt == 60.0


def test_a_full_queue_refuses() -> None:
    requests = [planned(i, prompt_len=4, output_len=1) for i in range(3)]
    records = run(replace(FCFS, max_requests=2), requests)
    assert [r.outcome for r in records] == [Outcome.FINISHED, Outcome.FINISHED, Outcome.REJECTED]


def test_what_could_never_fit_fails_with_the_reason() -> None:
    (record,) = run(FCFS, [planned(prompt_len=510, output_len=3)])
    assert record.outcome is Outcome.FAILED
    assert "the context holds 512" in record.error


def test_what_goes_on_longer_than_the_drain_is_unfinished() -> None:
    (record,) = run(replace(FCFS, drain_s=2.0), [planned(prompt_len=4, output_len=9)])
    assert (record.outcome, record.ended_at) == (Outcome.UNFINISHED, None)
    assert instants(record) == [1.5, 2.125]


def test_an_interruption_keeps_the_report_so_far() -> None:
    def interrupted() -> Iterator[PlannedRequest]:
        yield planned(0, prompt_len=4, output_len=1)
        yield planned(1, at=10.0, prompt_len=4, output_len=1)
        raise KeyboardInterrupt

    outcome = SimulatedTarget(FCFS).run(interrupted(), ignore)
    assert outcome.end is End.INTERRUPTED
    assert [r.outcome for r in outcome.records] == [Outcome.FINISHED, Outcome.ABANDONED]


def test_a_shared_prefix_is_computed_once() -> None:
    """40 prompt tokens of which 32, two pages of 16, are shared: the second computes 8."""
    requests = [
        planned(i, at=100.0 * i, prompt_len=40, output_len=1, prefix=0, prefix_len=32)
        for i in range(2)
    ]
    alone, cached = run(replace(FCFS, chunk_size=64, prefix_caching=True), requests)
    assert instants(alone) == [0.5 + 40 * 0.25]
    assert instants(cached) == [100.0 + 0.5 + 8 * 0.25]


def test_requests_without_a_shared_prefix_share_nothing() -> None:
    requests = [planned(i, at=100.0 * i, prompt_len=40, output_len=1) for i in range(2)]
    _, second = run(replace(FCFS, chunk_size=64, prefix_caching=True), requests)
    assert instants(second) == [100.0 + 0.5 + 40 * 0.25]


# 4,000 tokens take 0.4 s on the A100: one of them is on time, two are not.
TIGHT = Targets(ttlt=0.7)


def test_a_relegated_request_says_so() -> None:
    profile = replace(A100, tiers=(Tier("standard", TIGHT, Importance.NORMAL),))
    requests = [
        planned(i, targets=TIGHT, tier="standard", prompt_len=4000, output_len=1) for i in range(2)
    ]
    records = run(Setup(profile, stated_output=Exact()), requests)
    assert sorted(r.relegated for r in records) == [False, True]
    assert all(r.outcome is Outcome.FINISHED for r in records)


def test_what_was_promised_is_recorded_however_the_request_ends() -> None:
    """Told on time: who finishes, who expires, and who is unfinished. The second of two long ones
    cannot have its token within 1 s, and is told so; who finds no place is told nothing.
    """
    easy = planned(0, prompt_len=4, output_len=1, targets=REPORT)
    (kept,) = run(INFORMED, [easy])
    (expired,) = run(INFORMED, [replace(easy, output_len=8, targets=Targets(), timeout_s=2.0)])
    (open_still,) = run(
        replace(INFORMED, drain_s=1.0), [replace(easy, targets=Targets(), output_len=9)]
    )
    assert [each.promised for each in (kept, expired, open_still)] == [True] * 3
    assert (expired.outcome, open_still.outcome) == (Outcome.TIMED_OUT, Outcome.UNFINISHED)
    requests = [planned(n, prompt_len=40, output_len=1) for n in range(3)]
    told = [record.promised for record in run(replace(INFORMED, max_requests=2), requests)]
    assert told[1:] == [False, None]


def test_the_importance_of_the_tier_counts_where_a_request_has_none() -> None:
    tiers = (Tier("free", TIGHT, Importance.LOW), Tier("paid", TIGHT, Importance.HIGH))
    requests = [
        planned(i, targets=TIGHT, tier=tier.name, prompt_len=4000, output_len=1)
        for i, tier in enumerate(tiers)
    ]
    for order in (requests, [replace(requests[1], index=0), replace(requests[0], index=1)]):
        records = run(Setup(replace(A100, tiers=tiers), stated_output=Exact()), order)
        assert {r.request.tier: r.relegated for r in records} == {"free": True, "paid": False}


def test_a_tier_s_longest_gap_holds_for_its_streams_and_is_told() -> None:
    """Long prompts arrive beside a stream with slack: its gaps fill up to what its tier allows."""
    chat = Targets(ttft=6.0, tbt=0.05)
    usual = NiyamaConfig(pace=PaceConfig(max_gap=3.0))
    worst = {}
    for own_gap in (None, 1.0):
        tiers = (Tier("chat", chat, Importance.NORMAL, own_gap), *A100.tiers)
        stream = planned(0, targets=chat, tier="chat", prompt_len=10, output_len=200)
        others = [
            planned(i, at=1.0, targets=Targets(ttlt=9.0), tier="standard", prompt_len=4000)
            for i in range(1, 16)
        ]
        setup = Setup(replace(A100, tiers=tiers), niyama=usual, stated_output=Exact())
        told = {tier.name: tier.max_gap for tier in target_info(setup, "niyama", 1).tiers}
        assert told == {
            "chat": own_gap or 3.0,
            "interactive": 3.0,
            "standard": None,
            "batch": None,
        }
        assert target_info(setup, "fcfs", 1).tiers[0].max_gap is None
        records = run(setup, [stream, *others])
        worst[own_gap] = max(next(r for r in records if r.request.tier == "chat").gaps_s)
    assert worst[1.0] <= 0.05 < worst[None]


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_can_tell_a_long_output_from_a_short_one_before_it_ends(policy: str) -> None:
    """Of two runs that differ in the last request's output alone, 3 or 60 tokens, every token is
    the same until the short one ends.
    """
    setup = replace(FCFS, policy=policy)
    others = [planned(i, at=i, prompt_len=20, output_len=10 + i) for i in range(8)]
    last = planned(8, at=8.0, prompt_len=20, output_len=3)
    short, long = (run(setup, [*others, replace(last, output_len=length)]) for length in (3, 60))
    end = short[-1].ended_at
    assert end is not None
    for one, other in zip(short, long, strict=True):
        before = [at for at in one.token_at if at <= end]
        assert before == [at for at in other.token_at if at <= end]


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
def test_who_does_not_guess_decides_the_same_whatever_is_stated(policy: str) -> None:
    """Through preemptions too, in memory for few."""
    setup = Setup(replace(A100, kv_tokens=8192), policy=policy)
    requests = list(islice(plan(MIXED), 100))

    def records_with(stated: Stated) -> list[list[float]]:
        return [instants(r) for r in run(replace(setup, stated_output=stated), requests)]

    assert records_with(Fixed(2048)) == records_with(Lognormal(300, 900)) == records_with(Exact())


def test_whoever_fits_states_no_more_than_fits() -> None:
    """Prompt 500 and 12 tokens are the context of 512, though 2,048 would be stated."""
    (record,) = run(FCFS, [planned(prompt_len=500, output_len=12)])
    assert (record.outcome, len(record.token_at)) == (Outcome.FINISHED, 12)


MIXED = replace(
    workload((("interactive", 0.5, CHAT), ("standard", 0.5, REPORT)), rate=4.0, duration_s=30.0),
    context_length=4096,
)


def test_the_same_seed_gives_the_same_tokens_at_the_same_instants() -> None:
    setup = Setup(A100, replicas=2, predictor_error=0.05, seed=7)
    first, again = (run(setup, list(plan(MIXED))) for _ in range(2))
    assert [instants(r) for r in first] == [instants(r) for r in again]
    other = run(replace(setup, seed=8), list(plan(MIXED)))
    assert [instants(r) for r in first] != [instants(r) for r in other]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once_under_every_policy(policy: str) -> None:
    tiers = tuple(
        replace(load, lengths=replace(load.lengths, prompt=Lognormal(1000, 4000)))
        for load in MIXED.tiers
    )
    requests = list(islice(plan(replace(MIXED, tiers=tiers)), 100))
    roomy = NiyamaConfig(pace=PaceConfig(max_gap=2.0))  # edf-reject has to reject nobody here
    small = replace(A100, kv_tokens=8192)
    setup = Setup(small, policy=policy, predictor_error=0.05, niyama=roomy)
    records = run(setup, requests)
    assert [r.request for r in records] == requests
    assert all(len(r.token_at) == r.request.output_len for r in records)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"replicas": 0}, "replicas"),
        ({"max_requests": 0}, "max_requests must be at least 1, got 0"),
        ({"predictor_error": 1.0}, "predictor_error"),
        ({"routing": "random"}, "routing"),
        ({"policy": "lifo"}, "policy"),
    ],
)
def test_a_setup_out_of_range_names_the_field(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace(FCFS, **change)  # type: ignore[arg-type]  # any field


def test_tenants_with_a_weight_have_a_share_each() -> None:
    """Twenty of best effort of one tenant wait, and one of another: by turns of their shares that
    is not the last of them.
    """
    many = [planned(i, prompt_len=200, targets=Targets(), tenant="a") for i in range(20)]
    one = planned(20, prompt_len=200, targets=Targets(), tenant="b")
    patient = NiyamaConfig(longest_wait_s=math.inf)
    setup = Setup(PROFILE, weights={"a": 1.0, "b": 1.0}, niyama=patient)
    assert SimulatedTarget(setup).info().weights == setup.weights
    for each, is_last in ((setup, False), (replace(setup, weights={}), True)):
        firsts = {r.request.index: r.token_at[0] for r in run(each, [*many, one])}
        assert (firsts[20] == max(firsts.values())) == is_last
