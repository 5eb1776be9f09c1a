"""Every definition of loadgen.scoring.score against figures worked out by hand."""

import math

import pytest

from client.values import Targets
from loadgen.scoring.score import (
    backlog_growth,
    backlog_noise,
    counted,
    is_on_pace,
    is_on_time,
    jain_index,
    judge,
    percentile,
    percentiles,
    score,
)
from loadgen.targets.record import Outcome, Record
from tests.loadgen.examples import REPORT, planned, record

# CHAT: TTFT 1.0, TBT 0.125. A request at 10.0 has tokens due at 11.0, 11.125, 11.25.


def chat(*token_at: float, outcome: Outcome = Outcome.FINISHED, lag_s: float = 0.0) -> Record:
    return record(planned(at=10.0), token_at, outcome, lag_s)


def test_latencies_run_from_the_scheduled_instant_not_from_the_sending() -> None:
    late_sent = chat(10.9, 11.0, 11.05, lag_s=0.8)
    assert late_sent.ttft_s == pytest.approx(0.9)
    assert late_sent.ttlt_s == pytest.approx(1.05)
    assert list(late_sent.gaps_s) == pytest.approx([0.1, 0.05])
    assert late_sent.lag_s == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("token_at", "on_time", "on_pace"),
    [
        ((10.5, 10.55, 10.6), True, True),
        ((11.0, 11.125, 11.25), True, True),  # on the border
        ((10.0, 10.9, 11.2), True, False),  # an early first token pays for long gaps, by deadline
        ((11.01, 11.05, 11.1), False, False),  # TTFT missed
        ((10.9, 11.0, 11.26), False, False),  # the third token is late
        ((10.9, 11.13, 11.14), False, False),  # the second is late, the third is not
    ],
)
def test_interactive_requests_by_envelope_and_by_pace(
    token_at: tuple[float, ...], on_time: bool, on_pace: bool
) -> None:
    assert is_on_time(chat(*token_at)) is on_time
    assert is_on_pace(chat(*token_at)) is on_pace
    assert judge(chat(*token_at))[1:3] == (on_time, on_pace)


def test_a_deadline_request_counts_by_its_last_token() -> None:
    request = planned(at=10.0, targets=REPORT)
    assert is_on_time(record(request, [19.0, 19.5, 20.0]))
    assert not is_on_time(record(request, [11.0, 12.0, 20.1]))
    assert is_on_pace(record(request, [11.0, 19.0, 19.5]))


def test_a_client_that_left_at_the_very_beginning_left_in_time() -> None:
    """Instant 0 is an instant: `ended_at or inf` took it for none."""
    left = record(planned(at=0.0, targets=REPORT), [], Outcome.CANCELLED)
    assert left.ended_at == 0.0
    assert is_on_time(left)


def test_best_effort_is_on_time_when_it_finishes() -> None:
    request = planned(targets=Targets())
    assert is_on_time(record(request, [500.0]))
    assert not is_on_time(record(request, [1.0], Outcome.UNFINISHED))


@pytest.mark.parametrize(
    "outcome", [Outcome.REJECTED, Outcome.TIMED_OUT, Outcome.FAILED, Outcome.UNFINISHED]
)
def test_what_did_not_finish_is_a_miss_however_early_its_tokens(outcome: Outcome) -> None:
    assert not is_on_time(chat(10.1, 10.2, outcome=outcome))


def test_a_client_that_left_judges_what_it_received() -> None:
    assert is_on_time(chat(10.5, outcome=Outcome.CANCELLED))
    assert not is_on_time(chat(11.5, outcome=Outcome.CANCELLED))
    request = planned(at=10.0, targets=REPORT)
    assert is_on_time(record(request, [19.0], Outcome.CANCELLED))
    assert not is_on_time(record(request, [21.0], Outcome.CANCELLED))


def test_percentiles_are_nearest_rank() -> None:
    ordered = [float(value) for value in range(1, 11)]
    assert percentile(ordered, 50) == 5.0
    assert percentile(ordered, 90) == 9.0
    assert percentile(ordered, 91) == 10.0
    assert percentile(ordered, 99) == 10.0
    assert percentile([7.0], 1) == 7.0
    assert percentiles([]) == (None, None, None)
    assert percentiles([3.0, 1.0, 2.0]) == (2.0, 3.0, 3.0)


