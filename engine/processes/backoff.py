"""How long to wait before a process that was lost is started again. Seconds."""

from __future__ import annotations

LONGEST_S = 30.0
STABLE_AFTER_S = 10.0  # what lived this long is not one that fails at once


class Backoff:
    """The wait is `first_s` at first, and doubles with each loss of a process that did not last."""

    def __init__(self, first_s: float) -> None:
        self._first_s = self._delay_s = first_s

    def lost(self, lived_s: float) -> None:
        """Takes note that a process was lost which had lived so long."""
        if lived_s > STABLE_AFTER_S:
            self._delay_s = self._first_s

    def next_s(self) -> float:
        """Returns how long to wait before the next attempt."""
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, LONGEST_S)
        return delay_s
