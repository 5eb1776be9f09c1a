"""What is known of each site, within bounds: nobody's calls cost another tenant what is known of
its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from engine.inferring.calls import CallSite

T = TypeVar("T")


class Sites(Generic[T]):
    """A value for each of at most `most` sites.

    Each share of the engine has room for as many sites as any other. Where there are too many, the
    site is forgotten that has been used last the longest time ago, of the share whose site is new
    where that has more than its part, and else of the share with the most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._num = 0
        self._shares: dict[str, OrderedDict[CallSite, T]] = {}

    def __len__(self) -> int:
        return self._num

    def use(self, site: CallSite) -> T | None:
        """Returns the value of a site, whose last use this is; None where there is none."""
        own = self._shares.get(site.share)
        if own is None or site not in own:
            return None
        own.move_to_end(site)
        return own[site]

    def look(self, site: CallSite) -> T | None:
        """Returns the value of a site, without its being used; None where there is none."""
        own = self._shares.get(site.share)
        return None if own is None else own.get(site)

    def add(self, site: CallSite, value: T) -> CallSite | None:
        """Adds a site that has no value yet; returns the one that is forgotten for it, if any."""
        own = self._shares.setdefault(site.share, OrderedDict())
        own[site] = value
        self._num += 1
        return self._forget(site.share) if self._num > self._most else None

    def items(self) -> Iterator[tuple[CallSite, T]]:
        """Yields all sites and their values."""
        for own in self._shares.values():
            yield from own.items()

    def _forget(self, share: str) -> CallSite:
        """Forgets a site, and returns which; never the newest of that share, unless `most` is 0."""
        own = self._shares[share]
        if len(own) < 2 or len(own) * len(self._shares) <= self._most:
            share, own = max(self._shares.items(), key=lambda each: len(each[1]))
        site, _ = own.popitem(last=False)
        self._num -= 1
        if not own:
            del self._shares[share]
        return site
