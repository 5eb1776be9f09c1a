"""The search for capacity: the largest rate that passes. Knows nothing of what passing means.

Doubles or halves from a first guess until one rate passes and one fails, then bisects (by the
geometric mean) until they are within `precision` of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_MOST_DOUBLINGS = 12


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found: `passed` is the largest rate that passed (0: none did), `failed` the
    smallest that failed (inf: none did). Requests per second.
    """

    passed: float
    failed: float

    @property
    def is_bracketed(self) -> bool:
        """Says whether the search found both a rate that passes and one that fails."""
        return self.passed > 0 and self.failed < math.inf


def find_capacity(passes: Callable[[float], bool], guess: float, precision: float) -> Capacity:
    """Searches until the two rates are within `precision` (relative) of each other, beginning at
    `guess`. It assumes that what fails at one rate fails at every larger one.
    """
    passed, failed = _bracket(passes, guess)
    if not (passed and failed < math.inf):
        return Capacity(passed, failed)
    while failed > passed * (1 + precision):
        rate = math.sqrt(passed * failed)
        if passes(rate):
            passed = rate
        else:
            failed = rate
    return Capacity(passed, failed)


def _bracket(passes: Callable[[float], bool], guess: float) -> tuple[float, float]:
    rate, passed, failed = guess, 0.0, math.inf
    for _ in range(_MOST_DOUBLINGS):
        if passes(rate):
            passed = rate
            if failed < math.inf:
                break
            rate *= 2
        else:
            failed = rate
            if passed:
                break
            rate /= 2
    return passed, failed


def majority(passes_with_seed: Callable[[int], bool], repeats: int) -> bool:
    """Says whether more than half of the repeats pass, each with a seed of its own; it stops as
    soon as that is settled.
    """
    needed, passed = repeats // 2 + 1, 0
    for seed in range(repeats):
        passed += passes_with_seed(seed)
        if passed >= needed or passed + (repeats - seed - 1) < needed:
            break
    return passed >= needed
