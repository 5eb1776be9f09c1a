"""When a load counts as served, on figures worked out by hand."""

from __future__ import annotations

import pytest

from loadgen.scoring.criterion import MEASURED, SIMULATED, Criterion
from loadgen.scoring.summary import Summary
from loadgen.targets.target import Run
from tests.loadgen.examples import INFO, planned, record, summarised, workload


def run(num_late: int, num: int = 100) -> Summary:
    """Requests of 13 tokens, ten a second, gone after half a second; the late after 1.5 s."""
    records = [
        record(planned(n, n / 10), [n / 10 + (1.5 if n < num_late else 0.5)] * 3)
        for n in range(num)
    ]
    return summarised(workload(), INFO, Run(records, 11.0))


def test_at_most_so_many_may_be_late_and_that_many_may() -> None:
    """One of a hundred is 1 %, though 1 - 0.99 is more than 0.01 in binary."""
    assert MEASURED.is_met(run(1))
    assert not MEASURED.is_met(run(2))
    assert MEASURED._replace(max_misses=0.02).is_met(run(2))
    assert not MEASURED._replace(max_misses=0.0).is_met(run(1))


def test_a_load_of_nothing_was_not_served() -> None:
    assert not MEASURED.is_met(run(0, 0))


@pytest.mark.parametrize(
    ("criterion", "noise", "allowed"),
    [(MEASURED, 0.01, 0.05), (MEASURED, 0.25, 0.5), (SIMULATED, 0.0, 0.01), (SIMULATED, 0.25, 0.5)],
)
def test_a_backlog_may_grow_by_a_share_or_by_what_chance_brings(
    criterion: Criterion, noise: float, allowed: float
) -> None:
    assert not criterion.grows(allowed, noise)
    assert criterion.grows(allowed + 0.001, noise)


def test_late_is_by_the_envelope_or_by_the_pace() -> None:
    """The tokens are due at 1.0, 1.125 and 1.25 s, and one gap is longer than 0.125 s."""
    uneven = record(planned(), [0.5, 0.6, 0.9])
    assert not MEASURED.is_late(uneven)
    assert MEASURED._replace(pace=True).is_late(uneven)
