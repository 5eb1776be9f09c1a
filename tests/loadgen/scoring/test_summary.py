"""A run folded into figures: groups, the measured part, lag, and when a run is worth nothing."""

import pytest

from engine.deciding.history import MIN_OBSERVED
from loadgen.scoring import gate
from loadgen.scoring.score import HISTORY, without_history
from loadgen.scoring.summary import Measuring, Summary
from loadgen.targets.record import Outcome, Record
from loadgen.targets.target import End, Run
from niyama.client.values import Importance
from tests.loadgen.examples import CHAT, INFO, REPORT, planned, record, summarised, workload

MIXED = workload(
    (("interactive", 0.5, CHAT), ("standard", 0.25, REPORT), ("batch", 0.25, REPORT)),
    rate=2.0,
    duration_s=10.0,
)


def fold(records: list[Record], end: End = End.COMPLETE, **rest: float) -> Summary:
    return summarised(MIXED, INFO, Run(records, 12.0, end, "why"), Measuring(**rest))


def twenty() -> list[Record]:
    """Two a second; the interactive ones on time, the standard ones late."""
    records = []
    for index in range(20):
        at = index / 2
        if index % 2:
            records.append(record(planned(index, at, tenant="a", prompt_len=9), [at + 0.5] * 3))
        else:
            late = planned(index, at, REPORT, tier="standard", tenant="b", prompt_len=100)
            records.append(record(late, [at + 11.0] * 3))
    return records


def test_scores_are_split_by_tier_importance_tenant_and_prompt() -> None:
    summary = fold(twenty())
    assert [(each.group, each.num_sent) for each in summary.by_tier] == [
        ("interactive", 10),
        ("standard", 10),
        ("batch", 0),
    ]
    assert [each.attainment for each in summary.by_tier] == [1.0, 0.0, None]
    assert summary.total.attainment == 0.5
    assert [each.group for each in summary.by_importance] == ["high", "normal"]  # the tiers'
    assert [(each.group, each.attainment) for each in summary.by_tenant] == [("a", 1.0), ("b", 0.0)]
    assert summary.fairness == 0.5
    assert summary.long_prompt_tokens == 100
    assert [each.group for each in summary.by_prompt] == ["short"]  # none is over the p90


def test_who_comes_before_five_outputs_of_its_application_comes_without_history() -> None:
    """Of `a` the fifth output ends at 0.9, of `b` at 5.5, and of `c` never. A tier stands for the
    application where none is named; who states targets itself has neither.
    """
    ended = [record(planned(n, 0.1, application="a"), [0.5 + n / 10]) for n in range(5)]
    ended += [record(planned(n, 0.1, application="b"), [5.1 + n / 10]) for n in range(5)]
    for _ in range(4):
        ended.append(record(planned(0, 0.1, application="c"), [0.5]))
    ended.append(record(planned(0, 0.1, application="c"), [0.5], Outcome.TIMED_OUT))
    ended += [record(planned(0, 0.1, tenant="t"), [0.5]) for _ in range(5)]
    is_new = without_history(ended)

    def comes_new(at: float, **who: object) -> bool:
        return is_new(record(planned(0, at, **who)))

    assert [comes_new(at, application="a") for at in (0.8, 0.9, 1.0)] == [True, False, False]
    assert [comes_new(at, application="b") for at in (5.4, 5.5)] == [True, False]
    assert comes_new(9.0, application="c")
    assert [comes_new(9.0, tenant="t", explicit=e) for e in (False, True)] == [False, True]
    assert comes_new(9.0), "of another tenant's outputs nothing follows"
    late = record(planned(0, 8.0, application="a"), [9.9])
    summary = fold([*ended, late])
    counts = {score.group: (score.num_sent, score.num_on_time) for score in summary.by_history}
    assert counts == {"with": (1, 0), "without": (20, 14)}


def test_history_is_what_the_scheduler_calls_so() -> None:
    assert HISTORY == MIN_OBSERVED


