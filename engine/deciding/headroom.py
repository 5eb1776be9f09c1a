"""How much more work could come before a request, and it would still be forecast to be on time.

A request is called on time while its chance of lateness is below MOST_RISK (experience.py). That
chance depends on its margin, which shrinks as more work comes before it, and it does so in steps:
the cells of the experience are 1 / TILINGS wide, shifted by as much, so that the chance is the same
for all margins of a quarter. So the quarters are gone through downwards from the present margin, to
the first that is too risky. The work that leads to its upper end is the headroom; it is exact, and
costs as many looks as there are quarters. Beyond MOST_MARGIN nothing is told apart, and nothing is
looked for.
"""

from __future__ import annotations

import math

from engine.deciding.experience import MOST_MARGIN, MOST_RISK, TILINGS, Experience, Likeness
from engine.deciding.forecast import Forecast
from engine.deciding.request import Targets

_LAST = math.floor(-MOST_MARGIN * TILINGS)  # the quarter in which all smaller margins lie
_WITHIN = 1e-9  # so much shorter, relatively, that rounding does not put it beyond


def headroom_s(forecast: Forecast, targets: Targets, experience: Experience) -> float:
    """Returns the seconds of engine time that could come before a request with these targets, which
    are some, and it would still be called on time; 0 where it would not be now.
    """
    like = forecast.like
    if not forecast.on_time or forecast.refusal or like is None:
        return 0.0
    quarter = math.floor(TILINGS * like.margin)
    while quarter > _LAST:
        below = Likeness(like.importance, (quarter - 1) / TILINGS, like.work)
        if experience.late_chance(below) >= MOST_RISK:
            break
        quarter -= 1
    longest_s = (1 - _WITHIN) * _time_at(quarter / TILINGS, targets)
    return max(0.0, longest_s - _time_now(forecast, targets)) / experience.slowdown


def _time_at(margin: float, targets: Targets) -> float:
    """Returns the time that a request with that margin is forecast to take, until its first token
    or with a TTLT until its last.
    """
    return targets.target_s / math.exp(margin)


def _time_now(forecast: Forecast, targets: Targets) -> float:
    return forecast.ttft_s if targets.ttlt_s is None else forecast.ttlt_s
