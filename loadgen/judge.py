"""Whether a simulated target serves a load: few enough late, and no growing backlog.

A deadline of minutes hides an overload of minutes, and would measure how long a run is: so of the
work that arrives, no more may be left behind than 1 %, or than chance explains in a short run.
(`modes.sustains` says the same of a measured run, which strays more.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from loadgen.scoring import score
from loadgen.targets import simulated
from loadgen.targets.record import Record
from loadgen.workload.plan import PlannedRequest

MAX_GROWTH = 0.01


class Judge(NamedTuple):
    """How requests are scored, and what is allowed."""

    pace: bool = False  # raw token pace instead of the deadline envelope
    max_misses: float = 0.01  # share of the requests
    deviations: float = 2.0  # of the growth that chance brings, where that is more than MAX_GROWTH

    def is_late(self, record: Record) -> bool:
        return not (score.is_on_pace if self.pace else score.is_on_time)(record)

    def is_served(self, setup: simulated.Setup, requests: Sequence[PlannedRequest]) -> bool:
        """Stops where the answer is known."""
        ended, num_late = [], 0
        with simulated.uncollected():
            for record in simulated.records(setup, requests):
                ended.append(record)
                num_late += self.is_late(record)
                if num_late > self.max_misses * len(requests):
                    return False
        return not self.grows(ended)

    def grows(self, records: Sequence[Record]) -> bool:
        last_at = max((record.request.at for record in records), default=0.0)
        if not last_at:
            return False  # one instant, or nothing
        end_s = math.nextafter(last_at, math.inf)
        by_chance = self.deviations * score.backlog_noise(records, 0.0, end_s)
        return score.backlog_growth(records, 0.0, end_s) > max(MAX_GROWTH, by_chance)
