"""How much may be in hand at once, in all and by one tenant, of what no ledger counts.

A quota is synchronous, and each process has its own. A tenant may hold half of the whole, and the
tenants that the operator has not named three quarters together, so that nobody finds all of it
taken by another tenant, or by one that goes by many names.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from server import errors

Item = TypeVar("Item")


class Caller(NamedTuple):
    """A tenant and the name of its share, "" for all tenants that the operator has not named."""

    share: str
    tenant: str


class Quota:
    """A limit of `most` on something. `what` names that with its unit, for error messages. However
    small the limit, a tenant may hold at least `least`.
    """

    def __init__(self, what: str, most: int, least: int = 1) -> None:
        self._what = what
        self._most = max(most, least)
        self._of_tenant = max(most // 2, least)
        self._of_share = max(most * 3 // 4, least)
        self._by_tenant: Counter[str] = Counter()
        self._by_share: Counter[str] = Counter()
        self.total = 0

    @contextmanager
    def hold(self, caller: Caller, amount: int) -> Iterator[None]:
        """Holds so much for the length of the block. Raises Refused where there is no room."""
        if (
            self.total + amount > self._most
            or self._by_tenant[caller.tenant] + amount > self._of_tenant
            or self._by_share[caller.share] + amount > self._of_share
        ):
            raise errors.too_much(self._what, self._of_tenant)
        self._add(caller, amount)
        try:
            yield
        finally:
            self._add(caller, -amount)

    def _add(self, caller: Caller, amount: int) -> None:
        self.total += amount
        for held, name in ((self._by_tenant, caller.tenant), (self._by_share, caller.share)):
            held[name] += amount
            if not held[name]:
                del held[name]


class Turns(Generic[Item]):
    """A queue that is fair: items are taken from one share after the other, within a share from one
    tenant after the other, and of one tenant in the order in which they came.
    """

    def __init__(self) -> None:
        # Who is next comes first.
        self._waiting: OrderedDict[str, OrderedDict[str, deque[Item]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, caller: Caller, item: Item) -> None:
        """Adds an item as the last of its tenant."""
        self._of(caller).append(item)

    def put_back(self, caller: Caller, item: Item) -> None:
        """Adds an item as the next of all."""
        self._of(caller).appendleft(item)
        self._waiting.move_to_end(caller.share, last=False)
        self._waiting[caller.share].move_to_end(caller.tenant, last=False)

    def take(self) -> Item:
        """Takes the next item out. Raises KeyError where nothing waits."""
        share, tenants = self._waiting.popitem(last=False)
        tenant, items = tenants.popitem(last=False)
        item = items.popleft()
        if items:
            tenants[tenant] = items
        if tenants:
            self._waiting[share] = tenants
        return item

    def drop(self, caller: Caller, item: Item) -> None:
        """Removes an item that nobody waits for any more, if it has not been taken."""
        tenants = self._waiting.get(caller.share)
        items = None if tenants is None else tenants.get(caller.tenant)
        if tenants is None or items is None or item not in items:
            return
        items.remove(item)
        if not items:
            del tenants[caller.tenant]
        if not tenants:
            del self._waiting[caller.share]

    def _of(self, caller: Caller) -> deque[Item]:
        tenants = self._waiting.setdefault(caller.share, OrderedDict())
        return tenants.setdefault(caller.tenant, deque())
