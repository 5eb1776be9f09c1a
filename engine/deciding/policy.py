"""What a scheduling policy decides, and what it takes to write one.

The scheduler (scheduler.py) owns every sequence and every page, and plans iteration after iteration
in one way for all policies. Where policies differ, it asks. There are three decisions:

1. Order of prefills: whose prompt is computed next. Each waiting sequence has a key; a smaller key
   goes first, and ties go by arrival. The policy gives the key when the sequence begins to wait
   (`enter`) and a new one whenever part of its prompt has been computed (`progress`). For a single
   iteration it may deviate from the keys (`order`), and who has just come may be turned away
   (`refusal`).
2. Size of the chunk: how many prompt tokens join an iteration that has decodes already (`room`).
   A policy may let running sequences sit an iteration out to make room (`hold`), and may keep part
   of the memory and of the batch free for some requests (`share_to_start`).
3. Relegation: who gives way when not everybody can be on time. Before each iteration the policy
   says who is moved to another place in the queue, and why (`review`). And where memory keeps
   somebody from starting, who of those that have only begun gives it up (`gives_way`). Who has
   waited in vain for too long may be ended (`overdue`).

Besides, it answers one question, on which every forecast rests: how much work is served before a
sequence (`ahead_s`).

To write a policy, two files are touched:

* a new module of this folder, with a class derived from Policy that has at least the methods that
  are abstract below. What is there may be used as it is: chunking.py for chunks that let no stream
  come late, in_order.py where the order is known beforehand, backlog.py for sums over the queue,
  background.py for fair shares;
* policies.py, where MAKERS gives it a name. The `--policy` and `--compare` flags take their choices
  from there, and the tests of the scheduler, of the simulator and of greedy output hold every
  policy in it to what any policy owes.

The smallest example is FixedChunk, in policies.py; rivals/ has a page for each of the schedulers
that others have published. Where only the order is new, the policy is no class but a function from
a sequence to a number, beside those in ORDERS. That number may depend on nothing that changes while
the sequence waits, but for how much of it is computed: the queue keeps the one that it was given.
An order by predicted work takes a Demand, so it is a maker in MAKERS.

What the policy promises beyond that wants a test of its own, and CHANGELOG.md a line. A setting for
operators is a field of Resources that comes from SchedulerConfig and, as a flag, from
engine/config.py.

Like all of this folder, a policy reads no clock (`now` is an argument, in seconds) and draws no
random number, so that a simulation and the service decide alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Final, NamedTuple

from engine.deciding.demand import Demand
from engine.deciding.plan import Work
from engine.deciding.queue import Key, Place, SequenceQueue
from engine.deciding.request import Request
from engine.deciding.sequence import Sequence
from engine.deciding.streams import Streams

# Ranks of keys: whose deadlines are to be kept, best effort, who was relegated. Everybody of one
# goes before everybody of the next, unless `order` says else.
KEPT_RANK, BEST_EFFORT_RANK, RELEGATED_RANK = 0, 1, 2
ALL: Final[Place] = ((RELEGATED_RANK + 1, 0.0), 0.0)  # a place behind everybody

NOTHING: Final[Mapping[str, float]] = {}


class MoveKind(Enum):
    RELEGATE = "relegated"
    RESTORE = "restored"
    REORDER = "reordered"


class Cause(Enum):
    """Why somebody is relegated, as metrics have it."""

    LATE_ALONE = "late_alone"  # it would end late though nobody was before it
    LATE_BEHIND = "late_behind"  # behind those who are due before it, none of whom gives way for it
    FOR_OTHERS = "for_others"  # who could not be on time
    SHARE_EXCEEDED = "share_exceeded"  # the same, and its tenant had asked for more than its part
    STREAMS = "streams"  # they came late for the prefills of tenants who asked for too much
    ALLOWANCE = "allowance"  # that the operator gives: the costliest, under load
    HIGH_LOAD = "high_load"  # and it is of low importance
    OTHER = "other"


class Move(NamedTuple):
    """A waiting sequence gets another key. `for_whom` is the sequence that is saved by it, and
    `cause` says why it is relegated, where it is; `values`, by name, are what that went by, for the
    record.
    """

    sequence: Sequence
    key: Key
    kind: MoveKind
    reason: str = ""
    for_whom: Sequence | None = None
    cause: Cause = Cause.OTHER
    values: Mapping[str, float] = NOTHING

    @property
    def told(self) -> str:
        """The reason, and who is saved; the requests of another tenant are not named."""
        if self.for_whom is None:
            return self.reason
        return f"{self.reason} ({saves(self.sequence.request, self.for_whom.request)})"


def saves(own: Request, saved: Request) -> str:
    """Says whom it saves that a request gives way, as its caller may know it."""
    return "saves " + (saved.name if saved.tenant == own.tenant else "another tenant's")


class Policy(ABC):
    """The decisions of one policy, as the module describes them.

    The scheduler calls `review` and `hold` in this sequence for each iteration that it plans, and
    then, where somebody waits, `begin`, `order` and `room`, again from `hold` on whenever somebody
    has given way; `launched` once the iteration is on its way, and `overdue` once it is over.
    """

    alpha: float = 0.0  # weight of work against deadline in the order of prefills
    keeps_pace: bool = False  # whether chunks are cut so that running streams keep their TBT

    def __init__(self, demand: Demand) -> None:
        """`demand` is the estimate of work, in chunks of the size that this policy runs."""
        self.demand = demand

    # Order

    @abstractmethod
    def enter(self, sequence: Sequence, now: float) -> Key:
        """Returns the key of a sequence that begins to wait, or waits again."""

    def refusal(self, sequence: Sequence, now: float) -> str:
        """Returns why a request that has just come is not let in; "" where it is. Its caller is
        told at once, and nothing else is asked about it.
        """
        return ""

    def retry_s(self, sequence: Sequence, now: float) -> float:
        """Returns the seconds after which a request like this one, which was refused or has ended
        for having waited too long, would be let in, or would be on time, if nothing else came.
        """
        return 0.0

    @abstractmethod
    def progress(self, sequence: Sequence) -> Key:
        """Returns the new key of a waiting sequence of which more, or less, is computed now."""

    @abstractmethod
    def leave(self, sequence: Sequence) -> None:
        """Takes note that the sequence waits no longer, for whatever reason."""

    def order(self, waiting: SequenceQueue, now: float) -> Iterator[Sequence]:
        """Yields the waiting sequences whose prefill goes into this iteration, first to last."""
        return iter(waiting)

    # Size of the chunk

    def hold(self, running: Streams, work: Work, now: float) -> list[Sequence]:
        """Returns the running sequences that sit this iteration out; `work` is that of all of
        them.
        """
        return []

    def begin(  # noqa: B027 # most need to know nothing
        self, decodes: Streams, work: Work, now: float
    ) -> None:
        """Takes note of the decodes, and of their work, that the iteration has before any chunk."""

    @abstractmethod
    def room(self, work: Work, sequence: Sequence) -> int:
        """Returns the most tokens of the waiting sequence that may join an iteration that has
        `work` so far. Fewer than it has left say that the iteration is full: nobody is asked for
        after it. It is asked only of whom batch and memory have a place for.
        """

    def share_to_start(self, sequence: Sequence) -> float:
        """Returns the share of the batch's places and of the memory, in (0, 1], up to which this
        sequence may begin.
        """
        return 1.0

    def takes_kept_place(self, sequence: Sequence) -> bool:
        """Says whether this sequence, whose turn in `order` it is, may begin in a place beyond its
        share of the batch, since others for whom that is kept open wait for its turn to be over.
        """
        return False

    def gives_way(self, giver: Sequence, sequence: Sequence, now: float) -> bool:
        """Returns whether `giver`, whose prefill has begun, gives up its pages and its place in the
        batch for `sequence`, which waits for such. What it had computed is computed again, so this
        must not go to and fro: of each giver it may be true only so many times.
        """
        return False

    def crowded_out(  # noqa: B027 # most need to know nothing
        self, sequence: Sequence, now: float
    ) -> None:
        """Takes note that it was the waiting sequence's turn, but that neither batch nor memory had
        a place for it.
        """

    def launched(  # noqa: B027 # most need to know nothing
        self, chunks: Iterable[tuple[Sequence, int]]
    ) -> None:
        """Takes note of the chunks (sequence, tokens) that are computed from now on. The sequences
        still wait: `progress` or `leave` follows for each.
        """

    # Relegation

    def review(self, now: float) -> list[Move]:
        """Returns who is moved before the next iteration is planned."""
        return []

    def overdue(self, now: float) -> list[tuple[Sequence, str]]:
        """Returns the waiting sequences that end now, for having waited too long before they were
        begun, and what their callers are told. It is asked after each iteration; `leave` follows.
        """
        return []

    # Forecasts

    def known_work_s(self, sequence: Sequence) -> float:
        """Returns the seconds of work that a waiting sequence has left, as it was last reckoned."""
        return self.demand.seconds(sequence)

    @abstractmethod
    def ahead_s(self, sequence: Sequence, waiting: SequenceQueue, now: float) -> float:
        """Returns the predicted seconds of waiting work that is served before the sequence. It may
        be a sequence that does not wait, made up for a question.
        """

    @abstractmethod
    def place_of_new(self, sequence: Sequence, now: float) -> Place:
        """Returns the place in the queue that a sequence with a target would have which does not
        wait, but is made up for a question: what is before that place is served before it.
        """

    def served_before(self, sequence: Sequence, waiting: SequenceQueue) -> tuple[Key, float]:
        """Returns the place in the queue up to which others are served before a waiting sequence.
        The work of these is that of which `ahead_s` is the sum.
        """
        return waiting.place(sequence)

    def num_overtaken_as_high(self, sequence: Sequence, waiting: SequenceQueue) -> int:
        """Returns how many that are before a waiting sequence would not be if it was of high
        importance.
        """
        return 0

    def check(self, waiting: SequenceQueue) -> None:  # noqa: B027 # most have nothing to assert
        """Asserts what the policy's own account owes the queue between any two calls."""
