"""The policies by name, and the baselines that Niyama is compared with.

What a policy is, and how to write one, stands in policy.py. A new one needs one entry in MAKERS,
or in ORDERS where it is a FixedChunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from engine.deciding.demand import Demand
from engine.deciding.history import OutputLengths
from engine.deciding.in_order import InOrder
from engine.deciding.latency import LatencyModel
from engine.deciding.niyama import Niyama
from engine.deciding.niyama_config import NiyamaConfig
from engine.deciding.plan import Work
from engine.deciding.policy import Policy
from engine.deciding.rivals.edf import DynamicEdf, RejectingEdf
from engine.deciding.rivals.fairbatching import FairBatching
from engine.deciding.rivals.qoserve import QoServe
from engine.deciding.rivals.slidingserve import SlidingServe
from engine.deciding.sequence import Sequence


class FixedChunk(InOrder):
    """Sarathi-Serve (arXiv 2403.02310): an iteration has all decodes, and then prefills in order up
    to a fixed number of tokens in all. Nobody is relegated.
    """

    def __init__(self, demand: Demand, order: Callable[[Sequence], float]) -> None:
        """An iteration has at most `demand.chunk` tokens; `order` gives a sequence its place, and
        the smallest is first.
        """
        super().__init__(demand)
        self._order = order

    def place(self, sequence: Sequence) -> float:
        return self._order(sequence)

    def room(self, work: Work, sequence: Sequence) -> int:
        return self.demand.chunk - work.num_tokens


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


def _saturating(given: Resources) -> Demand:
    """Returns the estimate of work in chunks of the size at which throughput saturates."""
    return Demand(given.latency, given.history, given.latency.saturating_chunk())


def _edf(kind: type[DynamicEdf], given: Resources) -> Policy:
    held = int(given.niyama.max_held_share * given.num_pages)
    return kind(given.niyama.pace, given.latency, _saturating(given), held)


def _qoserve(given: Resources) -> Policy:
    return QoServe(given.latency, _saturating(given))


def _slidingserve(given: Resources) -> Policy:
    return SlidingServe(given.latency, _saturating(given))


def _fairbatching(given: Resources) -> Policy:
    return FairBatching(given.latency, _saturating(given))


def _niyama(given: Resources) -> Policy:
    demand = _saturating(given)
    return Niyama(given.niyama, given.latency, demand, given.chunk_size, given.num_pages)


_WITHIN_GAPS = frozenset({"niyama", "edf-dynamic", "edf-reject"})  # they use chunking.py


def longest_gap(policy: str, config: NiyamaConfig) -> float | None:
    """Returns how long the time between two tokens may be, in TBTs, of a stream whose tier has no
    `max_gap`; None where the policy knows no such bound.
    """
    return config.pace.max_gap if policy in _WITHIN_GAPS else None


MAKERS: Mapping[str, Callable[[Resources], Policy]] = {
    "niyama": _niyama,
    **{name: partial(_fixed, order) for name, order in ORDERS.items()},
    "edf-dynamic": partial(_edf, DynamicEdf),
    "edf-reject": partial(_edf, RejectingEdf),
    "qoserve": _qoserve,
    "slidingserve": _slidingserve,
    "fairbatching": _fairbatching,
}
POLICIES = tuple(MAKERS)  # the names
