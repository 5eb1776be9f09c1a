"""The policies by name, and the baselines that Niyama is compared with.

What a policy is, and how to write one, stands in policy.py. A new one needs one entry in MAKERS,
or in ORDERS where it is a FixedChunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from engine.deciding.backlog import Backlog
from engine.deciding.demand import Demand
from engine.deciding.history import OutputLengths
from engine.deciding.latency import LatencyModel
from engine.deciding.niyama import Niyama, NiyamaConfig
from engine.deciding.plan import Work
from engine.deciding.policy import KEPT, Policy
from engine.deciding.queue import Key
from engine.deciding.sequence import Sequence


class FixedChunk(Policy):
    """Sarathi-Serve (arXiv 2403.02310): an iteration has all decodes, and then prefills in order up
    to a fixed number of tokens in all. Nobody is relegated."""

    def __init__(self, demand: Demand, order: Callable[[Sequence], float]) -> None:
        """An iteration has at most `demand.chunk` tokens; `order` gives a sequence its place, and
        the smallest is first."""
        super().__init__(demand)
        self._order = order
        self._backlog = Backlog()

    def enter(self, sequence: Sequence, now: float) -> Key:
        return self._add(sequence)

    def progress(self, sequence: Sequence) -> Key:
        self._backlog.remove(sequence)
        return self._add(sequence)

    def _add(self, sequence: Sequence) -> Key:
        place = self._order(sequence)
        self._backlog.add(sequence, place, self.demand.seconds(sequence))
        return (KEPT, place)

    def leave(self, sequence: Sequence) -> None:
        self._backlog.remove(sequence)

    def room(self, work: Work, sequence: Sequence) -> int:
        return self.demand.chunk - work.num_tokens

    def ahead_s(self, sequence: Sequence, now: float) -> float:
        own_s = self._backlog.work(sequence) if sequence in self._backlog else 0.0
        return max(0.0, self._backlog.work_until(self._order(sequence)) - own_s)


def first_come(sequence: Sequence) -> float:
    """Returns the instant of arrival."""
    return sequence.request.arrived_at


def earliest_deadline(sequence: Sequence) -> float:
    """Returns the deadline of the first token, or with a TTLT of the last; inf for best effort."""
    return sequence.request.token_due_at(1)


def shortest_remaining_prefill(sequence: Sequence) -> float:
    """Returns the number of known tokens that are left to compute."""
    return float(sequence.num_uncomputed)


ORDERS: dict[str, Callable[[Sequence], float]] = {
    "fcfs": first_come,
    "edf": earliest_deadline,
    "srpf": shortest_remaining_prefill,
}


class Resources(NamedTuple):
    """What the scheduler has for a policy that is being made."""

    latency: LatencyModel
    history: OutputLengths
    num_pages: int  # of the KV memory
    chunk_size: int  # tokens of an iteration, for policies with a fixed chunk
    niyama: NiyamaConfig


def _fixed(order: Callable[[Sequence], float], given: Resources) -> Policy:
    return FixedChunk(Demand(given.latency, given.history, given.chunk_size), order)


def _niyama(given: Resources) -> Policy:
    demand = Demand(given.latency, given.history, given.latency.saturating_chunk())
    return Niyama(given.niyama, given.latency, demand, given.chunk_size, given.num_pages)


MAKERS: Mapping[str, Callable[[Resources], Policy]] = {
    "niyama": _niyama,
    **{name: partial(_fixed, order) for name, order in ORDERS.items()},
}
POLICIES = tuple(MAKERS)  # the names
