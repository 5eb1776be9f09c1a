"""Where policies differ: the order of prefills, the size of the chunk, and who is relegated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine.deciding.plan import Work
from engine.deciding.sequence import Sequence


class Policy(Protocol):
    """The decisions of one policy."""

    def key(self, sequence: Sequence) -> float:
        """Place among the waiting: smaller is earlier."""

    def room(self, work: Work, sequence: Sequence) -> int:
        """Most tokens of `sequence` that may join an iteration of `work`."""


class FixedChunk:
    """Sarathi-Serve (arXiv 2403.02310): all decodes, then prefills in order, up to a fixed number
    of tokens in all."""

    def __init__(self, order: Callable[[Sequence], float], chunk_size: int) -> None:
        self._order = order
        self._chunk_size = chunk_size

    def key(self, sequence: Sequence) -> float:
        return self._order(sequence)

    def room(self, work: Work, sequence: Sequence) -> int:
        return self._chunk_size - work.num_tokens


def first_come(sequence: Sequence) -> float:
    return sequence.request.arrived_at


def earliest_deadline(sequence: Sequence) -> float:
    """The first token's deadline; for a TTLT target, the last token's. Best effort comes last."""
    return sequence.request.token_due_at(1)


def shortest_remaining_prefill(sequence: Sequence) -> float:
    return float(sequence.num_uncomputed)


ORDERS: dict[str, Callable[[Sequence], float]] = {
    "fcfs": first_come,
    "edf": earliest_deadline,
    "srpf": shortest_remaining_prefill,
}


def make_policy(name: str, chunk_size: int) -> Policy:
    """Raises ValueError for an unknown name."""
    if name == "niyama":
        name = "edf"
    if name not in ORDERS:
        raise ValueError(f"policy must be one of niyama, {', '.join(ORDERS)}, got {name!r}")
    return FixedChunk(ORDERS[name], chunk_size)
