"""Which part of a log is simulated, and what a tenant with its fair share alone sends."""

from __future__ import annotations

import pytest

from loadgen.audit.alternatives import (
    Alternatives,
    Tallies,
    Tally,
    copied,
    fair_shares_of,
    worst_part,
)
from loadgen.audit.cells import OTHERS
from loadgen.audit.periods import Periods, Span
from tests.loadgen.examples import planned


def periods(*counts: tuple[int, int]) -> Periods:
    """Steps of ten seconds, each with so many arrivals, of which so many missed a target."""
    found = Periods()
    for number, (arrived, missed) in enumerate(counts):
        found.add(10.0 * number, "a", Span(arrived=arrived, missed=missed))
    return found


def test_the_part_in_which_most_came_to_harm_is_taken() -> None:
    found = periods((5, 1), (5, 0), (5, 3), (5, 2), (5, 1))
    assert worst_part(found, 100) == (0.0, 50.0)
    assert worst_part(found, 10) == (20.0, 40.0)
    assert worst_part(found, 5) == (20.0, 30.0)
    assert worst_part(found, 1) == (20.0, 30.0)  # a step is not cut


def test_copies_are_as_many_as_the_share_has_room_for_and_not_in_step() -> None:
    own = [planned(index, at=10.0 * index) for index in range(200)]
    copies = copied(own, 2.5, "a")
    assert len(copies) == pytest.approx(500, abs=30)
    assert [copy.at for _, copy in copies] == sorted(copy.at for _, copy in copies)
    assert all(abs(copy.at - original.at) <= 60.0 for original, copy in copies)
    assert (
        sum(copy.at == original.at for original, copy in copies) >= 200
    )  # those of the log itself
    assert copied(own, 1.0, "a") == [(each, each) for each in own]
    assert copied(own, 2.5, "a") == copies


def test_tenants_that_are_not_simulated_alone_have_one_share_together() -> None:
    sent = {f"t{number}": 100 - number for number in range(20)}
    fair = fair_shares_of(sent, {"t0": 3.0})
    assert len(fair) == 9
    assert fair["t0"] == pytest.approx(0.75)
    assert fair[OTHERS] == pytest.approx(0.25 * 12 / 19)
    assert sum(fair.values()) == pytest.approx(1.0)


def tallies(**on_time: int) -> Tallies:
    return {(tenant, "chat"): Tally(100, num) for tenant, num in on_time.items()}


def alternatives(was: Tallies, simulated: Tallies, alone: Tallies) -> Alternatives:
    fair = dict.fromkeys(("a", "b"), 0.5)
    return Alternatives(0.0, 60.0, 200, True, "niyama", fair, was, simulated, simulated, alone)


def test_what_is_said_of_them() -> None:
    worse = alternatives(tallies(a=50, b=99), tallies(a=52, b=99), tallies(a=98, b=99))
    said = " ".join(worse.sentences())
    assert "Worst off by the doing of others is a: with its fair share" in said
    assert "off the log" not in said
    assert worse.alone_by_tier("chat") == pytest.approx(0.985)
    far = alternatives(tallies(a=50, b=50), tallies(a=98, b=99), tallies(a=98, b=98))
    said = " ".join(far.sentences())
    assert "The simulation is 48 points off the log" in said
    assert "Nobody was worse off" in said
