"""How well it was inferred what applications mean, and what that did to them.

A call is on time if it met the targets of the tier that its application means. One whose caller
left of its own accord counts as far as it came, and not at all where nothing was due yet; one that
was given up since nothing came is late.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadgen.inferring.applications import TIERS, Application, Call, Caller

POINT = 0.01
DEVIATIONS = 3.0  # of chance, by which one run may differ from another


def is_on_time(call: Call) -> bool | None:
    """Returns whether the call was on time by what its application means; None: nobody can say."""
    targets, lived_s = TIERS[call.application.meant], call.ended_at - call.at
    came = [at - call.at for at in call.token_at]
    if targets.ttft is None or targets.tbt is None:
        assert targets.ttlt is not None
        if call.is_complete:
            return lived_s <= targets.ttlt
        return False if lived_s > targets.ttlt else None
    if not call.application.is_stream:  # nothing but its end is seen
        due_s = targets.ttft + (call.application.output_len - 1) * targets.tbt
        if call.is_complete:
            return lived_s <= due_s
        return False if lived_s > due_s else None
    if any(at > targets.ttft + i * targets.tbt for i, at in enumerate(came)):
        return False
    if call.is_complete:
        return True
    is_overdue = lived_s > targets.ttft + len(came) * targets.tbt
    return False if is_overdue else True if came else None


@dataclass(frozen=True, slots=True)
class Score:
    """What became of one application's calls."""

    application: Application
    num: int  # calls of which it can be said whether they were on time
    on_time: int
    named: Counter[str]  # the calls by what was inferred for them; "": nothing
    right_from: int | None  # the call from which on the right tier was named, nearly always
    last: str  # that was named in the end
    shares: tuple[float, ...] = ()  # on time, of each run

    @classmethod
    def sum(cls, runs: Sequence[Score]) -> Score:
        """Returns the scores of several runs of an application as one; of the instants the last."""
        found = [each.right_from for each in runs]
        return cls(
            runs[0].application,
            sum(each.num for each in runs),
            sum(each.on_time for each in runs),
            sum((each.named for each in runs), Counter()),
            None if None in found else max(each for each in found if each is not None),
            runs[-1].last,
            tuple(each.attainment for each in runs if each.num),
        )

    @property
    def attainment(self) -> float:
        return self.on_time / self.num if self.num else math.nan


def score(caller: Caller) -> Score:
    """Returns what became of the calls of one application."""
    calls = caller.calls
    judged = [verdict for verdict in map(is_on_time, calls) if verdict is not None]
    named = [call.inferred for call in calls]
    return Score(
        caller.application,
        len(judged),
        sum(judged),
        Counter(named),
        _right_from(named, caller.application.meant),
        Counter(named[-32:]).most_common(1)[0][0] if named else "",
    )


def _right_from(named: Sequence[str], meant: str) -> int | None:
    """Returns the number of the call from which on at least nine in ten named the right tier."""
    right, best = 0, None
    for i, name in zip(range(len(named), 0, -1), reversed(named), strict=True):
        right += name == meant
        if name == meant and right >= 0.9 * (len(named) - i + 1):
            best = i
    return best


def is_worse(on: Score, off: Score) -> bool:
    """Returns whether an application fared worse with inference than without, beyond chance and a
    point. Chance is that of single calls or, where runs differ by more, that of runs.
    """
    if not (on.num and off.num):
        return False
    pooled = (on.on_time + off.on_time) / (on.num + off.num)
    of_calls = pooled * (1 - pooled) * (1 / on.num + 1 / off.num)
    of_runs = sum(_error(each.shares) for each in (on, off))
    noise = math.sqrt(max(of_calls, of_runs))
    return on.attainment < off.attainment - POINT - DEVIATIONS * noise


def _error(shares: Sequence[float]) -> float:
    """Returns the variance of the mean of several runs; 0 where there are no several."""
    return statistics.variance(shares) / len(shares) if len(shares) > 1 else 0.0


def confusion(scores: Iterable[Score]) -> dict[str, Counter[str]]:
    """Returns the calls by the tier that was meant, and then by that which was named."""
    found: dict[str, Counter[str]] = {}
    for each in scores:
        found.setdefault(each.application.meant, Counter()).update(each.named)
    return found
