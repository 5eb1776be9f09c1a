"""How calls come beside others of their site."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.inferring.calls import Coming, site_of
from engine.inferring.rhythm import AT_ONCE_S, IDLE_S, REACTION_S, Rhythm


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


def test_invented_names_cost_only_the_share_of_who_invents_them() -> None:
    """Else whoever sends calls of ever new names had all others' unknown, and so served tighter
    than they need.
    """
    rhythm = Rhythm(most_sites=8)
    own = [site_of("acme", "acme", f"app{i}", False) for i in range(4)]
    for site in own:
        rhythm.arrive(site, 1.0)
    for i in range(100):
        rhythm.arrive(site_of("", f"t{i}", f"x{i}", False), 1.0)
    assert all(rhythm.arrive(site, 1.0 + AT_ONCE_S / 2).is_together for site in own)
