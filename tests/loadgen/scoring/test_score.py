"""Every definition of loadgen.scoring.score against figures worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.scoring.score import (
    Promises,
    backlog_growth,
    backlog_noise,
    counted,
    is_on_pace,
    is_on_time,
    jain_index,
    judge,
    percentile,
    percentiles,
    promises,
    score,
)
from loadgen.targets.record import Outcome, Record
from niyama.client.values import Targets
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


def told(promised: bool | None, late: bool, outcome: Outcome = Outcome.FINISHED) -> Record:
    made = chat(12.0 if late else 10.5, outcome=outcome)
    made.promised = promised
    return made


def test_promises_by_hand() -> None:
    """Told "on time": three on time, and six late, of whom two were only slow, and one each
    expired, failed, lost its place and was unfinished. Told "late": one on time, two late. A client
    that left got its only token in time; two who were refused at once were told nothing.
    """
    gone = (Outcome.TIMED_OUT, Outcome.FAILED, Outcome.REJECTED, Outcome.UNFINISHED)
    records = [
        *(told(True, late=False) for _ in range(2)),
        told(True, late=False, outcome=Outcome.CANCELLED),
        *(told(True, late=True) for _ in range(2)),
        *(told(True, late=False, outcome=outcome) for outcome in gone),
        told(False, late=False),
        *(told(False, late=True) for _ in range(2)),
        *(told(None, late=False, outcome=Outcome.REJECTED) for _ in range(2)),
    ]
    result = score("interactive", [judge(each) for each in records], 10.0)
    assert result.promises == Promises(kept=3, broken=6, needless=1, foretold=2)
    assert (result.promises.num_told_on_time, result.promises.num_told_late) == (9, 3)
    assert result.promises.broken_share == 6 / 9
    assert result.promises.precision_on_time == 3 / 9
    assert result.promises.precision_late == 2 / 3
    assert result.promises.recall_late == 2 / 8


def test_relegation_excuses_no_broken_promise() -> None:
    relegated = told(True, late=True)
    relegated.relegated = True
    assert promises([judge(relegated)]) == Promises(0, 1, 0, 0)


def test_where_nobody_was_told_anything_there_is_no_share() -> None:
    none = promises([judge(told(None, late=True))])
    assert none == Promises(0, 0, 0, 0)
    assert none.broken_share is None
    assert none.precision_on_time is None
    assert none.precision_late is None
    assert none.recall_late is None


@given(
    st.lists(
        st.builds(told, st.none() | st.booleans(), st.booleans(), st.sampled_from(Outcome)),
        max_size=30,
    )
)
def test_the_counts_of_promises_add_up(records: list[Record]) -> None:
    """Everybody who was told something is counted once; on time and late are the score's own; and
    groups add up to the whole.
    """
    verdicts = [judge(each) for each in records]
    heard = [each for each in verdicts if each.record.promised is not None]
    found = promises(verdicts)
    assert sum(found) == found.num_told_on_time + found.num_told_late == len(heard)
    assert found.kept + found.needless == score("", heard, 1.0).num_on_time
    assert found.num_told_on_time == sum(each.record.promised is True for each in heard)
    if found.broken_share is not None and found.precision_on_time is not None:
        assert found.broken_share + found.precision_on_time == pytest.approx(1.0)
    half = len(verdicts) // 2
    parts = zip(promises(verdicts[:half]), promises(verdicts[half:]), strict=True)
    assert found == Promises(*map(sum, parts))


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
    which is all that arrived from 15 to 35.
    """
    assert backlog_growth(steady(1000.0), 0.0, 40.0) == pytest.approx(1.0)


def test_a_server_at_half_the_load_leaves_half_behind() -> None:
    """Request n ends at 2 n: of the 20 that arrive between the quarters' middles, 10 remain."""
    records = [record(planned(n, at=float(n)), [2.0 * n + 1e-9]) for n in range(40)]
    assert backlog_growth(records, 0.0, 40.0) == pytest.approx(0.5, abs=0.02)


def test_what_chance_does_to_the_backlog() -> None:
    """Of n equal requests, half arrive in half the time, give or take sqrt(n / 2): 40 requests make
    that sqrt(20) of 20, more where their sizes vary.
    """
    assert backlog_noise(steady(2.0), 0.0, 40.0) == pytest.approx(1 / math.sqrt(20))
    sizes = [record(planned(n, at=float(n), prompt_len=7 + 10 * (n % 2))) for n in range(40)]
    assert backlog_noise(sizes, 0.0, 40.0) == pytest.approx(
        math.sqrt(2 * 20 * (10**2 + 20**2)) / (20 * 30)
    )
    assert backlog_noise([], 0.0, 1.0) == 0.0


def test_nothing_arriving_is_no_growth() -> None:
    assert backlog_growth([], 0.0, 10.0) == 0.0
