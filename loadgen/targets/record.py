"""What became of one request. A run makes records; every figure is derived from them afterwards.

Instants are seconds since the start of the run, on the generator's clock (or the simulated one).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum

from loadgen.workload.plan import PlannedRequest


class Outcome(Enum):
    FINISHED = "finished"  # every token came
    CANCELLED = "cancelled"  # its client left, as planned
    REJECTED = "rejected"  # the server refused it
    TIMED_OUT = "timed_out"  # the call's own deadline passed
    FAILED = "failed"  # anything else went wrong
    UNFINISHED = "unfinished"  # still going when the run had waited long enough
    ABANDONED = "abandoned"  # in flight when the run was interrupted: says nothing of the server


def no_instants() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Record:
    """`token_at` has one instant per output token received."""

    request: PlannedRequest
    sent_at: float
    outcome: Outcome = Outcome.UNFINISHED
    token_at: array[float] = field(default_factory=no_instants)
    ended_at: float | None = None
    relegated: bool = False
    server_ttft_s: float | None = None  # as the server timed it: what it takes longer is the way
    error: str = ""

    @property
    def lag_s(self) -> float:
        """How much later than scheduled it really left."""
        return self.sent_at - self.request.at
