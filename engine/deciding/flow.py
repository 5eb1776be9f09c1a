"""Whether more work arrives than can be done: engine time that is asked for, per second, of late.

What a request needs is known when it arrives, as predicted seconds of engine time (demand.py): its
tokens, at what each costs in large batches. What is done is counted in the same seconds, by the
tokens that iterations compute. How long such a second is in truth is seen in full iterations, which
leave somebody waiting: what they get done is what the engine can do, with all that its streams'
pace, its memory and the machine make of it. Others run anyway, half empty, and say nothing of that.

    ratio = arrived / window * length,    length = time of full iterations / work done in them

So where an engine falls behind, whose iterations are all full, it is what arrives over what is
done: above 1 exactly then, by how much more is asked for than can be had. Calls that were refused,
here or by a front end, have asked for it too. `window` is WINDOW_S or up to a step more; since the
first request in the first minute of an engine, but LEAST_S at least, so that a first request alone
is no overload.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 60.0
LEAST_S = 10.0
STEP_S = 5.0  # a window has whole steps, and what has passed of the present one
MEMORY_S = 60.0  # of full iterations, over which it is told how long predicted seconds are
PRIOR_S = 2.0  # of such iterations in which they were as long as predicted
WEIGHT = 1 / 64  # of the newest request in what a token is said to cost


class Flow:
    """Work that arrives and work that is done. Instants are in seconds and never decrease."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque()  # when each began, and what arrived in it
        self._began_at = math.inf  # with the first request
        # Of recent requests, weighted by recency: tokens and what they cost.
        self._prefills = self._prefills_s = self._decodes = self._decodes_s = 0.0
        self._per_prefill_s = self._per_decode_s = 0.0
        # Of recent full iterations: the time that they took, and the work that they did.
        self._full_s = self._done_s = PRIOR_S

    def arrived(
        self, prefills: int, prefills_s: float, decodes: float, decodes_s: float, now: float
    ) -> None:
        """A request was taken in, with so many tokens to prefill and decode, and what they cost."""
        self.asked(prefills_s + decodes_s, now)
        rest = 1 - WEIGHT
        self._prefills = rest * self._prefills + prefills
        self._prefills_s = rest * self._prefills_s + prefills_s
        self._decodes = rest * self._decodes + decodes
        self._decodes_s = rest * self._decodes_s + decodes_s
        self._per_prefill_s = self._prefills_s / max(self._prefills, 1.0)
        self._per_decode_s = self._decodes_s / max(self._decodes, 1.0)

    def asked(self, seconds: float, now: float) -> None:
        """That much work has come; of calls that were not taken in, this is all that is known."""
        self._began_at = min(self._began_at, now)
        step = now - now % STEP_S
        if self._steps and self._steps[-1][0] >= step:
            step, before_s = self._steps.pop()
        else:
            before_s = 0.0
            while self._steps and self._steps[0][0] < _window(now):
                self._steps.popleft()
        self._steps.append((step, before_s + seconds))

    def done(self, prefills: int, decodes: int, seconds: float) -> None:
        """A full iteration that took so long has computed so many tokens. Those to prefill may be
        fewer than none: what had to be given up again counts as not done.
        """
        rest = max(0.0, 1 - seconds / MEMORY_S)
        done_s = prefills * self._per_prefill_s + decodes * self._per_decode_s
        self._full_s = rest * self._full_s + seconds
        self._done_s = rest * self._done_s + done_s

    def ratio(self, now: float) -> float:
        """Returns the engine time that is asked for, per second, as the module says."""
        began_at = _window(now)
        window_s = max(LEAST_S, now - max(began_at, self._began_at))
        arrived_s = sum(seconds for step, seconds in self._steps if step >= began_at)
        length = self._full_s / max(self._done_s, 1e-9)
        return arrived_s / window_s * length


def _window(now: float) -> float:
    """Returns the instant at which the window began that ends at `now`."""
    return now - now % STEP_S - WINDOW_S