def test_a_requests_own_importance_goes_before_its_tiers() -> None:
    summary = fold([record(planned(importance=Importance.LOW), [0.5])])
    assert [each.group for each in summary.by_importance] == ["low"]


def test_warmup_and_cooldown_are_left_out_of_every_figure() -> None:
    summary = fold(twenty(), warmup_s=2.0, cooldown_s=3.0)
    assert summary.total.num_sent == 10
    assert (summary.requested_rps, summary.achieved_rps) == (2.0, 2.0)
    assert summary.total.goodput_rps == 1.0


def test_lag_is_how_late_requests_left() -> None:
    records = [record(planned(n, n / 10), [n / 10 + 0.5], lag_s=n / 10000) for n in range(100)]
    summary = fold(records)
    assert summary.lag.p50_s == pytest.approx(0.0049)
    assert summary.lag.p99_s == pytest.approx(0.0098)
    assert summary.lag.max_s == pytest.approx(0.0099)
    assert summary.invalid == ""


def test_a_run_whose_generator_lagged_is_invalid() -> None:
    records = [record(planned(n, n / 10), [n / 10 + 0.5], lag_s=0.2) for n in range(100)]
    assert "schedule lag p99 200.0 ms, allowed 50.0 ms" in fold(records).invalid
    assert fold(records, max_lag_s=0.3).invalid == ""


def test_a_run_that_sent_too_late_to_count_is_invalid() -> None:
    records = [record(planned(n, n / 10), [20.0], lag_s=n / 10) for n in range(100)]
    assert "sent 5.05 of 10.00 requests/s" in fold(records, max_lag_s=60.0).invalid


def test_an_interrupted_run_is_measured_up_to_its_end() -> None:
    records = twenty()[:8]
    records[7].outcome = Outcome.ABANDONED
    summary = fold(records, End.INTERRUPTED)
    assert (summary.end, summary.problem) == (End.INTERRUPTED, "why")
    assert summary.window.end_s == pytest.approx(3.5)
    assert (summary.total.num_sent, summary.num_abandoned) == (7, 1)


def test_errors_are_counted_most_frequent_first() -> None:
    records = twenty()
    for n, error in enumerate(("rare", "often", "often")):
        records[n].outcome, records[n].error = Outcome.FAILED, error
    assert fold(records).errors == (("often", 2), ("rare", 1))


def test_a_run_without_a_request_says_nothing() -> None:
    for summary in (fold([]), fold(twenty(), warmup_s=9.6)):
        assert (summary.total.num_sent, summary.total.attainment) == (0, None)
        assert summary.invalid == "no request was due in the measured part"


def test_the_gate_is_open_when_every_tier_reaches_its_share() -> None:
    records = [each for each in twenty() if each.request.tier == "interactive"]
    summary = fold(records)
    assert gate.shut({"interactive": 1.0, "all": 0.99}, summary) == []
    assert gate.shut({"interactive": 0.9, "": 0.99}, summary) == [
        "standard: nothing was sent, 99.0% on time required",
        "batch: nothing was sent, 99.0% on time required",
    ]


def test_the_gate_says_who_missed_and_by_how_much() -> None:
    assert gate.shut({"standard": 0.95, "all": 0.9, "batch": 0.5}, fold(twenty())) == [
        "standard: 0.00% on time, 95.0% required",
        "all: 50.00% on time, 90.0% required",
        "batch: nothing was sent, 50.0% on time required",
    ]
    assert gate.shut({"all": 0.1}, fold(twenty(), End.TARGET_LOST)) == [
        "the run did not complete: why"
    ]


def test_gates_as_people_type_them() -> None:
    assert gate.parse_gate("0.99") == {"": 0.99}
    assert gate.parse_gate("interactive:0.99,all:0.9") == {"interactive": 0.99, "all": 0.9}
    for text in ("2", "0", "x", "a:2"):
        with pytest.raises(ValueError, match="share"):
            gate.parse_gate(text)
