"""Whether another process is alive, from what it shows and when it was looked at. Reads no clock.

A process that has stopped is told apart from one that is long at its work: the first shows no beat,
the second beats and goes on being at one turn. Whoever watches may itself have been stopped, with
the machine or alone, and must not take its own absence for the other's silence: of the time between
two looks no more counts than what two looks in time would have been apart. Seconds.
"""

from __future__ import annotations

from enum import Enum

from engine.processes.pulse import BEATS_PER_PATIENCE, NO_TURN

# Importing, loading and compiling hold Python's lock for long, and no thread beats meanwhile.
LOADING_S = 60.0
GIVEN_UP_AFTER = 2  # times the patience: until then a process that beats again is taken back


class Condition(Enum):
    WELL = "well"
    SILENT = "silent"  # shows no sign of life: nothing new is given to it
    STOPPED = "stopped"  # nor has it for as long again
    STUCK = "stuck"  # lives, but does not come to the end of a turn


class Stillness:
    """Measures how long a value has been the same, as far as who looks was awake. Looks come every
    `period_s`.
    """

    def __init__(self, period_s: float) -> None:
        self._most_s = 2 * period_s
        self._looked_at: float | None = None
        self._value: object = None
        self._still_s = 0.0

    def look(self, value: object, now: float) -> float:
        """Returns for how many seconds the value has been this one."""
        if self._looked_at is None or value != self._value:
            self._still_s = 0.0
        else:
            self._still_s += min(now - self._looked_at, self._most_s)
        self._looked_at, self._value = now, value
        return self._still_s


class Watch:
    """Judges one process by what it shows at every look."""

    def __init__(self, heartbeat_s: float, patience_s: float = float("inf")) -> None:
        """Without a beat for `heartbeat_s` the process is silent; at one turn for `patience_s`, it
        is stuck.
        """
        period_s = heartbeat_s / BEATS_PER_PATIENCE
        self._heartbeat_s = heartbeat_s
        self._patience_s = patience_s
        self._beats = Stillness(period_s)
        self._turn = Stillness(period_s)

    def look(self, beats: int, turn: int, is_loading: bool, now: float) -> Condition:
        """Says how the process is, by the number of its beats and of the turn that it is at."""
        silent_s = self._beats.look((beats, is_loading), now)
        turn_s = self._turn.look((turn, is_loading), now)
        given_up_s = GIVEN_UP_AFTER * self._heartbeat_s
        if is_loading:
            is_over = silent_s >= max(LOADING_S, given_up_s)
            return Condition.STOPPED if is_over else Condition.WELL
        if silent_s >= self._heartbeat_s:
            return Condition.STOPPED if silent_s >= given_up_s else Condition.SILENT
        if turn != NO_TURN and turn_s >= self._patience_s:
            return Condition.STUCK
        return Condition.WELL
