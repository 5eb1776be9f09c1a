"""Who owns which page of KV memory, and which finished pages can be shared.

A page is a fixed run of `page_size` token positions. A sequence's page table lists its pages in
order of position. Pages are granted all or nothing. With prefix caching, a full page of prompt
tokens is known by the hash of everything up to its end, chained page by page and keyed per tenant
(no tenant can probe another's prompts); it may be read by many sequences, is never written again,
and stays after its last reader left until its space is needed, least recently used first. A prompt
can be withdrawn from that index: then its pages are free once nobody reads them.

A page is granted with whatever its last owner left in it. Of what a sequence is granted at once the
iteration fills all pages but the last; those last ones are `take_fresh`, to be zeroed.

    page:  free -> owned (1 reader, being written) -> shared (n readers, full) -> idle (0 readers)
             ^--------------------------------------------------------------------------'
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

from engine.deciding.request import Request
from engine.deciding.sequence import Sequence

PAGE_SIZE = 16  # token positions of a page, where nobody says otherwise


class PagePool:
    """Accounts for `num_pages` pages; holds no memory itself."""

    def __init__(self, num_pages: int, page_size: int, prefix_caching: bool = False) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError("num_pages and page_size must be at least 1")
        self.num_pages = num_pages
        self.page_size = page_size
        self._prefix_caching = prefix_caching
        self._free = list(range(num_pages - 1, -1, -1))
        self._readers = [0] * num_pages
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached, nobody reads; LRU first
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._prompt_hashes: dict[str, list[bytes]] = {}  # by request id, while in flight
        self._fresh: list[int] = []  # since they were last taken
        self.num_evictions = 0  # cached pages given up for space

    @property
    def num_available(self) -> int:
        """Pages that can be granted: free ones, and cached ones that nobody reads."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Pages whose content the prefix index knows."""
        return len(self._page_of)

    def pages_for(self, num_positions: int) -> int:
        return -(-num_positions // self.page_size)

    def grow(self, sequence: Sequence, num_positions: int) -> bool:
        """Give the sequence pages for that many positions; False, and nothing done, if short."""
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
        for page in granted:
            self._readers[page] = 1
        sequence.pages.extend(granted)
        self._fresh.append(granted[-1])
        return True

    def take_fresh(self) -> tuple[int, ...]:
        """Of the pages granted since the last call, those that may stay partly unwritten."""
        fresh = tuple(self._fresh)
        self._fresh.clear()
        return fresh

    def _evict(self) -> None:
        """Give up the cached page that has been idle longest."""
        page, _ = self._idle.popitem(last=False)
        self.num_evictions += 1
        del self._page_of[self._hash_of.pop(page)]
        self._free.append(page)

    def release(self, sequence: Sequence) -> None:
        """Take all pages back. Later pages of a prefix become the first to be evicted."""
        if not self._prefix_caching:  # nothing is shared
            for page in sequence.pages:
                self._readers[page] = 0
            self._free += reversed(sequence.pages)
            sequence.pages.clear()
            return
        for page in reversed(sequence.pages):
            self._readers[page] -= 1
            if self._readers[page] == 0:
                if page in self._hash_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)
        sequence.pages.clear()

    # Prefix index

    def num_missing(self, request: Request, num_positions: int) -> int:
        """Of the available pages, how many that many positions of a request not yet begun would
        take: all but those that others are reading."""
        shared = sum(self._readers[page] > 0 for page in self._cached_pages(request))
        return self.pages_for(num_positions) - shared

    def attach(self, sequence: Sequence) -> int:
        """Share the cached pages of the prompt with an empty sequence; returns tokens covered."""
        assert not sequence.pages, "only an empty sequence can take a cached prefix"
        for page in self._cached_pages(sequence.request):
            if self._readers[page] == 0:
                del self._idle[page]
            self._readers[page] += 1
            sequence.pages.append(page)
        return len(sequence.pages) * self.page_size

    def publish(self, sequence: Sequence, start: int, stop: int) -> None:
        """Make the full prompt pages within computed positions [start, stop) known to others."""
        if not self._prefix_caching:
            return
        hashes = self._hashes(sequence.request)
        for i in range(start // self.page_size, min(stop // self.page_size, len(hashes))):
            page = sequence.pages[i]
            if hashes[i] not in self._page_of and page not in self._hash_of:
                self._page_of[hashes[i]] = page
                self._hash_of[page] = hashes[i]

    def withdraw(self, request: Request) -> None:
        """What was computed of this prompt, by whomever, may be spoiled: nobody shares it from now
        on, and until it is forgotten the request neither takes pages from the index nor adds any.
        """
        if not self._prefix_caching:
            return
        for key in self._hashes(request):
            page = self._page_of.pop(key, None)
            if page is None:
                continue
            del self._hash_of[page]
            if page in self._idle:
                del self._idle[page]
                self._free.append(page)
        self._prompt_hashes[request.id] = []

    def forget(self, request_id: str) -> None:
        """The request ended: drop what was remembered about it."""
        self._prompt_hashes.pop(request_id, None)

    def _cached_pages(self, request: Request) -> list[int]:
        """Pages of the prompt whose KV could be shared now; less than the whole prompt."""
        if not self._prefix_caching:
            return []
        pages = []
        usable = (len(request.prompt) - 1) // self.page_size  # one token is left to be computed
        for key in self._hashes(request)[:usable]:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def _hashes(self, request: Request) -> list[bytes]:
        """Chained hashes of the prompt's full pages."""
        hashes = self._prompt_hashes.get(request.id)
        if hashes is None:
            hashes, size, prompt = [], self.page_size, request.prompt
            parent = blake2b(request.tenant.encode(), digest_size=16).digest()
            for i in range(len(prompt) // size):
                page_bytes = array("Q", prompt[i * size : (i + 1) * size]).tobytes()
                parent = blake2b(parent + page_bytes, digest_size=16).digest()
                hashes.append(parent)
            self._prompt_hashes[request.id] = hashes
        return hashes

    def check(self, sequences: list[Sequence]) -> None:
        """Assert the invariants, given every sequence that may hold pages."""
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
        assert {self._page_of[h]: h for h in self._page_of} == self._hash_of, "the index disagrees"
        assert set(self._idle) <= set(self._hash_of), "an idle page without a hash"
