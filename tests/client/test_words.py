"""What the command prints."""

from __future__ import annotations

import pytest

from niyama.client import words
from niyama.client.values import Decision, Explanation, Importance, ResolvedTargets, Targets

ASKED = ResolvedTargets(Targets(ttlt=30.0), "report", Importance.NORMAL, "tier")


@pytest.mark.parametrize(("num_held", "num_lines"), [(1, 1), (words.MOST_ALIKE, 3), (56, 2)])
def test_of_many_decisions_alike_the_first_and_the_last_are_told(
    num_held: int, num_lines: int
) -> None:
    first = Decision(0.001, "admitted", "5 prompt tokens", 0.02, {})
    held = [
        Decision(0.1 * i, "held", "tokens of others are due", None, {}) for i in range(num_held)
    ]
    end = Decision(9.0, "finished", "length", None, {})
    said = words.told(Explanation("id", ASKED, (first, *held, end), "On time.")).splitlines()
    assert said[1].endswith("5 prompt tokens  (predicted 20.0 ms)")
    assert len(said[2:-2]) == num_lines
    assert said[-2].endswith("finished     length")
    if num_held > words.MOST_ALIKE:
        assert said[3].split("  ")[-2:] == ["5,500.0 ms", "the last of 56 like this"]
