"""The last few numbers of a row."""

from __future__ import annotations

from array import array


class Ring:
    """Holds the last `most` numbers that were added, compactly."""

    __slots__ = ("_most", "_next", "_values")

    def __init__(self, most: int) -> None:
        self._values = array("f")
        self._most = most
        self._next = 0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        """Adds a number, in the place of the oldest where there are too many."""
        if len(self._values) < self._most:
            self._values.append(value)
        else:
            self._values[self._next] = value
            self._next = (self._next + 1) % self._most

    def quantile(self, share: float) -> float:
        """Returns the smallest number that at least this share of them is no greater than. There
        must be one.
        """
        ordered = sorted(self._values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def largest(self, rank: int) -> float:
        """Returns the number that `rank` of them are no smaller than; 0 where there are fewer."""
        return sorted(self._values)[-rank] if len(self._values) >= rank else 0.0

    def clear(self) -> None:
        """Forgets all."""
        self._values = array("f")
        self._next = 0
