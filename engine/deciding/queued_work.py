"""How much work waits, by tier and by what becomes of it: sums that are kept, not counted anew.

Each sequence that waits is in one group, of its tier and its state, with the seconds of engine time
that its policy last said it has left, and the tokens that are to be prefilled yet. A change costs
O(1), however many wait. Rounding errors do not pile up: a group that nobody is in any more has a
sum of exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
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
    """How many sequences there are of a group, their work in seconds of engine time, and in tokens:
    of those that wait the ones to be prefilled, of those that decode the ones expected yet.
    """

    num: int
    seconds: float
    tokens: int = 0

    def plus(self, other: Amount) -> Amount:
        """Returns both together."""
        return Amount(
            self.num + other.num, self.seconds + other.seconds, self.tokens + other.tokens
        )

    def less(self, part: Amount) -> Amount:
        """Returns what is left without a part of it, whose seconds may have been reckoned
        otherwise.
        """
        num = max(0, self.num - part.num)
        seconds = max(0.0, self.seconds - part.seconds) if num else 0.0
        return Amount(num, seconds, max(0, self.tokens - part.tokens))


NOTHING = Amount(0, 0.0)


def total(amounts: Iterable[Amount]) -> Amount:
    """Returns all of them together."""
    return reduce(Amount.plus, amounts, NOTHING)


def state_of(waiting: Sequence) -> str:
    """Returns the state of a sequence that waits."""
    if waiting.relegated:
        return RELEGATED
    return BEST_EFFORT if waiting.due_at == math.inf else WAITING


def tokens_left(waiting: Sequence) -> int:
    """Returns how many tokens of a sequence that waits are to be prefilled; before it has begun,
    without those that the prefix index had when it came.
    """
    return waiting.num_uncomputed - (0 if waiting.num_computed else waiting.expected_prefix)


class QueuedWork:
    """The work of the sequences that wait. Tiers that have had some are remembered: there are as
    many as the operator has named.
    """

    def __init__(self) -> None:
        self._of: dict[Sequence, tuple[Group, float, int]] = {}
        self._groups: dict[Group, list[float]] = {}  # number, seconds and tokens

    def put(self, sequence: Sequence, work_s: float) -> None:
        """The sequence waits, as it is now, with that much work left."""
        before = self._of.get(sequence)
        if before is not None:
            self._take(*before)
        group, tokens = (sequence.request.tier, state_of(sequence)), tokens_left(sequence)
        self._of[sequence] = (group, work_s, tokens)
        amount = self._groups.get(group)
        if amount is None:
            self._groups[group] = [1, work_s, tokens]
        else:
            amount[0] += 1
            amount[1] += work_s
            amount[2] += tokens

    def drop(self, sequence: Sequence) -> None:
        """The sequence waits no longer."""
        self._take(*self._of.pop(sequence))

    def _take(self, group: Group, work_s: float, tokens: int) -> None:
        amount = self._groups[group]
        amount[0] -= 1
        amount[1] = max(0.0, amount[1] - work_s) if amount[0] else 0.0
        amount[2] -= tokens

    def amounts(
        self, running: Iterable[Sequence], demand: Demand, tiers: Iterable[str]
    ) -> dict[Group, Amount]:
        """Returns the amount of each group, of the tiers that are named and of all that have had
        any; with the running, which are counted now: there are no more of them than fit a batch.
        """
        found = {
            group: Amount(int(num), seconds, int(tokens))
            for group, (num, seconds, tokens) in self._groups.items()
        }
        for sequence in running:
            group = (sequence.request.tier, RUNNING)
            own = Amount(1, demand.decodes_s(sequence), round(demand.decodes_left(sequence)))
            found[group] = found.get(group, NOTHING).plus(own)
        for tier in {*tiers, *(tier for tier, _ in found)}:
            for state in STATES:
                found.setdefault((tier, state), NOTHING)
        return found

    def check(self, waiting: Iterable[Sequence]) -> None:
        """Asserts that the sums are those of the sequences that wait, each as it is."""
        assert set(self._of) == set(waiting)
        works: dict[Group, list[float]] = {group: [] for group in self._groups}
        lengths = dict.fromkeys(self._groups, 0)
        for sequence, (group, work_s, tokens) in self._of.items():
            assert group == (sequence.request.tier, state_of(sequence))
            works[group].append(work_s)
            lengths[group] += tokens
        for group, (num, seconds, length) in self._groups.items():
            assert num == len(works[group])
            assert math.isclose(seconds, math.fsum(works[group]), rel_tol=1e-9, abs_tol=1e-9)
            assert length == lengths[group]
