"""Calls of one place in somebody's code are known again, and how they come is seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.inferring.calls import AT_ONCE_S, IDLE_S, REACTION_S, Coming, Rhythm, site_of

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


def test_how_a_call_comes_beside_others_of_its_site() -> None:
    rhythm, site = Rhythm(), site_of("", "", "nightly", False)

    def comes(at: float) -> tuple[bool, bool]:
        return rhythm.arrive(site, at)[:2]

    assert comes(10.0) == (False, False)
    assert comes(10.0 + AT_ONCE_S / 2) == (True, False)
    assert comes(11.0) == (False, False)
    rhythm.served(site, 12.0)
    assert rhythm.arrive(site_of("", "", "other", False), 12.0) == Coming()
    assert comes(12.0 + REACTION_S / 2) == (False, True)
    assert comes(13.0) == (False, False)


def test_how_often_calls_come_is_known_but_for_pauses() -> None:
    rhythm, site = Rhythm(), site_of("", "", "nightly", False)
    for at in range(100):
        coming = rhythm.arrive(site, at / 4)
    assert coming.rate == 4.0
    assert rhythm.arrive(site, 1e6).rate == 100 / (99 / 4 + IDLE_S)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_a_rhythm_remembers_the_sites_of_late(order: list[int]) -> None:
    rhythm = Rhythm(most_sites=3)
    sites = [site_of("", "", f"app{i}", False) for i in range(10)]
    for now, i in enumerate(order):
        rhythm.arrive(sites[i], float(now))
    for i in {*order[-1:]}:
        assert rhythm.arrive(sites[i], len(order) - 1 + AT_ONCE_S / 2).is_together
