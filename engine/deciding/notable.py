"""The last decisions that somebody may ask about without an id: who gave way or was late, and why.

Of each kind the last MOST are kept. Each share of the engine keeps as many as it has while there is
room; then the oldest of whichever share has most is forgotten, so that nobody's flood hides what
befell others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from engine.deciding.outcome import MISSES
from engine.deciding.request import Importance, Request, named_by
from engine.deciding.timeline import End

MOST = 100  # of each kind
KINDS = ("relegated", "preempted", "refused", "expired", "late", "failed")  # MISSES by their names


@dataclass(frozen=True, slots=True)
class Notable:
    """One of these decisions: `at` is on the engine's clock, in seconds, `kind` one of KINDS, and
    `request_id` the name that the tenant gave the request.
    """

    at: float
    kind: str
    request_id: str
    tenant: str
    tier: str  # "" where the targets were explicit
    importance: Importance
    detail: str


class NotableDecisions:
    """The last of each kind, as the module describes them."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, deque[Notable]]] = {}  # by kind, and by name of the share

    def __iter__(self) -> Iterator[Notable]:
        return (each for shares in self._kept.values() for own in shares.values() for each in own)

    def add(self, request: Request, at: float, kind: str, detail: str) -> None:
        """Keeps one, in the place of an older one where there are MOST of its kind."""
        tenant, name = named_by(request.id)
        new = Notable(at, kind, name, tenant, request.tier, request.importance, detail)
        shares = self._kept.setdefault(kind, {})
        shares.setdefault(request.share.name, deque()).append(new)
        if sum(map(len, shares.values())) > MOST:
            fullest = max(shares, key=lambda share: len(shares[share]))
            shares[fullest].popleft()
            if not shares[fullest]:
                del shares[fullest]

    def add_end(self, request: Request, end: End, detail: str) -> None:
        """Keeps the end of a request, where it is notable."""
        if end.result in MISSES:
            self.add(request, end.at, end.result.value, detail)

    def last(self, most: int) -> tuple[Notable, ...]:
        """Returns the last `most` of each kind, the newest first."""
        newest = sorted(self, key=lambda each: each.at, reverse=True)
        left = dict.fromkeys(KINDS, most)
        found = []
        for each in newest:
            left[each.kind] -= 1
            if left[each.kind] >= 0:
                found.append(each)
        return tuple(found)
