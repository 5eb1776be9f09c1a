"""How long the outputs of an application have been, as a guess of how long the next will be.

Mean and deviation are exponentially weighted, so that an application that changes is followed.
Niyama (arXiv 2503.22562, section 3) plans with the mean plus two standard deviations. Here the
plain mean loses the fewest deadlines (`python -m tests.bench outputs`): a guess on the high side
makes one request hurry, and with it every iteration; knowing that it is long would do the same.

What a request states as `max_tokens` bounds a guess and is none: callers state a round number far
above what they get. Who has no history is expected to be like everybody, and while nobody has any,
like PRIOR (docs/decisions/expected-outputs.md). Lengths are in tokens.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

from engine.deciding.request import named_by

WEIGHT = 0.05  # of the newest observation
MIN_OBSERVED = 5  # before that a mean says nothing
PRIOR = 128  # the guess while nothing at all has been observed
SPREAD = 2.0  # deviations by which a short output is shorter than the mean, and a long one longer


class _Moments(NamedTuple):
    """Of the lengths that were observed; mean and variance are weighted by recency."""

    num: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def with_one(self, length: int) -> _Moments:
        """Returns the moments with one more length."""
        num = self.num + 1
        weight = max(WEIGHT, 1 / num)  # a plain average until the window is full
        delta = length - self.mean
        variance = (1 - weight) * (self.variance + weight * delta * delta)
        return _Moments(num, self.mean + weight * delta, variance)


_NONE = _Moments()


class _Guess(NamedTuple):
    """What is expected of the next output: on average, and to plan with."""

    mean: float
    high: int  # the mean and so many deviations
    short: float  # the mean less SPREAD of them, at least 1
    long: float  # the mean and SPREAD of them


_PRIOR_GUESS = _Guess(float(PRIOR), PRIOR, 1.0, 2.0 * PRIOR)


class _Table:
    """The moments and guesses of many groups. When there are too many, the one that has ended a
    request least recently is forgotten.
    """

    def __init__(self, deviations: float, most: int) -> None:
        self.guesses: dict[str, _Guess] = {}
        self._deviations, self._most = deviations, most
        self._moments: OrderedDict[str, _Moments] = OrderedDict()

    def observe(self, group: str, length: int) -> None:
        moments = self._moments.pop(group, _NONE).with_one(length)
        self._moments[group] = moments
        if moments.num >= MIN_OBSERVED:
            deviation = math.sqrt(moments.variance)
            high = max(1, math.ceil(moments.mean + self._deviations * deviation))
            short = max(1.0, moments.mean - SPREAD * deviation)
            long = moments.mean + SPREAD * deviation
            self.guesses[group] = _Guess(moments.mean, high, short, long)
        if len(self._moments) > self._most:
            forgotten, _ = self._moments.popitem(last=False)
            self.guesses.pop(forgotten, None)


class OutputLengths:
    """Knows the output lengths of each application (`Request.output_group`), and of each tenant.
    When there are too many, those that have ended a request least recently are forgotten.

    An estimate is the mean plus `deviations` standard deviations.
    """

    def __init__(self, deviations: float, max_applications: int = 10_000) -> None:
        self._applications = _Table(deviations, max_applications)
        self._tenants = _Table(deviations, max_applications)

    def observe(self, application: str, length: int) -> None:
        """Takes note that a request of the application ended by itself after `length` tokens."""
        self._applications.observe(application, length)
        self._tenants.observe(named_by(application)[0], length)

    def estimate(self, application: str, max_tokens: int) -> int:
        """Returns the guess of one request's length: at least 1 and at most `max_tokens`."""
        return min(max_tokens, self._guess(application).high)

    def known(self, application: str) -> int | None:
        """Returns the estimate without a bound; None while too few have been observed."""
        guess = self._applications.guesses.get(application)
        return None if guess is None else guess.high

    def mean(self, application: str, max_tokens: int) -> float:
        """Returns the expected length, at most `max_tokens`."""
        return min(float(max_tokens), self._guess(application).mean)

    def short(self, application: str) -> float:
        """Returns a length that nearly all outputs reach: SPREAD deviations less than the mean, and
        at least 1, which it is where outputs differ widely and while too few were observed.
        """
        return self._guess(application).short

    def long(self, application: str, max_tokens: int) -> float:
        """Returns a length that few outputs exceed, at most `max_tokens`: SPREAD deviations more
        than the mean.
        """
        return min(float(max_tokens), self._guess(application).long)

    def _guess(self, application: str) -> _Guess:
        own = self._applications.guesses.get(application)
        if own is not None:
            return own
        return self._tenants.guesses.get(named_by(application)[0], _PRIOR_GUESS)
