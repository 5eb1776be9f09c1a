"""The sequences that decode together, by what they were promised."""

from __future__ import annotations

from collections.abc import Iterable, Set

from engine.deciding.request import Pace
from engine.deciding.sequence import Sequence


class Streams(list[Sequence]):
    """Sequences that decode, in the order in which they began to; nobody changes the list.

    Who belongs to which part stays true whatever tokens come, so that is worked out here.
    """

    def __init__(self, sequences: Iterable[Sequence] = ()) -> None:
        super().__init__(sequences)
        self.by_pace: dict[Pace, list[Sequence]] = {}  # by TBT target and longest gap
        # Those that have a deadline for their last token only (TTLT), by their `output_group`, with
        # the first deadline of each group; these do not move.
        self.elastic_by_group: dict[str, tuple[float, list[Sequence]]] = {}
        pace, own = None, []  # of the last one: mostly that of the next, too
        groups: dict[str, list[Sequence]] = {}
        for sequence in self:
            if sequence.pace is None:
                if sequence.request.targets.ttlt_s is not None:
                    groups.setdefault(sequence.output_group, []).append(sequence)
                continue
            if sequence.pace != pace:
                pace, own = sequence.pace, self.by_pace.setdefault(sequence.pace, [])
            own.append(sequence)
        for group, members in groups.items():
            self.elastic_by_group[group] = min([s.due_at for s in members]), members

    def without(self, held: Set[Sequence]) -> Streams:
        """Returns all but these."""
        return Streams([s for s in self if s not in held])
