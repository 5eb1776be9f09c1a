"""How much work weighs against deadlines, as the load grows."""

from __future__ import annotations

import pytest

from engine.deciding.niyama import MAX_ALPHA
from tests.engine.deciding.parts import interactive, make_request, make_scheduler

CHUNK = 64  # the largest of MILLI: it takes 65 ms


@pytest.mark.parametrize(
    ("waiting", "alpha"), [(0, 0.0), (1, 0.0), (4, 0.0), (8, 1.0), (12, 4.0), (14, 8.0)]
)
def test_alpha_follows_the_load(waiting: int, alpha: float) -> None:
    """65 ms each, all due in 1 s: load is the work over the slack that is left, 0.26 / 0.74 = 0.35
    for four, 0.52 / 0.48 = 1.1 for eight, 0.78 / 0.22 = 3.5 for twelve, 0.91 / 0.09 = 10 for
    fourteen. Alpha is the nearest power of two, and 0 below a load of 0.5.
    """
    scheduler = make_scheduler()
    for i in range(waiting):
        scheduler.submit(make_request(f"r{i}", CHUNK, 1, targets=interactive(1.0, 1.0)), 0.0)
    scheduler.policy.review(0.0)
    assert scheduler.policy.alpha == alpha


def test_alpha_has_a_bound() -> None:
    """0.975 s of work, all due in 0.98 s: a load of 195."""
    scheduler = make_scheduler()
    for i in range(15):
        scheduler.submit(make_request(f"r{i}", CHUNK, 1, targets=interactive(0.98, 1.0)), 0.0)
    scheduler.policy.review(0.0)
    assert scheduler.policy.alpha == MAX_ALPHA == 32.0
