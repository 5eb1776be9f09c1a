"""The calls that are not over: which there are, what they hold, and who is told to go.

One ledger is right for all front ends of an engine. Where there is one front end it keeps the
ledger itself (`OwnLedger`); where there are several, who supervises them does, and they ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from server.admission.admission import Admission, gave_place
from server.admission.places import CallKey, Entry
from server.errors import Refused

Displace = Callable[[Refused], None]  # told once, of a call that is to end with it


class Ledger:
    """Who is admitted, and how each is told when it is displaced. Synchronous; the instant is an
    argument.
    """

    def __init__(self, max_requests: int, max_queued_tokens: int) -> None:
        self.admission = Admission(max_requests, max_queued_tokens)
        self._displace: dict[CallKey, Displace] = {}

    def admit(self, entry: Entry, displace: Displace, now: float) -> None:
        """Raises Refused or DuplicateRequest, and then nothing is entered and nobody displaced."""
        displaced = self.admission.admit(entry, now)
        self._displace[entry.key] = displace
        for each in displaced:
            self._displace[each.key](gave_place(each))

    def resize(self, key: CallKey, tokens: int) -> None:
        self.admission.resize(key, tokens)

    def start(self, key: CallKey) -> None:
        self.admission.start(key)

    def leave(self, key: CallKey) -> None:
        self.admission.leave(key)
        del self._displace[key]


class FrontEndCalls:
    """What one of several front ends has in the ledger: it is over when that front end is gone."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.keys: set[CallKey] = set()

    def admit(self, entry: Entry, displace: Displace, now: float) -> None:
        """As `Ledger.admit`."""
        self._ledger.admit(entry, displace, now)
        self.keys.add(entry.key)

    def refusal(self, entry: Entry, now: float) -> Refused | None:
        return self._ledger.admission.refusal(entry, now)

    def resize(self, key: CallKey, tokens: int) -> None:
        self._ledger.resize(key, tokens)

    def start(self, key: CallKey) -> None:
        self._ledger.start(key)

    def leave(self, key: CallKey) -> None:
        self._ledger.leave(key)
        self.keys.discard(key)

    def release(self) -> None:
        """All of them."""
        for key in list(self.keys):
            self.leave(key)


class Entries(Protocol):
    """The ledger as a front end sees it, in this process or in another."""

    async def enter(self, entry: Entry, displace: Displace) -> None:
        """Raises Refused or DuplicateRequest, and then nothing is entered. `displace` is called at
        most once, while the call has not started and not left.
        """

    async def refusal(self, entry: Entry) -> Refused | None:
        """Why such a call would be refused now, if it would."""

    def resize(self, key: CallKey, tokens: int) -> None:
        """The call's tokens of work are known exactly."""

    def start(self, key: CallKey) -> None:
        """Something of the call is about to be streamed: it is not displaced any more."""

    def leave(self, key: CallKey) -> None:
        """The call is over, whoever has ended it."""


class OwnLedger(Ledger):
    """Of the only front end: nothing waits."""

    async def enter(self, entry: Entry, displace: Displace) -> None:
        self.admit(entry, displace, time.monotonic())

    async def refusal(self, entry: Entry) -> Refused | None:
        return self.admission.refusal(entry, time.monotonic())
