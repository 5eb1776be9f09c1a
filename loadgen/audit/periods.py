"""How it went over time: arrivals, misses, relegations and engine time of each tenant, by day, by
hour of the day, and in steps short enough for a chart. Days and hours are those of UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

HOUR_S, DAY_S = 3600, 86400
STEPS_S = (10, 60, 300, 900, HOUR_S, 6 * HOUR_S, DAY_S, 7 * DAY_S, 364 * DAY_S)
MOST_STEPS = 240  # of a chart, those without arrivals included; more are joined


@dataclass(slots=True)
class Span:
    """What one tenant had in one period. Requests belong to the period in which they arrive."""

    arrived: int = 0
    judged: int = 0
    missed: int = 0
    relegated: int = 0
    work_s: float = 0.0

    def merge(self, other: Span) -> None:
        """Adds another period."""
        self.arrived += other.arrived
        self.judged += other.judged
        self.missed += other.missed
        self.relegated += other.relegated
        self.work_s += other.work_s


ByTenant = dict[str, Span]


@dataclass(slots=True)
class Periods:
    """The periods of a log, by the number of the day, hour or step since 1970."""

    days: dict[int, ByTenant] = field(default_factory=dict)
    hours: dict[int, ByTenant] = field(default_factory=dict)  # 0 to 23
    steps: dict[int, ByTenant] = field(default_factory=dict)
    _length: int = 0  # which of STEPS_S
    _first_s: int = 0  # the earliest second and the latest, once there are any
    _last_s: int = 0

    @property
    def step_s(self) -> int:
        """Returns how long a step is: the shortest of which there are not too many."""
        return STEPS_S[self._length]

    def add(self, unix_s: float, tenant: str, span: Span) -> None:
        """Adds what a tenant had at an instant."""
        second = int(unix_s)
        if not self.steps:
            self._first_s = self._last_s = second
        self._first_s, self._last_s = min(self._first_s, second), max(self._last_s, second)
        for periods, number in (
            (self.days, second // DAY_S),
            (self.hours, second // HOUR_S % 24),
            (self.steps, second // self.step_s),
        ):
            periods.setdefault(number, {}).setdefault(tenant, Span()).merge(span)
        while self._num_steps > MOST_STEPS and self._length + 1 < len(STEPS_S):
            self._lengthen()

    @property
    def _num_steps(self) -> int:
        return self._last_s // self.step_s - self._first_s // self.step_s + 1

    def _lengthen(self) -> None:
        old_s, self._length = self.step_s, self._length + 1
        joined: dict[int, ByTenant] = {}
        for number, tenants in self.steps.items():
            into = joined.setdefault(number * old_s // self.step_s, {})
            for tenant, span in tenants.items():
                into.setdefault(tenant, Span()).merge(span)
        self.steps = joined


def total(tenants: Mapping[str, Span]) -> Span:
    """Returns what all tenants had in a period."""
    all_together = Span()
    for span in tenants.values():
        all_together.merge(span)
    return all_together


def share(part: float, whole: float) -> float | None:
    """Returns a part of a whole; None where there is none."""
    return part / whole if whole else None


def day_text(number: int) -> str:
    """Writes a day, such as 2026-11-30."""
    return datetime.fromtimestamp(number * DAY_S, UTC).strftime("%Y-%m-%d")
