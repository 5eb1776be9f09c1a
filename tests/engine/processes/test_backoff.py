"""What fails at once is tried ever more seldom, and what lasted is tried at once again."""

from __future__ import annotations

from engine.processes.backoff import STABLE_AFTER_S, Backoff


def test_each_attempt_waits_twice_as_long_until_one_has_lasted() -> None:
    backoff = Backoff(first_s=0.5)
    assert [backoff.next_s() for _ in range(3)] == [0.5, 1.0, 2.0]
    backoff.lost(lived_s=STABLE_AFTER_S)
    assert [backoff.next_s() for _ in range(6)] == [4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    backoff.lost(lived_s=STABLE_AFTER_S + 1)
    assert [backoff.next_s() for _ in range(2)] == [0.5, 1.0]
