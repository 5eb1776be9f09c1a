"""What the prefix index comes to know and forgets, told in order, for whoever routes by prefixes.

A journal is kept only while somebody watches. It is told of each page that becomes known, with its
tokens, and of each that does not stay so, and hands both out in batches, which are numbered without
a gap. The newest batches are kept, for who has missed some; who has missed more takes all pages
that are known at one batch, in parts, and follows from there.

What was known before the journal began is told once a prompt is found to share it: the index knows
hashes, and only a prompt has the tokens. Until then nothing is said of it, nor of its end.

Numbers of journals do not overlap: each begins at its own instant, in milliseconds of a clock that
only goes on, times 2^20. So who asks for what came after a number of another journal is not
mistaken. There is room below for as many numbers as a state told in parts may need.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from engine.deciding.request import Request

MOST_KEPT: Final = 4096  # events of past batches
PART: Final = 512  # pages in each part of a state
SHIFT: Final = 20  # bits of a number that count batches
COUNT_FROM: Final = 1 << 16  # of the first batch


class Cached(NamedTuple):
    """A page of prompt tokens that became known. `window` has its own tokens, the last `page_size`
    of it, and before them those of the page before, but for that one's first, as 4-byte integers:
    with them whoever counts tokens from the second of the prompt on (which begins with `first`)
    finds the page that he means.
    """

    serial: int  # counts pages as they are told
    tenant: str
    hash: bytes
    parent: bytes | None  # the hash of the page before; None: the prompt begins with this one
    place: int  # of the page in the prompt, 0 for the first
    first: int
    window: bytes

    def tokens(self, page_size: int) -> list[int]:
        """Returns the tokens of the page."""
        return array("I", self.window).tolist()[-page_size:]


class Dropped(NamedTuple):
    """A page that is not known any more."""

    tenant: str
    hash: bytes
    place: int
    first: int


CacheEvent = Cached | Dropped


class CacheBatch(NamedTuple):
    """What happened between two looks, in order. Numbers go up by one."""

    number: int
    events: tuple[CacheEvent, ...]


class CacheState(NamedTuple):
    """Where a watcher begins. It follows from the batch after `number` on; what it has missed is in
    `missed`, or where that is None it takes all pages whose serial is at most `until`, of which
    there are `num_pages`. `is_whole`: nothing was cached when the journal began.
    """

    number: int
    missed: tuple[CacheBatch, ...] | None
    until: int = 0
    num_pages: int = 0
    is_whole: bool = True


class PrefixJournal:
    """Tells of one prefix index, from `now` on."""

    def __init__(self, page_size: int, now: float, is_whole: bool = True) -> None:
        """`is_whole`: nothing is known yet."""
        self._page_size = page_size
        self._is_whole = is_whole
        self._number = (int(now * 1000) << SHIFT) + COUNT_FROM
        self._num_told = self._num_taken = 0  # pages; of these, before the last batch ended
        self._pages: SortedDict[int, Cached] = SortedDict()  # by serial
        self._serial_of: dict[bytes, int] = {}  # by hash
        self._events: list[CacheEvent] = []  # since the last batch
        self._past: deque[CacheBatch] = deque()
        self._num_kept = 0  # events in them

    def __len__(self) -> int:
        """Returns how many pages are told to be known."""
        return len(self._pages)

    def __contains__(self, hash_: bytes) -> bool:
        return hash_ in self._serial_of

    def known(self, request: Request, hashes: list[bytes], page_of: dict[bytes, int]) -> None:
        """The pages with these hashes, from the first of a prompt on, are known as far as they are
        in `page_of`; those that were not told are.
        """
        start = len(hashes)
        while start and hashes[start - 1] not in self._serial_of:
            start -= 1
        for i in range(start, len(hashes)):
            if hashes[i] in page_of:
                self._tell(request, hashes, i)

    def _tell(self, request: Request, hashes: list[bytes], i: int) -> None:
        prompt, size = request.prompt, self._page_size
        window = array("I", prompt[max(0, (i - 1) * size + 1) : (i + 1) * size]).tobytes()
        self._num_told += 1
        page = Cached(
            self._num_told,
            request.tenant,
            hashes[i],
            hashes[i - 1] if i else None,
            i,
            prompt[0],
            window,
        )
        self._pages[page.serial] = page
        self._serial_of[page.hash] = page.serial
        self._events.append(page)

    def forgotten(self, hash_: bytes) -> None:
        """The page with this hash is not known any more."""
        serial = self._serial_of.pop(hash_, None)
        if serial is not None:
            page = self._pages.pop(serial)
            self._events.append(Dropped(page.tenant, hash_, page.place, page.first))

    def take(self) -> CacheBatch | None:
        """Returns what has happened since the last call, as the next batch; None if nothing has."""
        if not self._events:
            return None
        self._number, self._num_taken = self._number + 1, self._num_told
        batch = CacheBatch(self._number, tuple(self._events))
        self._events.clear()
        self._past.append(batch)
        self._num_kept += len(batch.events)
        while self._num_kept > MOST_KEPT:
            self._num_kept -= len(self._past.popleft().events)
        return batch

    def state(self, after: int) -> CacheState:
        """Returns where a watcher begins that has had all batches up to the number `after`. What
        has not been taken yet belongs to a batch to come.
        """
        numbers = [batch.number for batch in self._past]
        if after == self._number or (numbers and numbers[0] - 1 <= after < self._number):
            missed = tuple(self._past)[bisect_right(numbers, after) :]
            return CacheState(self._number, missed)
        until = self._num_taken
        num_pages = self._pages.bisect_right(until)
        return CacheState(self._number, None, until, num_pages, self._is_whole)

    def part(self, after: int, until: int) -> tuple[Cached, ...]:
        """Returns the pages that are still known of those with a serial above `after` and at most
        `until`: the first PART of them.
        """
        found = []
        for serial in self._pages.irange(after + 1, until):
            found.append(self._pages[serial])
            if len(found) == PART:
                break
        return tuple(found)

    def check(self, page_of: dict[bytes, int]) -> None:
        """Asserts that all that is told to be known is."""
        assert {page.hash: serial for serial, page in self._pages.items()} == self._serial_of
        assert self._serial_of.keys() <= page_of.keys()
        assert self._num_kept == sum(len(batch.events) for batch in self._past) <= MOST_KEPT
