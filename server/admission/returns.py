"""When those who find no place are to come back: at the pace at which places become free.

The pace is what the queue saw of late: how much was given back in the last WINDOW_S, by the second,
or in as long as it has been looked at. Where less was given back than a call takes, it is as if
just so much had been. Of that pace each share has its part, by weight among those that are active.

Those of one share and importance are called back one after the other, each so much later as it
takes for its own places to become free. So of thousands that are refused at one instant, no more
come back in a second than can then be let in, but for those to whom a place would be free later
than MOST_S from now: they are told MOST_S. Who comes back later than told, or never, leaves a place
to whoever asks meanwhile.
"""

from __future__ import annotations

from collections import deque

from engine.deciding.request import Importance
from server.admission.places import NOTHING, Use

WINDOW_S = 30.0
STEP_S = 1.0  # between two looks, and the least time that a pace is told from
MOST_S = 60.0

Line = tuple[str, Importance]  # who is called back one after the other: of a share


class Returns:
    """Says when to come back. Instants are in seconds and never decrease."""

    def __init__(self) -> None:
        self._freed = NOTHING  # since the beginning
        self._looks: deque[tuple[float, Use]] = deque()  # instants, and what had been freed then
        self._next_at: dict[Line, float] = {}  # the earliest that the next of a line is told

    def freed(self, use: Use) -> None:
        """So much has been given back, by a call that is over or has begun to stream."""
        requests, tokens = self._freed
        self._freed = Use(requests + use.requests, tokens + use.tokens)

    def look(self, now: float) -> None:
        """Notes how much has been freed by now."""
        looks = self._looks
        if not looks or now - looks[-1][0] >= STEP_S:
            looks.append((now, self._freed))
            while now - looks[0][0] > WINDOW_S:
                looks.popleft()

    def delay_s(
        self, line: Line, missing: Use, own: Use, part: float, now: float, is_told: bool = True
    ) -> float:
        """Returns the seconds until as much has become free as is missing for a call that takes
        `own`, of a share whose part of the pace is `part`, in (0, 1]. Unless it is to be told so,
        nobody is called back later for it.
        """
        self.look(now)
        since, before = self._looks[0]
        window_s = max(STEP_S, now - since)
        wait_s = own_s = 0.0
        for freed, start, short, takes in zip(self._freed, before, missing, own, strict=True):
            if short:
                pace = part * max(freed - start, takes) / window_s
                wait_s = max(wait_s, short / pace)
                own_s = max(own_s, takes / pace)
        delay_s = min(MOST_S, max(wait_s, self._next_at.get(line, now) - now))
        if is_told:
            self._next_at[line] = now + min(MOST_S, delay_s + own_s)
        return delay_s
