"""What the command prints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from niyama.client import words
from niyama.client.values import (
    Accepted,
    Decision,
    Explanation,
    Forecast,
    Importance,
    ResolvedTargets,
    Targets,
)

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


def test_it_is_said_where_targets_come_from_that_nobody_stated() -> None:
    inferred = replace(ASKED, source="inferred", reason="its deadlines", tier="")
    (line,) = words.accepted(Accepted("id", inferred, 5, Forecast(True, 0.1, 0.2)))
    assert line == ("targets: TTLT 30,000.0 ms (inferred: its deadlines), importance normal")
    late, would_be = words.accepted(Accepted("id", ASKED, 5, Forecast(False, 0.1, 0.2), inferred))
    assert late == "expected late: TTFT 100.0 ms  TTLT 200.0 ms"
    assert would_be.startswith("would be inferred: TTLT 30,000.0 ms")
    assert list(words.accepted(Accepted("id", ASKED, 5, None))) == []
