"""Whoever is asked: the interface between planned requests and the records of their answers.

`loadgen.targets.live` asks a server through gRPC, `loadgen.targets.simulated` answers in virtual
time. Workloads, scores, reports and modes do not know which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from loadgen.targets.record import Record
from loadgen.workload.plan import PlannedRequest
from loadgen.workload.served import TargetInfo


class Unreachable(Exception):
    """The target does not answer; the message says where and why, in one line."""


class Progress(NamedTuple):
    """How far a run is. Instants and durations in seconds of the run."""

    elapsed_s: float
    num_sent: int
    num_in_flight: int
    num_finished: int
    num_failed: int  # whose outcome is incomplete


Watch = Callable[[Progress], None]
WATCH_INTERVAL_S = 0.25  # of real time, between two looks at how far a run is


class End(Enum):
    """How a run ended."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"  # by the user
    TARGET_LOST = "target_lost"  # the server died


@dataclass(frozen=True, slots=True)
class Series:
    """What a target says of itself over time: a mean for each `step_s` seconds of the run."""

    step_s: float
    chunk_len: Sequence[float]  # prompt tokens per iteration that prefills
    num_waiting: Sequence[float]  # requests in the queue of one replica


@dataclass(slots=True)
class Run:
    """The records of everything that was due before the run ended."""

    records: list[Record] = field(default_factory=list)
    elapsed_s: float = 0.0  # to the last record's end
    end: End = End.COMPLETE
    problem: str = ""  # one line, where it did not complete
    interrupted_by: int = 0  # the signal's number
    series: Series | None = None  # only of a target that tells


class Target(Protocol):
    """Whoever takes planned requests, in order of time, and gives back a record of each."""

    def info(self) -> TargetInfo:
        """Returns what the target says of itself. Raises Unreachable."""

    def run(self, requests: Iterable[PlannedRequest], watch: Watch) -> Run:
        """Sends each request at its instant, without waiting for another, and returns when all have
        ended or the run has; `watch` is told how far it is.

        Raises Unreachable where nobody answers at the start; a target that is lost later is an end
        like another.
        """
