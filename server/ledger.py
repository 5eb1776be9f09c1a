"""What the calls in flight hold: their ids, and each tenant's requests.

One ledger is right for all front ends of an engine. Where there is one front end it keeps the
ledger itself (`OwnLedger`); where there are several, who supervises them does, and they ask.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Protocol

from engine.driving.streams import DuplicateRequest
from server.admission import Admission


class Ledger:
    """Synchronous; the instant is an argument."""

    def __init__(self, max_requests: int) -> None:
        self._admission = Admission(max_requests)
        self._in_flight: Counter[str] = Counter()  # by tenant
        self._ids: set[str] = set()

    def admit(self, call_id: str, tenant: str, n: int, now: float) -> None:
        """Enters a call of `n` requests, or raises CallError or DuplicateRequest."""
        self._admission.check(tenant, n, self._in_flight, now)
        if call_id in self._ids:
            raise DuplicateRequest(call_id)
        self._ids.add(call_id)
        self._in_flight[tenant] += n

    def free(self, tenant: str, n: int = 1) -> None:
        """The engine has finished `n` requests, or was told to end them."""
        self._in_flight[tenant] -= n
        if not self._in_flight[tenant]:
            del self._in_flight[tenant]

    def leave(self, call_id: str) -> None:
        """The call is over."""
        self._ids.discard(call_id)


class Share:
    """What one of several front ends has in the ledger: it is freed when that front end is gone."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.held: Counter[str] = Counter()  # requests, by tenant
        self.call_ids: set[str] = set()

    def admit(self, call_id: str, tenant: str, n: int, now: float) -> None:
        """As `Ledger.admit`."""
        self._ledger.admit(call_id, tenant, n, now)
        self.held[tenant] += n
        self.call_ids.add(call_id)

    def free(self, tenant: str, n: int = 1) -> None:
        self._ledger.free(tenant, n)
        self.held[tenant] -= n
        if not self.held[tenant]:
            del self.held[tenant]

    def leave(self, call_id: str) -> None:
        self._ledger.leave(call_id)
        self.call_ids.discard(call_id)

    def release(self) -> None:
        """Frees all of it."""
        for tenant, n in list(self.held.items()):
            self.free(tenant, n)
        for call_id in list(self.call_ids):
            self.leave(call_id)


class Entries(Protocol):
    """The ledger as a front end sees it, in this process or in another."""

    async def enter(self, call_id: str, tenant: str, n: int) -> None:
        """Raises CallError or DuplicateRequest, and then nothing is entered."""

    def free(self, tenant: str, n: int = 1) -> None: ...

    def leave(self, call_id: str) -> None: ...


class OwnLedger(Ledger):
    """Of the only front end: `enter` does not wait."""

    async def enter(self, call_id: str, tenant: str, n: int) -> None:
        self.admit(call_id, tenant, n, time.monotonic())
