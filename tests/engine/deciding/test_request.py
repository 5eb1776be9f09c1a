"""Targets and sampling: what is refused, and when each token is due."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.outcome import timings
from engine.deciding.request import (
    BEST_EFFORT,
    Request,
    Sampling,
    TargetKind,
    Targets,
    key_of,
    named_by,
)
from engine.deciding.sequence import FinishReason
from tests.engine.deciding.parts import deadline, interactive, make_request, make_sequence


@pytest.mark.parametrize(
    ("targets", "field"),
    [
        ({"ttft_s": 1.0}, "tbt_s"),
        ({"tbt_s": 1.0}, "ttft_s"),
        ({"ttft_s": 1.0, "tbt_s": 1.0, "ttlt_s": 1.0}, "ttlt_s"),
        ({"ttft_s": 1.0, "ttlt_s": 1.0}, "ttlt_s"),
        ({"ttlt_s": 0.0}, "ttlt_s"),
        ({"ttlt_s": -1.0}, "ttlt_s"),
        ({"ttlt_s": math.inf}, "ttlt_s"),
        ({"ttft_s": math.nan, "tbt_s": 1.0}, "ttft_s"),
        ({"ttft_s": 1.0, "tbt_s": 1.0, "max_gap": 0.9}, "max_gap"),
        ({"ttft_s": 1.0, "tbt_s": 1.0, "max_gap": math.nan}, "max_gap"),
        ({"ttlt_s": 1.0, "max_gap": 2.0}, "max_gap"),
        ({"max_gap": 2.0}, "max_gap"),
    ],
)
def test_targets_that_make_no_sense_are_refused_by_field(
    targets: dict[str, float], field: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        Targets(**targets)


def test_the_kind_follows_from_the_fields() -> None:
    assert interactive(1.0, 0.1).kind is TargetKind.INTERACTIVE
    assert deadline(1.0).kind is TargetKind.DEADLINE
    assert BEST_EFFORT.kind is TargetKind.BEST_EFFORT


def test_deadlines_of_tokens_by_hand() -> None:
    """Arrival 10, TTFT 2, TBT 0.5: tokens 1, 2 and 5 at 12, 12.5 and 14. TTLT 7: all at 17."""
    stream = make_request(at=10.0, targets=interactive(2.0, 0.5))
    assert [stream.token_due_at(n) for n in (1, 2, 5)] == [12.0, 12.5, 14.0]
    whole = make_request(at=10.0, targets=deadline(7.0))
    assert [whole.token_due_at(n) for n in (1, 5)] == [17.0, 17.0]
    assert make_request().token_due_at(3) == math.inf


def test_a_token_at_its_deadline_is_in_time_and_slack_carries_over() -> None:
    """Due at 2, 2.5, 3 and 3.5. The second comes 1.5 s after the first and just in time, the third
    0.001 s late, the fourth at its deadline: the worst gap is 1.5 s, mean 0.833.
    """
    sequence = make_sequence(targets=interactive(2.0, 0.5))
    met = []
    for now in (1.0, 2.5, 3.001, 3.5):
        sequence.expect_token(0.0)
        sequence.take_token(0, now)
        met.append(timings(sequence, now).tbt_met)
    assert met == [True, True, False, False]
    assert sequence.num_late_tokens == 1
    found = timings(sequence, 3.5)
    assert (found.ttft_s, found.worst_tbt_s, found.ttlt_s) == (1.0, 1.5, 3.5)
    assert found.mean_tbt_s == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("reason", list(FinishReason))
def test_only_a_complete_request_meets_its_ttlt(reason: FinishReason) -> None:
    sequence = make_sequence(targets=deadline(9.0))
    sequence.expect_token(0.0)
    sequence.take_token(0, 1.0)
    sequence.finish(reason, 1.0)
    complete = reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert timings(sequence, 2.0).ttlt_met == complete


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_k", -1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
        ("min_tokens", 200),
        ("logprobs", 21),
    ],
)
def test_sampling_out_of_range_is_refused_by_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        Sampling(**{field: value})  # type: ignore[arg-type] # the name is a parameter


def test_a_request_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt"):
        Request("r", [], Sampling(), 0.0)


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=4)
KEYED = st.tuples(PRINTABLE, PRINTABLE.filter(bool), st.none() | st.integers(0, 15))


@settings(deadline=None)
@given(KEYED, KEYED)
def test_no_two_requests_have_the_same_key(
    one: tuple[str, str, int | None], other: tuple[str, str, int | None]
) -> None:
    """Neither tenants' ids that are alike, nor completion 0 of `a` and what is called `a/0`."""
    assert (key_of(*one) == key_of(*other)) == (one == other)
    tenant, name, completion = one
    shown = name if completion is None else f"{name}/{completion}"
    assert named_by(key_of(*one)) == (tenant, shown)
