"""A queue of sequences whose priorities can change: smallest key first, ties by arrival."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sortedcontainers import SortedList

from engine.deciding.sequence import Sequence

Key = tuple[int, float]  # rank, then value: smaller is earlier


class SequenceQueue:
    """Every operation is O(log n); iterating from the front costs O(log n) a step."""

    def __init__(self) -> None:
        self._sorted: SortedList[tuple[Key, int, Sequence]] = SortedList()
        self._entries: dict[Sequence, tuple[Key, int, Sequence]] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._entries

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[2] for entry in self._sorted)

    def of_rank(self, rank: int) -> Iterator[Sequence]:
        """In order, those whose key has that rank."""
        low, high = ((rank, -math.inf),), ((rank + 1, -math.inf),)
        return (entry[2] for entry in self._sorted.irange(low, high))

    def add(self, sequence: Sequence, key: Key) -> None:
        """Ties are broken by the order of adding, so that nothing is left to chance."""
        assert sequence not in self._entries, "already queued"
        self._num_added += 1
        entry = (key, self._num_added, sequence)
        self._entries[sequence] = entry
        self._sorted.add(entry)

    def remove(self, sequence: Sequence) -> None:
        self._sorted.remove(self._entries.pop(sequence))

    def rekey(self, sequence: Sequence, key: Key) -> None:
        """Give a queued sequence another key; its place among ties stays."""
        old = self._entries[sequence]
        if old[0] != key:
            self._sorted.remove(old)
            entry = self._entries[sequence] = (key, old[1], sequence)
            self._sorted.add(entry)

    def rekey_all(self, keys: dict[Sequence, Key]) -> None:
        """New keys for everybody, in O(n log n)."""
        self._entries = {s: (keys.get(s, old[0]), old[1], s) for s, old in self._entries.items()}
        self._sorted = SortedList(self._entries.values())

    def place(self, sequence: Sequence) -> tuple[Key, int]:
        """What the order goes by: the key, then the order of adding."""
        key, number, _ = self._entries[sequence]
        return key, number
