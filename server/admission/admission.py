"""Who may wait when many want to, by importance, work and share, and who gives its place to whom.

Two things are limited: requests that wait or run, and tokens of work that waits. A call that finds
no room takes the place of calls that wait, of which nothing has been streamed yet. These are only
less important ones: first the least important; among those first the ones of shares that hold more
than their part; among those the largest first, then the latest. Where there are not enough of them,
the call is refused. The last of the room is kept for the more important (places.py), so that calls
which have begun, and are not displaced, cannot keep them out. A displaced call can displace nobody
who took its place, so none go to and fro.

A share belongs to each tenant whom the operator has named, and one to all others together
(engine/tiers.py). While more than half of a limited thing is used, an active share may hold its
part of it, by weight; beyond that, its calls displace only its own. A share within its part may
also take the place of an equally important call of a share beyond its part. A share is active while
it holds something, for a moment after each of its calls, and until it has been told to come back
(returns.py): a tenant that found the queue full of another's requests, or was served in no time,
finds room at its next try.
A weight that the operator has changed holds from the share's next call on, for all that the share
has in the queue.

What the operator allows a share at once it may never exceed, however empty the queue is: beyond
that, too, its calls displace only its own.

A call counts until it is over, a displaced one until it is displaced; but of those that are
displaced and not over yet there are never more than `max_requests`. The decisions are synchronous
and take the instant as an argument. One costs O(log n) in the number of calls and O(s) in the
number of shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from engine.deciding.request import Importance, Share
from engine.linking.errors import DuplicateRequest
from server import errors
from server.admission.places import NOTHING, CallKey, Entry, Line, Place, Pool, State, Use, sum_of
from server.admission.returns import Returns
from server.errors import Refusal, Refused

# How long a share is active after a call; after one that is to come back, so much longer.
REMEMBERED_S = 2.0 * errors.RETRY_AFTER_S


NO_LIMITS: Mapping[str, Use] = {}


class Admission:
    """The queue's places, and the decisions of the module's rules. Instants and durations are in
    seconds.
    """

    def __init__(self, max_requests: int, max_queued_tokens: int) -> None:
        self.requests = Pool(max_requests)
        self.tokens = Pool(max_queued_tokens)
        self.of_shares: Mapping[str, Use] = NO_LIMITS
        self._places: dict[CallKey, Place] = {}
        self._lines: dict[Importance, dict[str, Line]] = {each: {} for each in Importance}
        self._shares: dict[str, Share] = {}  # by name, as they were last told
        self._num_entered = 0
        self._num_displaced = 0  # and not over yet
        self._most_displaced = max_requests  # of them: more only where the limit was higher then
        self._active_until: dict[str, float] = {}  # by the name of a share that has called
        self._returns = Returns()

    def __len__(self) -> int:
        """Returns the number of calls that are not over."""
        return len(self._places)

    def admit(self, entry: Entry, now: float) -> list[Entry]:
        """Enters a call; returns the calls that give their place to it, which the caller is to
        tell.

        Raises Refused or DuplicateRequest, and then nothing has changed but that its share called.
        """
        self._returns.look(now)
        until = now + REMEMBERED_S
        try:
            victims = self._victims(entry, now)
        except Refused as refused:
            until += (1 + errors.SPREAD) * refused.retry_after_s
            raise
        finally:
            known = self._active_until.get(entry.share.name, 0.0)
            self._active_until[entry.share.name] = max(until, known)
        for victim in victims:
            self._displace(victim)
        self._num_entered += 1
        place = self._places[entry.key] = Place(entry, self._num_entered)
        self._line(place).add(place)
        self._account(place, 1)
        return [victim.entry for victim in victims]

    def limit(
        self, max_requests: int, max_queued_tokens: int, of_shares: Mapping[str, Use] = NO_LIMITS
    ) -> None:
        """Sets other limits, `of_shares` those of single ones by name, where 0 is none. Who has
        entered stays, though it be more than that.
        """
        self.requests.limit, self.tokens.limit = max_requests, max_queued_tokens
        self.of_shares = of_shares
        self._most_displaced = max(max_requests, self._num_displaced)

    def refusal(self, entry: Entry, now: float) -> Refused | None:
        """Returns why such a call would be refused now; None where it would be admitted. To ask
        does not make a share active.
        """
        try:
            self._victims(entry, now, is_told=False)
        except Refused as refused:
            return refused
        return None

    def displaced(self, entry: Entry, now: float) -> Refused:
        """Returns the error that a call ends with which has given its place to another."""
        return Refused(
            Refusal.DISPLACED,
            f"gave its place to more important work: {_told(entry)}",
            self._return_s(entry, Use(entry.n, entry.tokens), now),
            _about(entry),
        )

    def resize(self, key: CallKey, tokens: int) -> None:
        """Takes the exact work of a call, in place of the estimate by which it entered."""
        place = self._places[key]
        if place.state is State.WAITING:
            self._line(place).remove(place)
            self._account(place, -1)
        place.entry = place.entry._replace(tokens=tokens)
        if place.state is State.WAITING:
            self._line(place).add(place)
            self._account(place, 1)

    def start(self, key: CallKey) -> None:
        """Notes that something of the call is about to be streamed, so that it cannot be displaced
        any more. A call that has been displaced, while its front end has not heard of that yet,
        gets its place back.
        """
        place = self._places[key]
        self._account(place, -1)
        if place.state is State.WAITING:
            self._leave_line(place)
            self._returns.freed(Use(0, place.entry.tokens))
        elif place.state is State.DISPLACED:
            self._num_displaced -= 1
        place.state = State.STARTED
        self._account(place, 1)

    def leave(self, key: CallKey) -> None:
        """Gives the place of a call back: the call is over."""
        place = self._places.pop(key)
        self._account(place, -1)
        self._returns.freed(place.use)
        if place.state is State.WAITING:
            self._leave_line(place)
        elif place.state is State.DISPLACED:
            self._num_displaced -= 1

    # Who gives way

    def _victims(self, entry: Entry, now: float, is_told: bool = True) -> list[Place]:
        """Returns the places that would have to go for such a call. None goes here. Raises Refused
        or DuplicateRequest.
        """
        refuse = partial(self._refuse, entry, now=now, is_told=is_told)
        self._forget(now)
        self._shares[entry.share.name] = entry.share
        if entry.key in self._places:
            raise DuplicateRequest(entry.request_id)
        active = self._active(entry.share)
        beyond, short = self._beyond(entry.share, active, entry), self._missing(entry)
        over = self._over(entry)
        own = beyond.or_more(over)
        lower = [each for each in Importance if each < entry.importance]
        ranks = [self._offers(each, active) for each in lower]
        name = entry.share.name
        of_own = [[offer for offer in rank if offer.share == name] for rank in ranks]
        victims = _take(of_own, own)
        if victims is None:
            raise refuse(Refusal.SHARE_USED if over == NOTHING else Refusal.TENANT_LIMIT, own)
        if beyond == NOTHING:  # within its part
            ranks.append(self._offers_of_those_beyond(entry.importance, active))
        short = short.less(sum_of(victims))
        others = _take(ranks, short)
        if others is None or entry.n > self.requests.limit:
            is_work = entry.n <= self.requests.limit and not short.requests
            raise refuse(Refusal.WORK_FULL if is_work else Refusal.QUEUE_FULL, short)
        victims += others
        if victims and self._num_displaced + len(victims) > self.requests.limit:
            raise refuse(Refusal.QUEUE_FULL, Use(entry.n, 0))
        return victims

    def _missing(self, entry: Entry) -> Use:
        """Returns how much has to go before such a call finds room."""
        return Use(
            self.requests.missing(entry.n, entry.importance),
            self.tokens.missing(entry.tokens, entry.importance),
        )

    def _over(self, entry: Entry) -> Use:
        """Returns how much the call's share would hold beyond what the operator allows it. Work is
        allowed for one call, whatever its size.
        """
        limit, name = self.of_shares.get(entry.share.name, NOTHING), entry.share.name
        requests = self.requests.held[name] + entry.n - limit.requests if limit.requests else 0
        waiting = self.tokens.held[name]
        tokens = waiting + entry.tokens - limit.tokens if limit.tokens and waiting else 0
        return Use(max(0, requests), max(0, tokens))

    def _active(self, caller: Share) -> float:
        """Returns the weight of all shares together among which the whole is divided now."""
        names = {caller.name, *self.requests.held, *self._active_until}
        return sum(self._shares[name].weight for name in names)

    def _beyond(self, share: Share, active: float, entry: Entry | None = None) -> Use:
        """Returns how much the share holds beyond its part, or would hold if it had the call as
        well.
        """
        n, tokens = (0, 0) if entry is None else (entry.n, entry.tokens)
        return Use(
            self.requests.beyond(share, active, n), self.tokens.beyond(share, active, tokens)
        )

    def _offers(self, importance: Importance, active: float) -> list[Offer]:
        """Returns what the shares' waiting calls of that importance can give."""
        return [
            Offer(name, line, line.use, self._beyond(self._shares[name], active) != NOTHING)
            for name, line in self._lines[importance].items()
        ]

    def _offers_of_those_beyond(self, importance: Importance, active: float) -> list[Offer]:
        """Returns what the shares' waiting calls of that importance can give, of each share no more
        than it has beyond its part.
        """
        offers = []
        for name, line in self._lines[importance].items():
            beyond, use = self._beyond(self._shares[name], active), line.use
            most = Use(min(beyond.requests, use.requests), min(beyond.tokens, use.tokens))
            if most != NOTHING:
                offers.append(Offer(name, line, most, True))
        return offers

    def _displace(self, place: Place) -> None:
        self._account(place, -1)
        self._leave_line(place)
        place.state = State.DISPLACED
        self._num_displaced += 1

    def _refuse(
        self, entry: Entry, reason: Refusal, missing: Use, now: float, is_told: bool
    ) -> Refused:
        """Returns the error of a call for which so much is missing."""
        why, limits = self._why(entry, reason)
        retry_s = self._return_s(entry, missing, now, is_told)
        message = f"{why}; refused is {_told(entry)}"
        return Refused(reason, message, retry_s, _about(entry) | limits)

    def _return_s(self, entry: Entry, missing: Use, now: float, is_told: bool = True) -> float:
        """Returns when a call for which so much is missing is to come back."""
        line, own = (entry.share.name, entry.importance), Use(entry.n, entry.tokens)
        part = entry.share.weight / self._active(entry.share)
        return self._returns.delay_s(line, missing, own, part, now, is_told)

    def _why(self, entry: Entry, reason: Refusal) -> tuple[str, dict[str, str]]:
        """Returns why, and the limits that were met by name."""
        if reason is Refusal.SHARE_USED:
            active = self._active(entry.share)
            requests = self.requests.part(entry.share, active)
            tokens = self.tokens.part(entry.share, active)
            why = (
                f"the tenant's share of the queue is used: {requests} requests or {tokens} tokens"
                " of waiting work, while more than half of the queue is"
            )
            return why, {"share_requests": str(requests), "share_tokens": str(tokens)}
        if reason is Refusal.TENANT_LIMIT:
            limit = self.of_shares[entry.share.name]
            told = {"requests": limit.requests, "tokens of waiting work": limit.tokens}
            most = " and ".join(f"{amount} {what}" for what, amount in told.items() if amount)
            limits = {"tenant_requests": limit.requests, "tenant_tokens": limit.tokens}
            about = {name: str(amount) for name, amount in limits.items() if amount}
            return f"the tenant has as much as it may have at once: {most}", about
        if reason is Refusal.WORK_FULL:
            why = f"the queue is full: {self.tokens.total} tokens of work are waiting"
            return why, {"max_queued_tokens": str(self.tokens.limit)}
        why = f"the queue is full: {self.requests.total} requests are waiting or running"
        return why, {"max_requests": str(self.requests.limit)}

    def _forget(self, now: float) -> None:
        """Ends the activity of shares that called too long ago."""
        for name in [name for name, until in self._active_until.items() if until < now]:
            del self._active_until[name]

    # The books

    def _account(self, place: Place, sign: int) -> None:
        """Adds what the place uses (sign 1), or takes it away (-1)."""
        use = place.use
        self.requests.add(place.entry, sign * use.requests)
        self.tokens.add(place.entry, sign * use.tokens)

    def _line(self, place: Place) -> Line:
        return self._lines[place.entry.importance].setdefault(place.entry.share.name, Line())

    def _leave_line(self, place: Place) -> None:
        line = self._line(place)
        line.remove(place)
        if not line.places:
            del self._lines[place.entry.importance][place.entry.share.name]

    def check(self) -> None:
        """Asserts what holds between any two calls of the methods."""
        places = self._places.values()
        for pool, index in ((self.requests, 0), (self.tokens, 1)):
            assert pool.total == sum(place.use[index] for place in places)
            assert sum(pool.held.values()) == sum(pool.by_importance.values()) == pool.total
            assert all(amount >= 0 for amount in pool.held.values())
        waiting = {place for place in places if place.state is State.WAITING}
        lines = [line for lines in self._lines.values() for line in lines.values()]
        assert {place for line in lines for place in line.places} == waiting
        assert all(line.places and line.use == sum_of(line.places) for line in lines)
        displaced = [place for place in places if place.state is State.DISPLACED]
        assert len(displaced) == self._num_displaced <= self._most_displaced


