"""Which shares ask for more than their part of the engine: a fluid copy of the queue tells.

Say the engine served all shares (of tenants) that have work waiting at once, each at a rate in
proportion to its weight, as if work was a fluid. What one does not need goes to the others, so this
is max-min fair at every instant: generalized processor sharing (Parekh and Gallager, 1993). Whoever
asks for less than its part never has more waiting here than it asks for at once, whatever the
others do; all that the engine cannot do piles up with those who ask for more.

The copy gets as much done as the engine does, for whomever that is. So it needs neither a clock nor
the engine's speed, and has as much waiting as the engine has: a share that is served sooner than it
would be here, as it states hurried targets, has the difference still to wait for, and one whose
requests were relegated those.

Virtual time is in seconds of work per unit of weight; it runs faster the fewer shares have anything
waiting. A share's work is done at its virtual finish: backlog = (finish - now) * weight.
"""

from __future__ import annotations

from sortedcontainers import SortedList

from engine.deciding.request import Share


class FluidShares:
    """The work that each share has waiting in the fluid copy, in seconds. A call costs O(log s) in
    the number of shares, and as much for each share whose backlog it ends.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()  # names of all shares that ever asked
        self._now = 0.0  # virtual
        self._weight = 0.0  # of those that have a backlog
        self._shares: dict[str, Share] = {}  # those that have a backlog, by name
        self._finish: dict[str, float] = {}  # virtual, of each of them
        self._sorted: SortedList[tuple[float, str]] = SortedList()  # (finish, name)

    def backlog_s(self, name: str) -> float:
        """Returns the work that the share of that name has waiting."""
        share = self._shares.get(name)
        return 0.0 if share is None else (self._finish[name] - self._now) * share.weight

    @property
    def total_s(self) -> float:
        """The work that all shares have waiting."""
        return sum(map(self.backlog_s, self._shares))

    def ask(self, share: Share, work_s: float, burst_s: float) -> bool:
        """Takes note of a request, which its share has this weight from now on; returns whether it
        is within the share's part.
        """
        is_within = self.is_within(share.name, burst_s)
        self._seen.add(share.name)
        self._set(share, self.backlog_s(share.name) + work_s)
        return is_within

    def is_within(self, name: str, burst_s: float) -> bool:
        """Returns whether one more request would be within the part of the share of that name: no
        more than a burst of `burst_s` waits before it. Whoever has never had to share is within its
        part.
        """
        return self.backlog_s(name) <= burst_s or self._seen <= {name}

    def change(self, share: Share, before_s: float, after_s: float) -> None:
        """Takes note that a waiting request of the share has so much work left. If that is less
        than before, the difference was done, for whomever; or, as the caller left, is not to be.
        """
        if after_s > before_s:
            self._set(share, self.backlog_s(share.name) + after_s - before_s)
        else:
            self._serve(before_s - after_s)

    def _serve(self, work_s: float) -> None:
        while self._sorted:
            finish, name = self._sorted[0]
            needed_s = (finish - self._now) * self._weight
            if needed_s > work_s:
                self._now += work_s / self._weight
                return
            work_s -= needed_s
            self._now = finish
            self._set(self._shares[name], 0.0)

    def _set(self, share: Share, backlog_s: float) -> None:
        name = share.name
        before = self._shares.pop(name, None)
        if before is not None:
            self._sorted.remove((self._finish.pop(name), name))
            self._weight -= before.weight
        if backlog_s > 0:
            self._shares[name] = share
            self._finish[name] = self._now + backlog_s / share.weight
            self._sorted.add((self._finish[name], name))
            self._weight += share.weight
        elif not self._shares:
            self._now = self._weight = 0.0  # no rounding errors pile up
