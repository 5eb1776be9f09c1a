"""A queue of sequences that can change places: the smallest key is first, ties go by arrival."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sortedcontainers import SortedList

from engine.deciding.sequence import Sequence

SAMPLE = 32  # sequences from which a sum over more of them is told

Key = tuple[int, float]  # rank, then value; what they mean is the policy's to say
Place = tuple[Key, float]  # a key, and what goes by arrival


class _Before(NamedTuple):
    """Who is before a place."""

    place: Place
    number: int
    sample: list[Sequence]  # all, or SAMPLE of them, evenly spaced


class SequenceQueue:
    """Holds the sequences that wait, in order of their keys.

    Every operation costs O(log n), but `rekey_all`; iterating costs O(log n) a step.
    """

    def __init__(self) -> None:
        self._sorted: SortedList[tuple[Key, int, Sequence]] = SortedList()
        self._entries: dict[Sequence, tuple[Key, int, Sequence]] = {}
        self._num_added = 0
        self._before: _Before | None = None  # what was asked for last, while that is true

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._entries

    def __iter__(self) -> Iterator[Sequence]:
        return (entry[2] for entry in self._sorted)

    def of_rank(self, rank: int) -> Iterator[Sequence]:
        """Yields in order the sequences whose key has that rank."""
        low, high = ((rank, -math.inf),), ((rank + 1, -math.inf),)
        for _, _, sequence in self._sorted.irange(low, high):
            yield sequence

    def add(self, sequence: Sequence, key: Key) -> None:
        """Adds a sequence behind those that have the same key."""
        assert sequence not in self._entries, "already queued"
        self._num_added += 1
        entry = (key, self._num_added, sequence)
        self._entries[sequence] = entry
        self._sorted.add(entry)
        self._before = None

    def remove(self, sequence: Sequence) -> None:
        """Removes a queued sequence; raises KeyError if it is not queued."""
        self._sorted.remove(self._entries.pop(sequence))
        self._before = None

    def rekey(self, sequence: Sequence, key: Key) -> None:
        """Gives a queued sequence another key. Among equal keys it keeps its age."""
        old = self._entries[sequence]
        if old[0] != key:
            self._sorted.remove(old)
            entry = self._entries[sequence] = (key, old[1], sequence)
            self._sorted.add(entry)
            self._before = None

    def rekey_all(self, keys: dict[Sequence, Key]) -> None:
        """Gives new keys to those that have one in `keys`, all at once in O(n log n)."""
        self._entries = {s: (keys.get(s, old[0]), old[1], s) for s, old in self._entries.items()}
        self._sorted = SortedList(self._entries.values())
        self._before = None

    def sum_before(self, place: Place, value: Callable[[Sequence], float]) -> float:
        """Returns the sum of a value over the sequences before a place: exactly, if they are SAMPLE
        at most, and else as many times as there are the mean over SAMPLE of them, evenly spaced.
        """
        _, number, sample = self._look_before(place)
        total = math.fsum(map(value, sample))
        return total * number / SAMPLE if number > SAMPLE else total

    def sample_before(self, place: Place) -> list[Sequence]:
        """Returns the sequences before a place, or SAMPLE of them, evenly spaced, if there are
        more. Nobody changes the list.
        """
        return self._look_before(place).sample

    def _look_before(self, place: Place) -> _Before:
        """Returns who is before a place. It is asked more than once in a row: how much work they
        have, and whose that is.
        """
        before = self._before
        if before is None or before.place != place:
            entries, number = self._sorted, self._sorted.bisect_left(place)
            if number <= SAMPLE:
                sample = [entry[2] for entry in entries.islice(0, number)]
            else:
                positions = [(2 * i + 1) * number // (2 * SAMPLE) for i in range(SAMPLE)]
                sample = [entries[position][2] for position in positions]
            before = self._before = _Before(place, number, sample)
        return before

    def num_before(self, place: Place) -> int:
        """Returns how many sequences are before a place."""
        before = self._before
        if before is not None and before.place == place:
            return before.number
        return int(self._sorted.bisect_left(place))

    def place(self, sequence: Sequence) -> tuple[Key, int]:
        """Returns what the order goes by: the key, and then a number that counts arrivals."""
        key, number, _ = self._entries[sequence]
        return key, number
