"""For whose sake: whose work the engine did while those were there that came to harm.

The time of a request, from its arrival to its end, is divided by what the engine did in it: work of
its own tenant (itself included), work of others, and the rest, in which the engine was idle. Sums
over requests count a second once for each that was there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from engine.deciding.request import Importance
from loadgen.audit.account import Group
from loadgen.audit.cells import DIMENSIONS, Cell, Harm, Suffered, Who

_RANK = {each.name.lower(): each.value for each in Importance}


@dataclass(slots=True)
class Sake:
    """What the engine did in the time of some requests. Durations are sums, in seconds."""

    suffered: Suffered = field(default_factory=Suffered)
    own_s: float = 0.0
    less_s: float = 0.0  # work of others that mattered less than they
    equal_s: float = 0.0
    more_s: float = 0.0
    others: dict[tuple[str, str], float] = field(default_factory=dict)  # by tenant and tier

    @property
    def others_s(self) -> float:
        return self.less_s + self.equal_s + self.more_s

    @property
    def idle_s(self) -> float:
        """Returns the time in which the engine did nothing."""
        return max(0.0, self.suffered.waited_s - self.own_s - self.others_s)

    def mean(self, seconds: float) -> float | None:
        """Returns a sum for each of the requests that the engine had seen."""
        return seconds / self.suffered.num_seen if self.suffered.num_seen else None

    def add(self, who: Who, suffered: Suffered, groups: Mapping[Group, int]) -> None:
        """Adds what the requests of one cell suffered."""
        self.suffered.merge(suffered)
        for group, number in groups.items():
            seconds = suffered.served[number] if number < len(suffered.served) else 0.0
            if group.tenant == who.tenant:
                self.own_s += seconds
            elif seconds:
                whose = group.tenant, group.tier
                self.others[whose] = self.others.get(whose, 0.0) + seconds
                self._by_importance(_RANK[group.importance] - _RANK[who.importance], seconds)

    def _by_importance(self, difference: int, seconds: float) -> None:
        if difference < 0:
            self.less_s += seconds
        elif difference > 0:
            self.more_s += seconds
        else:
            self.equal_s += seconds


def sakes(
    cells: Mapping[Who, Cell],
    groups: Mapping[Group, int],
    by: Collection[str],
    harm: Harm = Harm.ANY,
) -> list[tuple[Who, Sake]]:
    """Returns for whose sake requests came to a kind of harm, by some of the dimensions, those
    first of which there are most.
    """
    found: dict[Who, Sake] = {}
    for who, cell in cells.items():
        if harm in cell.harms:
            key = Who(*(getattr(who, name) if name in by else "" for name in DIMENSIONS))
            found.setdefault(key, Sake()).add(who, cell.harms[harm], groups)
    return sorted(found.items(), key=lambda item: (-item[1].suffered.count, item[0]))
