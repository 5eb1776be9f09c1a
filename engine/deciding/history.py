"""How long the outputs of an application have been, as a guess of how long the next will be.

Mean and deviation are exponentially weighted, so that an application that changes is followed.
Niyama (arXiv 2503.22562, section 3) plans with the mean plus two standard deviations. Here the
plain mean loses the fewest deadlines (`python -m tests.bench outputs`): a guess on the high side
makes one request hurry, and with it every iteration; knowing that it is long would do the same.
Lengths are in tokens.
"""

from __future__ import annotations

import math
from collections import OrderedDict


class OutputLengths:
    """Knows the output lengths of each application. When there are too many applications, the one
    that has ended a request least recently is forgotten.

    An estimate is the mean plus `deviations` standard deviations.
    """

    WEIGHT = 0.05  # of the newest observation
    MIN_OBSERVED = 5  # before that max_tokens is the estimate

    def __init__(self, deviations: float, max_applications: int = 10_000) -> None:
        self._deviations = deviations
        self._max_applications = max_applications
        self._estimates: dict[str, int] = {}
        self._moments: OrderedDict[str, tuple[int, float, float]] = OrderedDict()

    def observe(self, application: str, length: int) -> None:
        """Takes note that a request of the application ended by itself after `length` tokens."""
        count, mean, variance = self._moments.pop(application, (0, 0.0, 0.0))
        count += 1
        weight = max(self.WEIGHT, 1 / count)  # a plain average until the window is full
        delta = length - mean
        mean += weight * delta
        variance = (1 - weight) * (variance + weight * delta * delta)
        self._moments[application] = (count, mean, variance)
        if count >= self.MIN_OBSERVED:
            high = mean + self._deviations * math.sqrt(variance)
            self._estimates[application] = max(1, math.ceil(high))
        if len(self._moments) > self._max_applications:
            forgotten, _ = self._moments.popitem(last=False)
            self._estimates.pop(forgotten, None)

    def estimate(self, application: str, max_tokens: int) -> int:
        """Returns the guess of one request's length: at least 1 and at most `max_tokens`, which is
        the guess itself while too few have been observed.
        """
        return min(max_tokens, self._estimates.get(application, max_tokens))

    def known(self, application: str) -> int | None:
        """Returns the estimate without a bound; None while too few have been observed."""
        return self._estimates.get(application)

    def mean(self, application: str, max_tokens: int) -> float:
        """Returns the expected length. It is at most `max_tokens`, and exactly that while too few
        have been observed.
        """
        count, mean, _ = self._moments.get(application, (0, 0.0, 0.0))
        return float(max_tokens) if count < self.MIN_OBSERVED else min(mean, float(max_tokens))
