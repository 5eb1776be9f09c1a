"""Work that waits, in order of deadline: how much lies ahead of an instant, and who would be late.

Lateness. Say the entries are served one after the other in order of their deadlines, without a
pause, from the instant `start` on. Then entry k ends at start + (work of all entries up to and
including k). With

    lateness = max over all entries k of  (work up to and including k) - due_k

everybody is on time exactly when start + lateness <= 0, and -lateness is the latest start at which
that is so. No other order does better: if any order has everybody on time, this one has (Jackson,
1955).

Sums over parts. Let A and B be two runs of entries, all of A before all of B. All that is asked of
A and B together follows from what is known of each:

    total(A + B)    = total(A) + total(B)                              sum of work
    largest(A + B)  = max(largest(A), largest(B))                      most work of one entry
    least(A + B)    = max(least(A), least(B))                          (-importance, work) of one
    lateness(A + B) = max(lateness(A), total(A) + lateness(B))         since B begins after A

So in a binary search tree in order of deadline, each node keeps these four for its subtree, from
those of its children and its own entry (`pull`). An insertion or a removal changes the nodes on one
path only, and so does a change of somebody's work. A question, too, walks down one path: where it
turns right it has passed the whole left subtree, whose sums it takes without a look inside.

Balance. The tree is a treap (Seidel and Aragon, 1996): each node has besides a random number, and
no child has a larger one than its parent. That makes it the tree that inserting the entries in a
random order would give, whatever order they come in: paths are O(log n) long on average. The
numbers are a hash of the count of entries so far, so that runs repeat.

Work and instants are in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from engine.deciding.sequence import Sequence

NEVER: Final = -math.inf  # the lateness of nobody
_NOBODY: Final = (-math.inf, 0.0)  # the rank of nobody


class _Node:
    __slots__ = (
        "due",
        "heap",
        "late",
        "least",
        "left",
        "number",
        "rank",
        "right",
        "sequence",
        "top",
        "total",
        "work",
    )

    def __init__(self, sequence: Sequence, due: float, number: int, work: float) -> None:
        self.sequence = sequence
        self.due = due
        self.number = number  # breaks ties in order of arrival
        self.heap = (number * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF  # repeatable randomness
        self.work = work
        self.rank = (-sequence.importance, work)
        self.left: _Node | None = None
        self.right: _Node | None = None
        # Over the subtree: the sum of work, the most work and rank of one entry, and the lateness.
        self.total = work
        self.top = work
        self.least = self.rank
        self.late = work - due

    def pull(self) -> None:
        """Computes the sums over the subtree anew, from those of the children."""
        left, right = self.left, self.right
        total = top = self.work
        least = self.rank
        if left is None:
            late = total - self.due
        else:
            total += left.total
            late = total - self.due
            if left.late > late:
                late = left.late
            if left.top > top:
                top = left.top
            if left.least > least:
                least = left.least
        if right is not None:
            if total + right.late > late:
                late = total + right.late
            total += right.total
            if right.top > top:
                top = right.top
            if right.least > least:
                least = right.least
        self.total, self.top, self.least, self.late = total, top, least, late


def _merge(a: _Node | None, b: _Node | None) -> _Node | None:
    """Returns one tree of two, all of whose first comes before all of the second."""
    if a is None or b is None:
        return a or b
    if a.heap > b.heap:
        a.right = _merge(a.right, b)
        a.pull()
        return a
    b.left = _merge(a, b.left)
    b.pull()
    return b


def _split(node: _Node | None, due: float, number: int) -> tuple[_Node | None, _Node | None]:
    """Returns two trees: of the nodes before (due, number), and of the rest."""
    if node is None:
        return None, None
    if (node.due, node.number) < (due, number):
        middle, rest = _split(node.right, due, number)
        node.right = middle
        node.pull()
        return node, rest
    first, middle = _split(node.left, due, number)
    node.left = middle
    node.pull()
    return first, node


class Backlog:
    """Holds entries: a sequence, the instant at which it is due, and the work that it has left.

    Entries that are due at the same instant are in order of their adding. Everything costs O(log n)
    on average, but iterating costs O(n), of which the first step takes O(log n).
    """

    def __init__(self) -> None:
        self._root: _Node | None = None
        self._nodes: dict[Sequence, _Node] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._nodes

    def __iter__(self) -> Iterator[Sequence]:
        """Yields the sequences in order of deadline."""
        path: list[_Node] = []
        node = self._root
        while path or node is not None:
            while node is not None:
                path.append(node)
                node = node.left
            node = path.pop()
            yield node.sequence
            node = node.right

    def add(self, sequence: Sequence, due: float, work: float) -> None:
        """Adds an entry for a sequence that has none."""
        assert sequence not in self._nodes, "already in the backlog"
        self._num_added += 1
        node = self._nodes[sequence] = _Node(sequence, due, self._num_added, work)
        path: list[_Node] = []  # down to the first that may not be above the new one
        at, is_left = self._root, False
        while at is not None and at.heap > node.heap:
            path.append(at)
            is_left = due < at.due
            at = at.left if is_left else at.right
        node.left, node.right = _split(at, due, node.number)
        node.pull()
        self._hang(path, is_left, node)

    def remove(self, sequence: Sequence) -> None:
        """Removes the entry of the sequence; raises KeyError if it has none."""
        node = self._nodes.pop(sequence)
        path = self._path(node)
        assert path.pop() is node
        is_left = bool(path) and path[-1].left is node
        self._hang(path, is_left, _merge(node.left, node.right))

    def _hang(self, path: list[_Node], is_left: bool, subtree: _Node | None) -> None:
        """Puts the subtree at the end of a path from the root, to the left or right of its last
        node, and computes the sums of the path anew.
        """
        if not path:
            self._root = subtree
            return
        if is_left:
            path[-1].left = subtree
        else:
            path[-1].right = subtree
        for node in reversed(path):
            node.pull()

    def set_work(self, sequence: Sequence, work: float) -> None:
        """Replaces the work that the sequence has left; raises KeyError if it has no entry."""
        node = self._nodes[sequence]
        node.work, node.rank = work, (-sequence.importance, work)
        for parent in reversed(self._path(node)):
            parent.pull()

    def _path(self, node: _Node) -> list[_Node]:
        """Returns the nodes from the root to this one, both included."""
        path = []
        at, due, number = self._root, node.due, node.number
        while at is not node:
            assert at is not None
            path.append(at)
            is_left = due < at.due or (due == at.due and number < at.number)
            at = at.left if is_left else at.right
        path.append(node)
        return path

    def work(self, sequence: Sequence) -> float:
        """Returns the work that the sequence has left; raises KeyError if it has no entry."""
        return self._nodes[sequence].work

    def find_work(self, sequence: Sequence) -> float | None:
        """Returns the work that the sequence has left; None if it has no entry."""
        node = self._nodes.get(sequence)
        return None if node is None else node.work

    @property
    def total(self) -> float:
        """The sum of all work."""
        return 0.0 if self._root is None else self._root.total

    @property
    def lateness(self) -> float:
        """Minus the latest start at which everybody is on time; -inf if there is no entry."""
        return NEVER if self._root is None else self._root.late

    def load(self, start: float) -> float:
        """Returns the sum of all work over the slack that a start at that instant leaves; 0 if
        there is no entry, inf if not everybody would be on time.
        """
        root = self._root
        if root is None:
            return 0.0
        slack = -(start + root.late)
        return root.total / slack if slack > 0 else math.inf

    def work_until(self, due: float) -> float:
        """Returns the work of all entries that are due at or before that instant."""
        node, total = self._root, 0.0
        while node is not None:
            if node.due <= due:
                total += node.work + (node.left.total if node.left else 0.0)
                node = node.right
            else:
                node = node.left
        return total

    def lateness_after(self, due: float) -> float:
        """Returns the lateness of the entries that are due after that instant. The work of those
        before them is counted.
        """
        node, total, late = self._root, 0.0, NEVER
        while node is not None:
            through = total + (node.left.total if node.left else 0.0) + node.work
            if node.due <= due:
                total, node = through, node.right
            else:
                late = max(late, through - node.due)
                if node.right is not None:
                    late = max(late, through + node.right.late)
                node = node.left
        return late

    def lateness_before(self, due: float) -> float:
        """Returns the lateness of the entries that are due before that instant."""
        node, total, late = self._root, 0.0, NEVER
        while node is not None:
            if node.due < due:
                through = total + (node.left.total if node.left else 0.0) + node.work
                if node.left is not None:
                    late = max(late, total + node.left.late)
                late = max(late, through - node.due)
                total, node = through, node.right
            else:
                node = node.left
        return late

    def first_late(self, start: float) -> Sequence | None:
        """Returns the first entry, in order, that would end late if work began at `start`."""
        node, at = self._root, start
        if node is None or at + node.late <= 0:
            return None
        while node is not None:
            left = node.left
            if left is not None and at + left.late > 0:
                node = left
                continue
            at += (left.total if left else 0.0) + node.work
            if at > node.due:
                return node.sequence
            node = node.right
        return None  # only rounding could lead here

    @property
    def largest(self) -> Sequence | None:
        """The entry with most work; None if there is none."""
        node = self._root
        while node is not None and node.work != node.top:
            left = node.left
            node = left if left is not None and left.top == node.top else node.right
        return None if node is None else node.sequence

    def least_until(self, due: float) -> Sequence | None:
        """Returns, of those due at or before that instant, the entry with most work among the least
        important.

        Going down, `best` is the best node on the path, or the root of the best subtree that lies
        wholly before the instant; in the latter the entry is looked for at the end.
        """
        best: _Node | None = None
        rank = _NOBODY
        is_subtree = False  # whether best stands for its subtree
        node = self._root
        while node is not None:
            if node.due > due:
                node = node.left
                continue
            left = node.left
            if node.rank > rank:
                best, rank, is_subtree = node, node.rank, False
            if left is not None and left.least > rank:
                best, rank, is_subtree = left, left.least, True
            node = node.right
        while is_subtree and best is not None and best.rank != rank:
            left = best.left
            best = left if left is not None and left.least == rank else best.right
        return None if best is None else best.sequence

    @property
    def depth(self) -> int:
        """How many entries the longest path through the tree has; chance keeps it O(log n)."""

        def below(node: _Node | None) -> int:
            return 0 if node is None else 1 + max(below(node.left), below(node.right))

        return below(self._root)

    def check(self) -> None:
        """Asserts that the tree is a heap, in order, and that its sums are right."""

        def walk(node: _Node | None) -> list[_Node]:
            if node is None:
                return []
            for child in (node.left, node.right):
                assert child is None or child.heap <= node.heap
            sums = node.total, node.top, node.least, node.late
            nodes = [*walk(node.left), node, *walk(node.right)]
            node.pull()
            assert sums == (node.total, node.top, node.least, node.late), "stale sums"
            return nodes

        nodes = walk(self._root)
        keys = [(n.due, n.number) for n in nodes]
        assert keys == sorted(keys)
        assert {n.sequence for n in nodes} == set(self._nodes)
