"""Whatever a caller sends, a status fits into gRPC's trailers and a log line on a page."""

from __future__ import annotations

import pickle

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import errors
from server.bounded import MAX_LOGGED_CHARS, bound_values, shorten
from server.violations import MAX_VIOLATIONS, InvalidRequest, Violation, Violations

TRAILERS = 8192  # bytes that gRPC allows; each entry counts 32 more
OTHERS = 512  # of them for what gRPC itself sends
texts = st.text(max_size=40).flatmap(lambda text: st.integers(0, 200).map(lambda n: text * n))


@given(texts, st.integers(40, 600))
def test_a_long_text_is_cut_to_its_bytes_and_says_its_length(text: str, most: int) -> None:
    short = shorten(text, most)
    assert len(short.encode(errors="replace")) <= most
    if short != text:
        assert short.endswith(f"({len(text)} characters)")
        assert len(text.encode(errors="replace")) > most


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=40))
def test_an_invalid_argument_fits_into_the_trailers(found: list[tuple[str, str]]) -> None:
    collected = Violations()
    for field, description in found:
        collected.refuse(field, description)
    with pytest.raises(InvalidRequest) as caught:
        collected.finish()
    refusal = caught.value
    assert len(refusal.violations) + refusal.num_more == len(found)
    assert 1 <= len(refusal.violations) <= MAX_VIOLATIONS
    error = errors.invalid(refusal)
    ((_, status),) = errors.trailers(error, "", None)
    in_base64 = len(status) * 4 / 3
    percent_encoded = sum(1 if 32 <= byte < 127 else 3 for byte in error.message.encode())
    assert in_base64 + percent_encoded < TRAILERS - OTHERS
    assert repr(pickle.loads(pickle.dumps(refusal))) == repr(refusal)


def test_who_breaks_more_rules_than_are_told_hears_how_many() -> None:
    refusal = InvalidRequest([Violation(f"stop[{i}]", "is bad") for i in range(90)])
    assert str(refusal).endswith("; and 74 more")
    assert [v.field for v in refusal.violations] == [f"stop[{i}]" for i in range(16)]


@pytest.mark.parametrize(
    "error",
    [
        errors.in_flight("x" * 10**6),
        errors.engine_lost("é" * 10**6),
        errors.not_remembered("\n" * 10**6, "x" * 10**6),
    ],
)
def test_no_message_of_a_status_is_long(error: errors.CallError) -> None:
    assert isinstance(error.code, grpc.StatusCode)
    assert len(error.message.encode()) <= errors.MAX_MESSAGE_BYTES


def test_no_value_of_a_log_line_is_long() -> None:
    event = {"event": "call", "request_id": "x" * 10**6, "ids": [7] * 10**6, "n": 3, "ok": None}
    bounded = bound_values(None, "info", event)
    assert (bounded["event"], bounded["n"], bounded["ok"]) == ("call", 3, None)
    assert len(bounded["request_id"]) == len(bounded["ids"]) == MAX_LOGGED_CHARS
