"""When a load counts as served: few enough of its requests are late, and its backlog does not grow.

A deadline of minutes hides an overload of minutes: lateness alone would measure how long a run is.
So of the work that arrives, only so much may be left behind (`score.backlog_growth`): the share
`max_growth`, or `deviations` standard deviations of what chance alone brings to a sustained load
(`score.backlog_noise`), whichever is more.

There is one rule and one set of numbers for measured runs, the defaults. What is simulated differs
in two of them, each for a reason, and with other numbers other figures would come out of a sizing
of silos or of the papers' evaluation:
* `MEASURED` allows a growth of 5 %. Iterations of a real engine take now more, now less, and so the
  backlog strays beyond what the chance of arrivals explains; in half a minute at 40 requests/s, 5 %
  are one standard deviation of the arrivals alone.
* `SIMULATED` allows 1 %. Virtual time repeats to the last digit: only arrivals stray, which
  `deviations` allows for, and 1 % is for loads so large that chance brings less than that.
* The papers' evaluation (`loadgen.paper.serving`) allows half a deviation instead of two. Its
  contenders see the same requests, so that chance is common to all that are compared, and a wide
  margin would only hide in a short run the backlog that a long one ends with.
"""

from __future__ import annotations

from typing import NamedTuple

from loadgen.scoring.score import is_on_pace, is_on_time
from loadgen.scoring.summary import Summary
from loadgen.targets.record import Record


class Criterion(NamedTuple):
    """What is allowed of a load that counts as served."""

    max_misses: float = 0.01  # share of the requests that may be late
    max_growth: float = 0.05  # share of the arriving tokens that may be left behind
    deviations: float = 2.0  # of the growth that chance brings, where that is more
    pace: bool = False  # late is by the raw token pace instead of the deadline envelope

    def is_late(self, record: Record) -> bool:
        """Says whether a request counts as late."""
        return not (is_on_pace if self.pace else is_on_time)(record)

    def allows(self, num_late: int, num_sent: int) -> bool:
        """Says whether so many late requests are few enough; they are late by `is_late`."""
        return num_late <= self.max_misses * num_sent

    def grows(self, growth: float, noise: float) -> bool:
        """Says whether a backlog grows by more than is allowed, and by more than chance explains;
        both are shares of the arriving tokens, as `score` defines them.
        """
        return growth > max(self.max_growth, self.deviations * noise)

    def falls_behind(self, summary: Summary) -> bool:
        """Says whether the backlog of a run grew by too much."""
        return self.grows(summary.backlog_growth, summary.backlog_noise)

    def is_met(self, summary: Summary) -> bool:
        """Says whether a run served its load; it did not where nothing was sent."""
        score = summary.total
        num_good = score.num_on_pace if self.pace else score.num_on_time
        few_late = self.allows(score.num_sent - num_good, score.num_sent)
        return score.num_sent > 0 and few_late and not self.falls_behind(summary)


MEASURED = Criterion()
SIMULATED = Criterion(max_growth=0.01)
