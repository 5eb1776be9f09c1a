"""The prefix index: which page holds the keys and values (KV) of which beginning of a prompt.

Attention is causal, so the KV of a position depends on the tokens up to it and on nothing else. Two
prompts that begin with the same tokens have the same KV there, and it needs to be computed once: a
full page of one prompt serves another if all tokens up to its end are the same, not just its own.

That is what the hash of a page stands for. Hashes are chained, page by page:

    hash of page i = H(hash of page i - 1, tokens of page i)         hash before page 0 = H(tenant)

Equal hashes mean equal beginnings (with 128 bits, a collision is not to be expected), and the
longest known beginning of a prompt is found by walking along its pages until one is unknown. The
tenant is part of every hash, so that no tenant can find out, by how soon its first token comes,
what another has sent.

A prompt can be withdrawn, when what was computed of it may be wrong: then none of its pages is
known any more, whoever computed them, and it takes no part in the sharing itself.

The index knows nothing of who reads a page, nor when its space is needed: that is in pages.py.
While somebody watches, a journal is told of what comes to be known and what does not stay so
(prefix_journal.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice, takewhile

from engine.deciding.prefix_journal import PrefixJournal
from engine.deciding.request import Request

PACKED = 8  # pages whose tokens are packed at once: few, as who looks may stop at the first


class PrefixIndex:
    """Which pages, of `page_size` tokens, are known by the beginning of a prompt that they hold.

    A beginning is held by one known page, and a page is known for one beginning. Of two equal pages
    that were computed at the same time, the second stays unknown.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._page_of: dict[bytes, int] = {}  # by hash
        self._hash_of: dict[int, bytes] = {}  # the same the other way
        # Hashes of the full pages of each prompt in flight, by request id; none if withdrawn.
        self._prompt_hashes: dict[str, list[bytes]] = {}
        self.journal: PrefixJournal | None = None  # while somebody watches

    def watch(self, is_watched: bool, now: float) -> None:
        """Begins a journal, if there is none, or ends it."""
        if not is_watched:
            self.journal = None
        elif self.journal is None:
            self.journal = PrefixJournal(self._page_size, now, is_whole=not self._page_of)

    def __len__(self) -> int:
        return len(self._page_of)

    def __contains__(self, page: int) -> bool:
        return page in self._hash_of

    def find(self, request: Request) -> list[int]:
        """Returns the pages of the longest known beginning of the prompt, in order. They never hold
        the whole prompt: its last token is left to be computed, as the first output follows it.
        """
        pages = []
        for hash_ in self._hashes(request)[: self._num_usable(request)]:
            page = self._page_of.get(hash_)
            if page is None:
                break
            pages.append(page)
        return pages

    def count(self, request: Request) -> int:
        """Returns how many pages `find` would return for a request that is new, and remembers
        nothing of it.
        """
        hashes = islice(self._chain(request), self._num_usable(request))
        return sum(1 for _ in takewhile(self._page_of.__contains__, hashes))

    def _num_usable(self, request: Request) -> int:
        return (len(request.prompt) - 1) // self._page_size

    def add(self, request: Request, pages: list[int], start: int, stop: int) -> None:
        """Makes known the pages that became full when positions [start, stop) of the request were
        computed, as far as its prompt fills them. `pages` is its page table.
        """
        hashes = self._hashes(request)
        for i in range(start // self._page_size, min(stop // self._page_size, len(hashes))):
            if hashes[i] not in self._page_of and pages[i] not in self._hash_of:
                self._page_of[hashes[i]] = pages[i]
                self._hash_of[pages[i]] = hashes[i]
        if self.journal is not None:
            self.journal.known(request, hashes[: stop // self._page_size], self._page_of)

    def remove(self, page: int) -> None:
        """Makes a known page unknown: its space is needed."""
        hash_ = self._hash_of.pop(page)
        del self._page_of[hash_]
        if self.journal is not None:
            self.journal.forgotten(hash_)

    def withdraw(self, request: Request) -> list[int]:
        """Makes all pages of a prompt unknown and returns them. Until it is forgotten, the request
        finds no pages and adds none.
        """
        known = [self._page_of[hash_] for hash_ in self._hashes(request) if hash_ in self._page_of]
        for page in known:
            self.remove(page)
        self._prompt_hashes[request.id] = []
        return known

    def forget(self, request_id: str) -> None:
        """Drops what was remembered of a request, since it has ended."""
        self._prompt_hashes.pop(request_id, None)

    def _hashes(self, request: Request) -> list[bytes]:
        hashes = self._prompt_hashes.get(request.id)
        if hashes is None:
            hashes = self._prompt_hashes[request.id] = list(self._chain(request))
        return hashes

    def _chain(self, request: Request) -> Iterator[bytes]:
        """Yields the hash of each beginning of the prompt that fills pages, the shortest first."""
        prompt, packed_len = request.prompt, PACKED * self._page_size
        parent = blake2b(request.tenant.encode(), digest_size=16).digest()
        for start in range(0, len(prompt), packed_len):
            packed = array("Q", prompt[start : start + packed_len])
            width = self._page_size * packed.itemsize
            tokens = packed.tobytes()
            for at in range(0, len(tokens) - width + 1, width):
                parent = blake2b(parent + tokens[at : at + width], digest_size=16).digest()
                yield parent

    def check(self) -> None:
        """Asserts that both directions agree."""
        assert {page: hash_ for hash_, page in self._page_of.items()} == self._hash_of
        if self.journal is not None:
            self.journal.check(self._page_of)
