"""Calls of one place in somebody's code are known again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.inferring.calls import site_of

PYTHON = "grpc-python/1.85.1 grpc-c/53.0.0 (linux; chttp2)"


def test_an_application_s_calls_are_one_site_whatever_they_ask_for() -> None:
    site = site_of("", "a", "desk", True, PYTHON, 30.0, 100)
    assert site == site_of("", "a", "desk", True, "other/2", None, None)
    assert site != site_of("", "b", "desk", True)
    assert site != site_of("", "a", "desk", False)


def test_calls_without_an_application_are_told_apart_by_their_constants() -> None:
    site = site_of("", "", "", False, f"indexer/2.1 {PYTHON}", 30.0, 100)
    assert site.program == "indexer"
    assert site == site_of("", "", "", False, f"indexer/2.2 {PYTHON}", 30.0, 100)
    for other in (
        site_of("", "", "", False, PYTHON, 30.0, 100),
        site_of("", "", "", False, f"indexer/2.1 {PYTHON}", 2.0, 100),
        site_of("", "", "", False, f"indexer/2.1 {PYTHON}", None, 100),
        site_of("", "", "", False, f"indexer/2.1 {PYTHON}", 30.0, 1000),
        site_of("", "", "", False, f"indexer/2.1 {PYTHON}", 30.0, None),
    ):
        assert other != site


@given(st.sampled_from([0.5, 1, 2, 3, 5, 10, 15, 30, 60, 120, 300, 600]), st.floats(0, 0.04))
def test_a_usual_deadline_is_known_again_whatever_the_way_took(
    deadline_s: float, lost: float
) -> None:
    came = site_of("", "", "", True, timeout_s=deadline_s * (1 - lost))
    assert came == site_of("", "", "", True, timeout_s=deadline_s)


@given(st.text(), st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)))
def test_what_a_site_is_told_as_is_one_short_line(agent: str, timeout_s: float | None) -> None:
    """It stands in a file as a comment, whoever chose the words."""
    site = site_of("", "t" * 128, "", False, agent, timeout_s, (1 << 32) - 1)
    assert site.told.isascii()
    assert site.told.isprintable()
    assert len(site.told) < 400
