"""A memory that keeps nothing of keys and values but whether they are numbers."""

from __future__ import annotations

from engine.deciding.plan import Chunk, Plan
from engine.deciding.sequence import Sequence

BAD = 8  # the token whose keys and values are none


class Memory:
    """Computes plans in the order of their launches. As in a real batch, a sequence reads all that
    lies in its pages, and what is not a number spoils all that it computes in that iteration.
    """

    def __init__(self, page_size: int) -> None:
        self._size = page_size
        self._spoiled: dict[int, set[int]] = {}  # by page: offsets
        self.num_spoiled = 0  # results

    def compute(self, plan: Plan) -> dict[Sequence, bool]:
        """Returns for each member of the plan whether it was spoiled."""
        for page in plan.cleared:
            self._spoiled.pop(page, None)
        decodes = [Chunk(s, s.num_computed, 1, True) for s in plan.decodes]
        found = {chunk.sequence: self._compute(chunk) for chunk in (*decodes, *plan.chunks)}
        self.num_spoiled += sum(found.values())
        return found

    def _compute(self, chunk: Chunk) -> bool:
        sequence, start, length, _ = chunk
        stop = start + length
        new = [(sequence.pages[i // self._size], i % self._size) for i in range(start, stop)]
        for page, offset in new:
            self._spoiled.get(page, set()).discard(offset)
        pages = sequence.pages[: -(-stop // self._size)]
        spoiled = any(self._spoiled.get(page) for page in pages)
        spoiled |= BAD in sequence.request.prompt[start:stop]
        if spoiled:
            for page, offset in new:
                self._spoiled.setdefault(page, set()).add(offset)
        return spoiled
