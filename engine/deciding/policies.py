"""Where policies differ: the order of prefills, the size of the chunk, and who is relegated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple, Protocol

from engine.deciding.backlog import Backlog
from engine.deciding.demand import Demand
from engine.deciding.plan import Work
from engine.deciding.queue import Key, SequenceQueue
from engine.deciding.sequence import Sequence

KEPT, BEST_EFFORT, RELEGATED = 0, 1, 2  # ranks of keys


class MoveKind(Enum):
    RELEGATE = "relegated"
    RESTORE = "restored"
    REORDER = "reordered"


class Move(NamedTuple):
    """A waiting sequence gets another place. `for_whom`: who is saved by it."""

    sequence: Sequence
    key: Key
    kind: MoveKind
    reason: str = ""
    for_whom: Sequence | None = None

    @property
    def told(self) -> str:
        """Why, and for whom: nobody is told of another tenant's requests."""
        if self.for_whom is None:
            return self.reason
        own, saved = self.sequence.request, self.for_whom.request
        whom = saved.name if saved.tenant == own.tenant else "another tenant's"
        return f"{self.reason} (saves {whom})"


class Policy(Protocol):
    """The decisions of one policy. The scheduler tells it of every change that it needs to know."""

    @property
    def alpha(self) -> float:
        """Weight of work against deadline in the order of prefills; 0 where it has none."""

    @property
    def keeps_pace(self) -> bool:
        """Whether chunks are cut so that the streams of an iteration keep their TBT."""

    def enter(self, sequence: Sequence, now: float) -> Key:
        """The sequence starts to wait (again): its place."""

    def progress(self, sequence: Sequence) -> Key:
        """Computed tokens of the waiting sequence changed: its place from now on."""

    def leave(self, sequence: Sequence) -> None:
        """The sequence waits no longer."""

    def review(self, now: float) -> list[Move]:
        """Whoever is to be moved before an iteration is planned."""

    def hold(self, running: list[Sequence], now: float) -> list[Sequence]:
        """Running sequences that sit this iteration out."""

    def begin(self, decodes: list[Sequence], work: Work, now: float) -> None:
        """An iteration with these decodes is being planned."""

    def order(self, waiting: SequenceQueue, now: float) -> Iterator[Sequence]:
        """Whose prefill goes into it, first to last."""

    def room(self, work: Work, sequence: Sequence) -> int:
        """Most tokens of `sequence` that may join an iteration of `work`."""

    def share_to_start(self, sequence: Sequence) -> float:
        """Share of the batch's places and of the memory up to which the sequence may start."""

    def launched(self, chunks: Iterable[tuple[Sequence, int]]) -> None:
        """These chunks (sequence, length) are being computed; nobody has left for it yet."""

    def computed(self, seconds: float) -> None:
        """An iteration took that long."""

    def ahead_s(self, sequence: Sequence, now: float) -> float:
        """Predicted seconds of waiting work that is served before the sequence (queued or not)."""


class FixedChunk:
    """Sarathi-Serve (arXiv 2403.02310): all decodes, then prefills in order, up to a fixed number
    of tokens in all. Nobody is relegated."""

    alpha = 0.0
    keeps_pace = False

    def __init__(self, order: Callable[[Sequence], float], chunk_size: int, demand: Demand) -> None:
        self._order = order
        self._chunk_size = chunk_size
        self._demand = demand
        self._backlog = Backlog()

    def enter(self, sequence: Sequence, now: float) -> Key:
        value = self._order(sequence)
        self._backlog.add(sequence, value, self._demand.seconds(sequence))
        return (KEPT, value)

    def progress(self, sequence: Sequence) -> Key:
        self._backlog.remove(sequence)
        return self.enter(sequence, 0.0)

    def leave(self, sequence: Sequence) -> None:
        self._backlog.remove(sequence)

    def review(self, now: float) -> list[Move]:
        return []

    def hold(self, running: list[Sequence], now: float) -> list[Sequence]:
        return []

    def begin(self, decodes: list[Sequence], work: Work, now: float) -> None:
        pass

    def order(self, waiting: SequenceQueue, now: float) -> Iterator[Sequence]:
        return iter(waiting)

    def room(self, work: Work, sequence: Sequence) -> int:
        return self._chunk_size - work.num_tokens

    def share_to_start(self, sequence: Sequence) -> float:
        return 1.0

    def launched(self, chunks: Iterable[tuple[Sequence, int]]) -> None:
        pass

    def computed(self, seconds: float) -> None:
        pass

    def ahead_s(self, sequence: Sequence, now: float) -> float:
        own = self._backlog.work(sequence) if sequence in self._backlog else 0.0
        return max(0.0, self._backlog.work_until(self._order(sequence)) - own)


def first_come(sequence: Sequence) -> float:
    return sequence.request.arrived_at


def earliest_deadline(sequence: Sequence) -> float:
    """Of the first token; for a TTLT target, of the last. Best effort comes last."""
    return sequence.request.token_due_at(1)


def shortest_remaining_prefill(sequence: Sequence) -> float:
    return float(sequence.num_uncomputed)


ORDERS: dict[str, Callable[[Sequence], float]] = {
    "fcfs": first_come,
    "edf": earliest_deadline,
    "srpf": shortest_remaining_prefill,
}
POLICIES = ("niyama", *ORDERS)
