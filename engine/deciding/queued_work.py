"""How much work waits, by tier and by what becomes of it: sums that are kept, not counted anew.

Each sequence that waits is in one group, of its tier and its state, with the seconds of engine time
that its policy last said it has left. A change costs O(1), however many wait. Rounding errors do
not pile up: a group that nobody is in any more has a sum of exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from engine.deciding.demand import Demand
from engine.deciding.sequence import Sequence

# The states. Every sequence that waits or decodes is in one of them.
WAITING = "waiting"  # its deadline is to be kept
RELEGATED = "relegated"
BEST_EFFORT = "best_effort"  # waits, and has no target
RUNNING = "running"  # decodes
STATES = (WAITING, RELEGATED, BEST_EFFORT, RUNNING)

Group = tuple[str, str]  # name of the tier ("": explicit targets), state


class Amount(NamedTuple):
    """How many sequences there are of a group, and their work in seconds of engine time."""

    num: int
    seconds: float


def state_of(waiting: Sequence) -> str:
    """Returns the state of a sequence that waits."""
    if waiting.relegated:
        return RELEGATED
    return BEST_EFFORT if waiting.due_at == math.inf else WAITING


class QueuedWork:
    """The work of the sequences that wait. Tiers that have had some are remembered: there are as
    many as the operator has named.
    """

    def __init__(self) -> None:
        self._of: dict[Sequence, tuple[Group, float]] = {}
        self._groups: dict[Group, list[float]] = {}  # number and seconds

    def put(self, sequence: Sequence, work_s: float) -> None:
        """The sequence waits, as it is now, with that much work left."""
        before = self._of.get(sequence)
        if before is not None:
            self._take(*before)
        group = (sequence.request.tier, state_of(sequence))
        self._of[sequence] = (group, work_s)
        amount = self._groups.get(group)
        if amount is None:
            self._groups[group] = [1, work_s]
        else:
            amount[0] += 1
            amount[1] += work_s

    def drop(self, sequence: Sequence) -> None:
        """The sequence waits no longer."""
        self._take(*self._of.pop(sequence))

    def _take(self, group: Group, work_s: float) -> None:
        amount = self._groups[group]
        amount[0] -= 1
        amount[1] = max(0.0, amount[1] - work_s) if amount[0] else 0.0

    def amounts(
        self, running: Iterable[Sequence], demand: Demand, tiers: Iterable[str]
    ) -> dict[Group, Amount]:
        """Returns the amount of each group, of the tiers that are named and of all that have had
        any; with the running, which are counted now: there are no more of them than fit a batch.
        """
        found = {group: Amount(int(num), seconds) for group, (num, seconds) in self._groups.items()}
        for sequence in running:
            group = (sequence.request.tier, RUNNING)
            num, seconds = found.get(group, _NOTHING)
            found[group] = Amount(num + 1, seconds + demand.decodes_s(sequence))
        for tier in {*tiers, *(tier for tier, _ in found)}:
            for state in STATES:
                found.setdefault((tier, state), _NOTHING)
        return found

    def check(self, waiting: Iterable[Sequence]) -> None:
        """Asserts that the sums are those of the sequences that wait, each as it is."""
        assert set(self._of) == set(waiting)
        works: dict[Group, list[float]] = {group: [] for group in self._groups}
        for sequence, (group, work_s) in self._of.items():
            assert group == (sequence.request.tier, state_of(sequence))
            works[group].append(work_s)
        for group, (num, seconds) in self._groups.items():
            assert num == len(works[group])
            assert math.isclose(seconds, math.fsum(works[group]), rel_tol=1e-9, abs_tol=1e-9)


_NOTHING = Amount(0, 0.0)
