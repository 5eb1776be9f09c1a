"""Whose the memory is, and how full it is for a stream that comes now.

A stream is a request with a TBT that was not relegated; all others are patient. Whatever becomes
free goes to streams first; what patient requests have only begun to compute they give up for a
stream that would be late, and their pages are the first to be taken where a stream's decode needs
one. So what they hold is no reason to send a stream elsewhere, and neither are cached prefixes.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

from engine.deciding.pages import PagePool
from engine.deciding.roster import Roster


class Memory(NamedTuple):
    """Whose the pages are, in pages. Those that are held are neither free nor reclaimable."""

    page_size: int  # tokens
    total: int
    held: int
    idle: int  # of the others: cached prefixes that nobody reads
    patient: int  # of `held`: by patient requests
    num_streams: int = 0  # that hold the others

    @property
    def usage(self) -> float:
        """Returns how full the memory is for a stream: the part that streams hold, from 0 to 1."""
        return (self.held - self.patient) / self.total


def memory_of(pages: PagePool, roster: Roster) -> Memory:
    """Returns whose the memory is. Pages that several read count as those of who computed them, so
    that this costs no more than counting those who have begun.
    """
    held = pages.num_pages - pages.num_available
    patient = num_streams = 0
    for sequence in chain(roster.running, roster.partial):
        if sequence.tbt_s is None or sequence.relegated:
            patient += len(sequence.pages) - sequence.num_cached // pages.page_size
        else:
            num_streams += 1
    sizes = pages.page_size, pages.num_pages, held, pages.num_idle
    return Memory(*sizes, min(patient, held), num_streams)
