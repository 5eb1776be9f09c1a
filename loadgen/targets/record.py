"""What became of one request. A run makes records; every figure is derived from them afterwards.

Instants are seconds since the start of the run, on the generator's clock (or the simulated one).
Latencies run from the *scheduled* instant of a request, never from its sending.
"""

from __future__ import annotations

import operator
from array import array
from dataclasses import dataclass, field
from enum import Enum

from loadgen.workload.plan import PlannedRequest


class Outcome(Enum):
    """How a request ended, as its client saw it."""

    FINISHED = "finished"  # every token came
    CANCELLED = "cancelled"  # its client left, as planned
    REJECTED = "rejected"  # the server refused it
    TIMED_OUT = "timed_out"  # the call's own deadline passed
    FAILED = "failed"  # anything else went wrong
    UNFINISHED = "unfinished"  # still going when the run had waited long enough
    ABANDONED = "abandoned"  # in flight when the run was interrupted: says nothing of the server

    @property
    def is_incomplete(self) -> bool:
        """Says whether the server owed the client an answer and did not give all of it."""
        return self not in (Outcome.FINISHED, Outcome.CANCELLED, Outcome.ABANDONED)


def no_instants() -> array[float]:
    """Returns an empty array of instants, for a request of which no token has come."""
    return array("d")


@dataclass(slots=True)
class Record:
    """A request and what became of it. `token_at` has one instant per output token received."""

    request: PlannedRequest
    sent_at: float
    outcome: Outcome = Outcome.UNFINISHED
    token_at: array[float] = field(default_factory=no_instants)
    ended_at: float | None = None
    relegated: bool = False
    server_ttft_s: float | None = None  # as the server timed it; the rest is the way
    error: str = ""
    promised: bool | None = None  # to be on time, or late, at its admission; None: nothing was told
    replica: str = ""  # which of several it was sent to
    request_id: str = ""  # by which its server knows it, where it took it

    @property
    def lag_s(self) -> float:
        """Says how much later than scheduled the request really left, in seconds."""
        return self.sent_at - self.request.at

    @property
    def ttft_s(self) -> float | None:
        """Returns the seconds to the first token; None where none came."""
        return self.token_at[0] - self.request.at if self.token_at else None

    @property
    def ttlt_s(self) -> float | None:
        """Returns the seconds to the last token; None unless the last token came."""
        if self.outcome is not Outcome.FINISHED or not self.token_at:
            return None
        return self.token_at[-1] - self.request.at

    @property
    def gaps_s(self) -> array[float]:
        """Returns the seconds between each token and the next, in order; made anew at every
        access.
        """
        return array("d", map(operator.sub, self.token_at[1:], self.token_at))
