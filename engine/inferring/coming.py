"""Whether calls come as a program sends them: more often so than chance would have it."""

from __future__ import annotations

import math

from engine.inferring.calls import Coming
from engine.inferring.rhythm import AT_ONCE_S, REACTION_S

WINDOW = 64  # calls that count
DEVIATIONS = 5.0  # of chance, below which it may be that: it is asked again and again


class _Beyond:
    """How often something is so, and how often it would be by chance, of late."""

    __slots__ = ("_chance", "_num", "_seen")

    def __init__(self) -> None:
        self._seen = self._chance = 0.0
        self._num = 0

    def add(self, is_so: bool, chance: float) -> None:
        self._num = min(self._num + 1, WINDOW)
        self._seen += (is_so - self._seen) / self._num
        self._chance += (chance - self._chance) / self._num

    @property
    def share(self) -> float:
        """Returns how often it is so of those times that chance does not explain; 0 where chance
        may explain all.
        """
        beyond, left = self._seen - self._chance, 1 - self._chance
        return beyond / left if beyond > self._noise() else 0.0

    def _noise(self) -> float:
        """Returns by how much chance alone may differ from itself. The weights that fall off count
        as much as nearly twice WINDOW equal ones.
        """
        num = self._num if self._num < WINDOW else 2 * WINDOW - 1
        return DEVIATIONS * math.sqrt(self._chance * (1 - self._chance) / num)


class Comings:
    """How the calls of a site come. Chance is that of Poisson arrivals at the same rate."""

    __slots__ = ("_prompted", "_together")

    def __init__(self) -> None:
        self._together, self._prompted = _Beyond(), _Beyond()

    def add(self, coming: Coming) -> None:
        """Takes note of how one came."""
        self._together.add(coming.is_together, _chance(coming.rate * AT_ONCE_S))
        self._prompted.add(coming.is_prompted, _chance(coming.rate * REACTION_S))

    @property
    def together(self) -> float:
        """Returns the share of calls that come at once with others, beyond chance."""
        return self._together.share

    @property
    def prompted(self) -> float:
        """Returns the share of calls that come as soon as one was served, beyond chance."""
        return self._prompted.share


def _chance(expected: float) -> float:
    """Returns the probability of at least one event where so many are expected."""
    return 1 - math.exp(-expected)
