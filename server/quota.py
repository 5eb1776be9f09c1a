"""How much may be in hand at once, in all and by one tenant: for what no ledger counts.

Synchronous, and of one process. A tenant may hold half of the whole, so that nobody finds all of it
taken by another.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from server import errors

Item = TypeVar("Item")


class Quota:
    """`what` is limited, with its unit, in words. `least` fits in any case, for a tenant too."""

    def __init__(self, what: str, most: int, least: int = 1) -> None:
        self._what = what
        self._most = max(most, least)
        self._share = max(most // 2, least)
        self._held: Counter[str] = Counter()  # by tenant
        self.total = 0

    @contextmanager
    def hold(self, tenant: str, amount: int) -> Iterator[None]:
        """Holds so much for the length of the block. Raises CallError, RESOURCE_EXHAUSTED."""
        if self.total + amount > self._most or self._held[tenant] + amount > self._share:
            if not self._held[tenant]:
                del self._held[tenant]
            raise errors.too_much(self._what, self._share)
        self.total += amount
        self._held[tenant] += amount
        try:
            yield
        finally:
            self.total -= amount
            self._held[tenant] -= amount
            if not self._held[tenant]:
                del self._held[tenant]


class Turns(Generic[Item]):
    """What waits, taken from one tenant after the other; of one tenant in the order it came."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Item]] = OrderedDict()  # who is next comes first

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, tenant: str, item: Item) -> None:
        self._waiting.setdefault(tenant, deque()).append(item)

    def put_back(self, tenant: str, item: Item) -> None:
        """As the next of all."""
        self._waiting.setdefault(tenant, deque()).appendleft(item)
        self._waiting.move_to_end(tenant, last=False)

    def take(self) -> Item:
        """The next. Raises KeyError where nothing waits."""
        tenant, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[tenant] = items
        return item

    def drop(self, tenant: str, item: Item) -> None:
        """What is not waited for any more; it may have been taken."""
        items = self._waiting.get(tenant)
        if items is not None and item in items:
            items.remove(item)
            if not items:
                del self._waiting[tenant]
