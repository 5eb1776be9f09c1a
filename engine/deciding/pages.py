"""Who owns which page of the KV memory.

The memory is divided into pages of `page_size` token positions. A sequence's page table
(`Sequence.pages`) lists its pages in order of position. Pages are granted all or nothing: a
sequence gets all that it asks for, or none and nothing has changed. A page lives like this:

    free -> owned (1 reader, being written) -> shared (n readers, full) -> idle (0 readers) -.
     ^                                                                                       |
     '------------------------------ evicted: its space is needed ---------------------------'

With prefix caching, a full page of prompt tokens becomes known to the prefix index
(prefix_index.py). From then on it may be read by many sequences and is never written again. When
its last reader has left, it is idle: its content stays until its space is needed, and of the idle
pages the one that has been so for longest goes first. A page that is not known becomes free at
once.

A page is granted with whatever its last owner left in it. Of the pages that a sequence is granted
at once, the iteration fills all but the last. Those last ones are `take_fresh`, to be zeroed.
"""

from __future__ import annotations

from collections import OrderedDict

from engine.deciding.prefix_index import PrefixIndex
from engine.deciding.request import Request
from engine.deciding.sequence import Sequence

PAGE_SIZE = 16  # token positions of a page, where nobody says otherwise


class PagePool:
    """The account of `num_pages` pages; the memory itself is the executor's.

    Raises ValueError where there is less than one page, or less than one position in each.
    """

    def __init__(self, num_pages: int, page_size: int, prefix_caching: bool = False) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError("num_pages and page_size must be at least 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self.index = PrefixIndex(page_size)  # stays empty without prefix caching
        self.num_evictions = 0  # cached pages given up for space
        self._prefix_caching = prefix_caching
        self._free = list(range(num_pages - 1, -1, -1))  # the next to be granted is the last
        self._readers = [0] * num_pages  # by page
        self._idle: OrderedDict[int, None] = OrderedDict()  # longest idle first
        self._fresh: list[int] = []  # granted since they were last taken

    @property
    def num_available(self) -> int:
        """Returns how many pages can be granted: the free and the idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Returns how many of these are idle: their content is known, and nobody reads it."""
        return len(self._idle)

    @property
    def num_cached(self) -> int:
        """Returns how many pages have a content that the prefix index knows."""
        return len(self.index)

    def pages_for(self, num_positions: int) -> int:
        """Returns how many pages hold that many positions."""
        return -(-num_positions // self.page_size)

    def grow(self, sequence: Sequence, num_positions: int) -> bool:
        """Gives the sequence pages for that many positions in all. Returns False, and has done
        nothing, where too few are available.
        """
        missing = -(-num_positions // self.page_size) - len(sequence.pages)
        if missing <= 0:
            return True
        if missing > len(self._free) + len(self._idle):
            return False
        while len(self._free) < missing:
            self._evict()
        granted = self._free[-missing:]
        granted.reverse()  # neighbours, where they were released as such: cheap to read
        del self._free[-missing:]
        readers = self._readers
        for page in granted:
            readers[page] = 1
        sequence.pages.extend(granted)
        self._fresh.append(granted[-1])
        return True

    def take_fresh(self) -> tuple[int, ...]:
        """Returns, of the pages granted since the last call, those that may stay partly unwritten
        in the next iteration.
        """
        fresh = tuple(self._fresh)
        self._fresh.clear()
        return fresh

    def _evict(self) -> None:
        """Frees the page that has been idle for longest."""
        page, _ = self._idle.popitem(last=False)
        self.num_evictions += 1
        self.index.remove(page)
        self._free.append(page)

    def release(self, sequence: Sequence) -> None:
        """Takes all pages of the sequence back. The later pages of a prefix become idle before the
        earlier, to be evicted first: the beginning of a prompt is shared by most.
        """
        readers, free = self._readers, self._free
        if not self._prefix_caching:  # nobody else reads any of them, nor knows it
            for page in sequence.pages:
                readers[page] = 0
            free.extend(reversed(sequence.pages))
            sequence.pages.clear()
            return
        for page in reversed(sequence.pages):
            readers[page] -= 1
            if readers[page] == 0:
                if page in self.index:
                    self._idle[page] = None
                else:
                    free.append(page)
        sequence.pages.clear()

    # Sharing

    def num_own(self, sequence: Sequence) -> int:
        """Returns how many pages of the sequence nobody else reads."""
        return sum(self._readers[page] == 1 for page in sequence.pages)

    def num_missing(self, request: Request, num_positions: int) -> int:
        """Returns how many of the available pages that many positions of a request would take that
        has not begun: all of its pages but those that others are reading.
        """
        shared = sum([self._readers[page] > 0 for page in self._cached(request)])
        return self.pages_for(num_positions) - shared

    def num_cached_of(self, request: Request) -> int:
        """Returns how many tokens of a new request's prompt the cached pages hold."""
        return self.index.count(request) * self.page_size if self._prefix_caching else 0

    def attach(self, sequence: Sequence) -> int:
        """Shares the cached pages of its prompt with a sequence that has no pages. Returns how many
        tokens they hold.
        """
        assert not sequence.pages, "only an empty sequence can take a cached prefix"
        for page in self._cached(sequence.request):
            if self._readers[page] == 0:
                del self._idle[page]
            self._readers[page] += 1
            sequence.pages.append(page)
        return len(sequence.pages) * self.page_size

    def publish(self, sequence: Sequence, start: int, stop: int) -> None:
        """Makes the prompt pages that computing positions [start, stop) filled known to others."""
        if self._prefix_caching:
            self.index.add(sequence.request, sequence.pages, start, stop)

    def withdraw(self, request: Request) -> None:
        """Lets nobody share from now on what was computed of this prompt, by whomever: it may be
        spoiled. Until it is forgotten, the request neither takes shared pages nor publishes any.
        """
        if not self._prefix_caching:
            return
        for page in self.index.withdraw(request):
            if page in self._idle:
                del self._idle[page]
                self._free.append(page)

    def forget(self, request_id: str) -> None:
        """Drops what was remembered of a request, since it has ended."""
        self.index.forget(request_id)

    def _cached(self, request: Request) -> list[int]:
        return self.index.find(request) if self._prefix_caching else []

    def check(self, sequences: list[Sequence]) -> None:
        """Asserts the invariants, given every sequence that may hold pages."""
        readers = [0] * self.num_pages
        for sequence in sequences:
            assert len(set(sequence.pages)) == len(sequence.pages), "a page twice in one table"
            for page in sequence.pages:
                readers[page] += 1
        assert readers == self._readers, "reader counts differ from the page tables"
        assert self._prefix_caching or max(readers) <= 1, "a page has two owners"
        unread = {page for page, count in enumerate(readers) if count == 0}
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        assert set(self._free) | set(self._idle) == unread, "a page is lost"
        assert not set(self._free) & set(self._idle), "a page is free and cached"
        assert all(page in self.index for page in self._idle), "an idle page that is not known"
        self.index.check()
