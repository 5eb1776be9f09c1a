"""What the calls of one site have shown of what they need. Seconds throughout.

Nobody says what these calls need, so nothing is believed of them but what costs their callers
something: that they waited and did not leave, that they left, and that they come as no person can.

* A deadline is when the caller gives up. Whoever waits for D seconds at most is not well served
  after D: half of it is taken, of the shorter where deadlines differ.
* A caller that leaves has waited too long, or for long enough. Where that is not rare, half of the
  shorter of such waits is taken.
* Callers that have waited for W seconds with nothing coming, and did not leave, can wait for W: if
  nobody of PATIENT did, fewer than 1 in 10 would (the rule of three: Hanley and Lippman-Hand, JAMA
  1983). Under light load nobody waits, and nothing is learnt, nor needed.
* Unary calls that come at once, many together, are sent by a program, and nobody watches. Unary
  calls that come as soon as one before them was served are, too; but somebody may wait for the end
  of the row, and then for no call of it more than ATTENTION_S.
* A stream is taken to be watched, unless its callers have been seen to wait for ATTENTION_S.

How fast a stream is read cannot be seen: all of a usual answer fits into the flow-control window of
its connection, whoever reads it.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

from engine.inferring.calls import End, Ended
from engine.inferring.coming import Comings
from engine.inferring.ring import Ring

MIN_CALLS = 16  # before that nothing is said
MIN_SERVED = 8
EVERY = 8  # calls after which it is judged again; at once where somebody has left
WINDOW = 128  # waits that are looked back on
RECENT = 32  # deadlines and outputs that are
PATIENT = 30  # of WINDOW that must have waited as long
LEFT_MEMORY = 1024  # calls after which somebody who left is forgotten
LEFT_SHARE, MIN_LEFT = 0.03, 2  # of the calls since, from which on leaving is not rare
LOW, HIGH = 0.1, 0.9  # the shorter and the longer of a row of numbers
SAFE = 0.5  # of what callers wait for at most
SHORT_S = 3.0  # a deadline in which nobody watches anything come
ATTENTION_S = 10.0  # that people wait with their mind on it (Miller 1968; Nielsen 1993)
TOGETHER, PROMPTED = 0.85, 0.6  # shares beyond chance from which on it is a program


class Shown(Enum):
    """What a site's calls have shown."""

    WATCHED = "watched"  # somebody may look on as it comes
    WHOLE = "whole"  # it is to be complete by then
    PATIENT = "patient"  # nobody minds if it is complete by then, and maybe later


class Need(NamedTuple):
    """What a site's calls need. `by_s` is when all of an output should be there, inf where nothing
    speaks of an end; it says nothing of what is watched. `output_len` is as long as nine in ten of
    its outputs, or longer, in tokens. `reason` is for people.
    """

    shown: Shown
    by_s: float
    output_len: int
    reason: str


class Habit:
    """The history of one site, of bounded size."""

    __slots__ = (
        *("_comings", "_is_stream", "_left", "_outputs", "_silences", "_timeouts", "_waited_s"),
        *("need", "num_calls"),
    )

    def __init__(self, is_stream: bool) -> None:
        self.need: Need | None = None  # None: too little is known
        self.num_calls = 0
        self._is_stream = is_stream
        self._comings = Comings()
        self._silences = Ring(WINDOW)  # of calls that were served
        self._outputs = Ring(RECENT)
        self._timeouts = Ring(RECENT)
        self._left: list[tuple[int, float]] = []  # number of the call, how long it had waited
        self._waited_s = 0.0  # for which callers were seen to wait

    def observe(self, ended: Ended) -> bool:
        """Takes note of a call; returns whether `need` is another than before."""
        self.num_calls += 1
        self._comings.add(ended.coming)
        self._timeouts.add(ended.timeout_s)
        if ended.end is End.SERVED:
            self._silences.add(ended.silence_s)
            self._outputs.add(ended.output_len)
        elif ended.end is End.LEFT:
            self._left = [*self._left[1 - WINDOW :], (self.num_calls, ended.silence_s)]
        if self.num_calls % EVERY and ended.end is not End.LEFT:
            return False
        before, self.need = self.need, self._judge()
        return self.need != before

    def _judge(self) -> Need | None:
        if self.num_calls < MIN_CALLS or len(self._outputs) < MIN_SERVED:
            return None
        deadline_s, patience_s = self._timeouts.quantile(LOW), self._patience_s()
        until_s = SAFE * min(deadline_s, patience_s)
        if patience_s == math.inf:
            self._waited_s = max(self._waited_s, self._silences.largest(PATIENT))
        else:
            self._waited_s = min(self._waited_s, until_s)
            self._silences.clear()  # that some waited longer shows nothing any more
        shown, by_s, why = self._shown(deadline_s, until_s)
        by_s, output_len = _rounded(by_s), self._outputs.quantile(HIGH)
        told = [*why, *_limits(deadline_s, patience_s)]
        return Need(shown, by_s, _rounded_up(output_len), "; ".join(told))

    def _patience_s(self) -> float:
        """Returns for how long the less patient of those who left had waited; inf where leaving is
        rare.
        """
        oldest = self.num_calls - LEFT_MEMORY
        ages = sorted(silence_s for number, silence_s in self._left if number > oldest)
        if len(ages) < max(MIN_LEFT, LEFT_SHARE * min(self.num_calls, LEFT_MEMORY)):
            return math.inf
        return ages[int(LOW * len(ages))]

    def _shown(self, deadline_s: float, until_s: float) -> tuple[Shown, float, list[str]]:
        """Returns what the calls have shown, by when they want to be complete, and why."""
        kind = "streams" if self._is_stream else "unary"
        if deadline_s <= SHORT_S:
            return Shown.WHOLE, SAFE * deadline_s, [kind, "too short a deadline to watch"]
        waited = f"callers have waited for {_told(_rounded(self._waited_s))}"
        if self._is_stream:
            if self._waited_s < ATTENTION_S:
                return Shown.WATCHED, math.inf, [kind, "perhaps watched"]
            return Shown.PATIENT, min(until_s, self._waited_s), [kind, waited]
        if self._comings.together >= TOGETHER:
            return Shown.PATIENT, until_s, [kind, "many at once"]
        if self._comings.prompted >= PROMPTED:
            by_s = min(until_s, max(ATTENTION_S, self._waited_s))
            return Shown.PATIENT, by_s, [kind, "one after the other"]
        return Shown.PATIENT, min(until_s, self._waited_s), [kind, waited]


def _limits(deadline_s: float, patience_s: float) -> list[str]:
    """Returns what callers do not wait beyond, for people."""
    told = []
    if deadline_s < math.inf:
        told.append(f"deadline {_told(_rounded(deadline_s * 1.01))}")
    if patience_s < math.inf:
        told.append(f"some leave after {_told(_rounded(patience_s))}")
    return told


def _told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1000 else f"{seconds:.3g} s"


def _rounded(seconds: float) -> float:
    """Returns at most the seconds, in two digits, so that a need is another only where it is."""
    if not 0 < seconds < math.inf:
        return seconds
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return round(math.floor(seconds / unit) * unit, 9)


def _rounded_up(tokens: float) -> int:
    """Returns at least the tokens, the next power of two."""
    return 1 << max(0, math.ceil(tokens) - 1).bit_length()