class Offer:
    """The places that a share's waiting calls of one importance can give: `most` in all, and the
    largest and latest first. `is_beyond` says that the share holds more than its part.
    """

    def __init__(self, share: str, line: Line, most: Use, is_beyond: bool) -> None:
        self.share = share
        self.left = most
        self._is_beyond = is_beyond
        self._places: Iterator[Place] = reversed(line.places)
        self._first: Place | None = next(self._places, None)

    def serves(self, need: Use) -> bool:
        """Returns whether it has anything left of what is needed."""
        of_use = (need.requests and self.left.requests) or (need.tokens and self.left.tokens)
        return self._first is not None and of_use > 0

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Returns the rank of its next place among those of other offers: the highest goes
        first.
        """
        assert self._first is not None
        return self._is_beyond, self._first.entry.tokens, self._first.number

    def take(self) -> Place:
        """Returns its next place, which is then no longer offered."""
        place = self._first
        assert place is not None
        self._first = next(self._places, None)
        self.left = self.left.less(place.use)
        return place


def _take(ranks: Iterable[list[Offer]], need: Use) -> list[Place] | None:
    """Returns places that together free what is needed, those of the first rank first. None where
    all that is offered is not enough.
    """
    ranks = list(ranks)
    offered = [offer.left for rank in ranks for offer in rank]
    if sum(u.requests for u in offered) < need.requests:
        return None
    if sum(u.tokens for u in offered) < need.tokens:
        return None
    taken = []
    for rank in ranks:
        while useful := [offer for offer in rank if offer.serves(need)]:
            place = max(useful, key=lambda offer: offer.rank).take()
            taken.append(place)
            need = need.less(place.use)
    return taken


def _told(entry: Entry) -> str:
    tenant = f" of tenant {entry.tenant!r}" if entry.tenant else ""
    tier = f"tier {entry.tier!r}" if entry.tier else "targets of its own"
    return f"a call{tenant} with {tier} and importance {entry.importance.name.lower()}"


def _about(entry: Entry) -> dict[str, str]:
    about = {"tier": entry.tier, "importance": entry.importance.name.lower()}
    return about | ({"tenant": entry.tenant} if entry.tenant else {})