def test_a_score_counts_every_arrival() -> None:
    """Five arrivals in 10 s: on time and on pace; on time only; late; rejected; unfinished."""
    records = [
        chat(10.5, 10.55, 10.6),
        chat(10.1, 10.4, 10.5),
        chat(12.0, 12.05, 12.1),
        chat(outcome=Outcome.REJECTED),
        chat(10.2, outcome=Outcome.UNFINISHED),
    ]
    result = score("interactive", [judge(each) for each in records], measured_s=10.0)
    assert result.num_sent == 5
    assert (result.num_finished, result.num_rejected, result.num_unfinished) == (3, 1, 1)
    assert (result.attainment, result.pace_attainment) == (0.4, 0.2)
    assert result.goodput_rps == 0.2
    assert result.goodput_tokens_per_s == 0.6
    assert result.output_tokens == 10
    assert result.ttft.p50 == pytest.approx(0.2)  # of 0.1 0.2 0.5 2.0: rank 2
    assert result.ttlt.p99 == pytest.approx(2.1)  # finished ones only
    assert result.worst_gap_s == pytest.approx(0.3)
    # Gaps: .05 .05 | .3 .1 | .05 .05
    assert result.gaps_within_tbt == pytest.approx(5 / 6)


def test_an_empty_score_has_no_shares() -> None:
    result = score("nobody", [], 10.0)
    assert result.attainment is None
    assert result.ttft == (None, None, None)
    assert result.goodput_rps == 0.0


def test_only_the_measured_part_counts_and_nothing_abandoned() -> None:
    records = [record(planned(index, at=float(index)), [index + 0.5]) for index in range(6)]
    records[3].outcome = Outcome.ABANDONED
    assert [r.request.index for r in counted(records, 1.0, 5.0)] == [1, 2, 4]


def test_fairness_by_hand() -> None:
    assert jain_index([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain_index([1.0, 0.5]) == pytest.approx(2.25 / 2.5)
    assert jain_index([0.0, 0.0]) == 1.0
    assert jain_index([]) is None


def steady(service_s: float) -> list[Record]:
    """A request of 13 tokens every second from 0 to 39, each gone after `service_s`."""
    requests = [planned(index, at=float(index)) for index in range(40)]
    return [record(request, [request.at + service_s]) for request in requests]


def test_a_sustained_load_leaves_no_backlog() -> None:
    """Two requests are always in the system: the backlog is 26 tokens in every quarter."""
    assert backlog_growth(steady(2.0), 0.0, 40.0) == pytest.approx(0.0)


def test_a_load_that_is_never_served_is_left_behind_whole() -> None:
    """Over [10, 20) the mean number in the system is 15.5, over [30, 40) 35.5: 20 more requests,
    which is all that arrived from 15 to 35."""
    assert backlog_growth(steady(1000.0), 0.0, 40.0) == pytest.approx(1.0)


def test_a_server_at_half_the_load_leaves_half_behind() -> None:
    """Request n ends at 2 n: of the 20 that arrive between the quarters' middles, 10 remain."""
    records = [record(planned(n, at=float(n)), [2.0 * n + 1e-9]) for n in range(40)]
    assert backlog_growth(records, 0.0, 40.0) == pytest.approx(0.5, abs=0.02)


def test_what_chance_does_to_the_backlog() -> None:
    """Of n equal requests, half arrive in half the time, give or take sqrt(n / 2): 40 requests make
    that sqrt(20) of 20, more where their sizes vary."""
    assert backlog_noise(steady(2.0), 0.0, 40.0) == pytest.approx(1 / math.sqrt(20))
    sizes = [record(planned(n, at=float(n), prompt_len=7 + 10 * (n % 2))) for n in range(40)]
    assert backlog_noise(sizes, 0.0, 40.0) == pytest.approx(
        math.sqrt(2 * 20 * (10**2 + 20**2)) / (20 * 30)
    )
    assert backlog_noise([], 0.0, 1.0) == 0.0


def test_nothing_arriving_is_no_growth() -> None:
    assert backlog_growth([], 0.0, 10.0) == 0.0
