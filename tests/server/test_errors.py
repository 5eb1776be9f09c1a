"""What a status carries: a reason always, when to try again, and never more than fits."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from server import errors
from server.errors import (
    DETAILS_KEY,
    MOST_RETRY_AFTER_S,
    PUSHBACK_KEY,
    RETRY_AFTER_S,
    SPREAD,
    CallError,
    Refusal,
    Refused,
    rejected,
    spread,
    waited_too_long,
)


def told(error: CallError, key: str = "id", left_s: float | None = None) -> tuple[list[Any], str]:
    """The details, unpacked, and the pushback, "" for none."""
    trailers = dict(errors.trailers(error, key, left_s))
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    assert (status.code, status.message) == (error.code.value[0], error.message)
    details = []
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        assert packed.Unpack(detail)
        details.append(detail)
    return details, trailers.get(PUSHBACK_KEY, "")


@given(st.floats(), st.text())
def test_nobody_is_told_to_try_again_at_once_or_in_an_hour(retry_s: float, key: str) -> None:
    """gRPC's own clients hear the same delay."""
    for error in (rejected("full", retry_s), waited_too_long("full", retry_s)):
        for each in (error, pickle.loads(pickle.dumps(error))):
            (retry, why), pushback = told(each, key)
            told_s = retry.retry_delay.ToMilliseconds() / 1000
            assert 1 <= each.retry_after_s <= told_s <= MOST_RETRY_AFTER_S
            if 1 <= retry_s <= MOST_RETRY_AFTER_S / (1 + SPREAD):
                assert retry_s - 0.001 <= told_s <= (1 + SPREAD) * retry_s
            assert int(pushback) == round(1000 * told_s)
            assert (why.reason, why.domain) == (error.refusal.name, errors.DOMAIN)


def test_what_is_no_number_is_the_least() -> None:
    assert rejected("full", math.nan).retry_after_s == RETRY_AFTER_S
    assert rejected("full", math.inf).retry_after_s == MOST_RETRY_AFTER_S / (1 + SPREAD)


def test_who_is_refused_at_one_instant_does_not_come_back_at_one() -> None:
    """Of 10,000 calls no tenth of a second brings back more than three in a hundred, and the same
    call hears the same again.
    """
    delays = [spread(10.0, f"request-{i}") for i in range(10_000)]
    assert min(delays) >= 10.0
    assert max(delays) <= 15.0
    tenths = [int(10 * delay) for delay in delays]
    assert max(tenths.count(tenth) for tenth in set(tenths)) <= 300
    assert spread(10.0, "request-7") == delays[7]


def test_a_retry_that_no_deadline_waits_for_is_not_made() -> None:
    """gRPC's client would wait until its deadline passes, and say only that it did."""
    refused = Refused(Refusal.QUEUE_FULL, "full", 10.0)
    assert told(refused, left_s=60.0)[1] == told(refused)[1] != "-1"
    for left_s in (9.0, 10.0, 0.0, -1.0):
        details, pushback = told(refused, left_s=left_s)
        assert pushback == "-1"
        assert details[0].retry_delay.ToSeconds() >= 10, "the caller may want to know"
    assert told(Refused(Refusal.WOULD_BE_LATE, "late", 10.0, is_final=True))[1] == "-1"


@pytest.mark.parametrize("reason", errors.CODES)
def test_every_status_says_why(reason: str) -> None:
    error = CallError(reason, "because", {"tier": "batch"})
    for each in (error, pickle.loads(pickle.dumps(error))):
        (why,), pushback = told(each)
        assert (why.reason, dict(why.metadata)) == (reason, {"tier": "batch"})
        assert each.code is errors.CODES[reason]
        assert not pushback
