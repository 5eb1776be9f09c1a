"""The sequences that decode together, by what they were promised."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property

from engine.deciding.request import Pace
from engine.deciding.sequence import Sequence


class Streams(list[Sequence]):
    """Sequences that decode, in the order in which they began to; nobody changes the list.

    Who belongs to which part stays true whatever tokens come, so it is worked out at most once.
    """

    @cached_property
    def by_pace(self) -> dict[Pace, list[Sequence]]:
        """Those with a TBT target, by it and the longest gap."""
        found: dict[Pace, list[Sequence]] = {}
        pace, own = None, []  # of the last one: mostly that of the next, too
        for sequence in self:
            if sequence.pace is not None:
                if sequence.pace != pace:
                    pace, own = sequence.pace, found.setdefault(sequence.pace, [])
                own.append(sequence)
        return found

    @cached_property
    def elastic(self) -> list[Sequence]:
        """Those that have a deadline for their last token only (TTLT)."""
        paceless = [s for s in self if s.pace is None]
        return [s for s in paceless if s.request.targets.ttlt_s is not None]

    @cached_property
    def elastic_by_group(self) -> dict[str, tuple[float, list[Sequence]]]:
        """The same by their `output_group`, with the first deadline of each; these do not move."""
        found: dict[str, list[Sequence]] = {}
        for sequence in self.elastic:
            found.setdefault(sequence.output_group, []).append(sequence)
        return {group: (min(s.due_at for s in own), own) for group, own in found.items()}

    def without(self, held: Set[Sequence]) -> Streams:
        """Returns all but these."""
        return Streams(s for s in self if s not in held)
