"""The calls that are not over: which there are, what they hold, and who is told to go.

One ledger is right for all front ends of an engine. Each front end asks it through a link, and what
it has in the ledger is kept at the link's other end: over a socket where that is another process,
by plain calls where it is the same (`linked`).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from engine.linking.errors import DuplicateRequest
from server.admission.admission import NO_LIMITS, Admission
from server.admission.places import CallKey, Entry, Use
from server.errors import Refused

Displace = Callable[[Refused], None]  # told once, of a call that is to end with it
Verdicts = asyncio.Future[Exception | None]


class Ledger:
    """Says who is admitted, and tells each that is displaced. Synchronous; the instant is an
    argument.
    """

    def __init__(self, max_requests: int, max_queued_tokens: int) -> None:
        self.admission = Admission(max_requests, max_queued_tokens)
        self._displace: dict[CallKey, Displace] = {}

    def admit(self, entry: Entry, displace: Displace, now: float) -> None:
        """Enters the call; `displace` will tell it when it is displaced. Raises Refused or
        DuplicateRequest, and then nothing is entered and nobody displaced.
        """
        displaced = self.admission.admit(entry, now)
        self._displace[entry.key] = displace
        for each in displaced:
            self._displace[each.key](self.admission.displaced(each, now))

    def limit(
        self, max_requests: int, max_queued_tokens: int, of_shares: Mapping[str, Use] = NO_LIMITS
    ) -> None:
        """Sets other limits, for the calls to come."""
        self.admission.limit(max_requests, max_queued_tokens, of_shares)

    def resize(self, key: CallKey, tokens: int) -> None:
        """Takes the call's tokens of work, now that they are known exactly."""
        self.admission.resize(key, tokens)

    def start(self, key: CallKey) -> None:
        """Keeps the call from being displaced: something of it is about to be streamed."""
        self.admission.start(key)

    def leave(self, key: CallKey) -> None:
        """Frees what the call holds: it is over."""
        self.admission.leave(key)
        del self._displace[key]


class Enter(NamedTuple):
    """A call asks to be entered in the ledger, or with `only_asks` whether it would be. A `Verdict`
    of the same number answers.
    """

    number: int
    entry: Entry
    only_asks: bool = False


class Resize(NamedTuple):
    """The tokens of work of a call are known exactly."""

    key: CallKey
    tokens: int


class Started(NamedTuple):
    """Something of a call is about to be streamed."""

    key: CallKey


class Leave(NamedTuple):
    """A call is over."""

    key: CallKey


class Verdict(NamedTuple):
    """`error` is None, or why the call was not entered: Refused or a DuplicateRequest."""

    number: int
    error: Exception | None


class Displaced(NamedTuple):
    """A call gave its place to another's and is to end so, unless it has started."""

    key: CallKey
    error: Refused


ToLedger = Enter | Resize | Started | Leave
FromLedger = Verdict | Displaced


class FrontEndCalls:
    """Holds what one front end has in the ledger, until that front end is gone (`release`). `post`
    takes what the front end is to be told.
    """

    def __init__(
        self,
        ledger: Ledger,
        post: Callable[[FromLedger], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._post = post
        self._clock = clock
        self.entries: dict[CallKey, Entry] = {}

    def receive(self, message: ToLedger) -> None:
        """Carries out what the front end says."""
        if isinstance(message, Enter):
            self._post(Verdict(message.number, self._judge(message)))
        elif isinstance(message, Resize):
            self._ledger.resize(message.key, message.tokens)
        elif isinstance(message, Started):
            self._ledger.start(message.key)
        else:
            self._leave(message.key)

    def release(self) -> list[Entry]:
        """Ends all of them, and returns which they were."""
        entries = list(self.entries.values())
        for entry in entries:
            self._leave(entry.key)
        return entries

    def _judge(self, asked: Enter) -> Exception | None:
        """Enters the call, or says why not. Raises nothing."""
        entry, now = asked.entry, self._clock()
        try:
            if asked.only_asks:
                return self._ledger.admission.refusal(entry, now)
            self._ledger.admit(entry, lambda error: self._post(Displaced(entry.key, error)), now)
        except (Refused, DuplicateRequest) as error:
            return error
        self.entries[entry.key] = entry
        return None

    def _leave(self, key: CallKey) -> None:
        self._ledger.leave(key)
        self.entries.pop(key, None)


class LedgerLink:
    """Links one front end to the ledger. `post` takes what the ledger is to be told; what it says
    is handed to `receive`.
    """

    def __init__(self, post: Callable[[ToLedger], None]) -> None:
        self._post = post
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[Entry, Displace | None, Verdicts]] = {}
        self._displace: dict[CallKey, Displace] = {}

    async def enter(self, entry: Entry, displace: Displace) -> None:
        """Enters the call. Raises Refused or DuplicateRequest, and then nothing is entered.
        `displace` is called at most once, while the call has not started and not left.
        """
        future = self._ask(entry, only_asks=False, displace=displace)
        try:
            error = await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda told: self._withdraw(entry, told.result()))
            raise
        if error is not None:
            raise error

    async def refusal(self, entry: Entry) -> Refused | None:
        """Returns why such a call would be refused now, if it would."""
        error = await self._ask(entry, only_asks=True)
        if error is None or isinstance(error, Refused):
            return error
        raise error

    def resize(self, key: CallKey, tokens: int) -> None:
        """Tells the call's tokens of work, now that they are known exactly."""
        self._post(Resize(key, tokens))

    def start(self, key: CallKey) -> None:
        """Tells that the call is about to stream something: it is not displaced any more."""
        self._displace.pop(key, None)
        self._post(Started(key))

    def leave(self, key: CallKey) -> None:
        """Tells that the call is over, whoever has ended it."""
        self._displace.pop(key, None)
        self._post(Leave(key))

    def receive(self, message: FromLedger) -> None:
        """Passes on what the ledger says."""
        if isinstance(message, Verdict):
            self._settle(message.number, message.error)
            return
        displace = self._displace.pop(message.key, None)
        if displace is not None:  # else the call has started in the meantime
            displace(message.error)

    def _settle(self, number: int, error: Exception | None) -> None:
        entry, displace, future = self._asked.pop(number)
        if error is None and displace is not None:
            self._displace[entry.key] = displace  # before the next message may say so
        if not future.done():  # whose question was cancelled is gone
            future.set_result(error)

    def _withdraw(self, entry: Entry, error: Exception | None) -> None:
        """Gives up the place of a call that did not wait for the answer."""
        if error is None:
            self.leave(entry.key)

    def _ask(self, entry: Entry, only_asks: bool, displace: Displace | None = None) -> Verdicts:
        number = next(self._numbers)
        future: Verdicts = asyncio.get_running_loop().create_future()
        self._asked[number] = entry, displace, future
        self._post(Enter(number, entry, only_asks))
        return future


def linked(ledger: Ledger) -> LedgerLink:
    """Returns a link to a ledger of the same process: every answer is there at once."""
    calls = FrontEndCalls(ledger, lambda message: link.receive(message))
    link = LedgerLink(calls.receive)
    return link
