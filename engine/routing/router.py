"""A router: what it remembers between decisions. The package says how it is used."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from engine.routing import qos, rivals
from engine.routing.prefixes import KnownPrefixes
from engine.routing.rivals import Ranking
from engine.routing.states import STALE_S, Asked, Moment, Replica, Told

ROUTINGS: Final[Mapping[str, Ranking]] = {
    "qos": qos.ranked,
    "round-robin": rivals.round_robin,
    "least-requests": rivals.least_requests,
    "least-load": rivals.least_load,
    "least-tokens": rivals.least_tokens,
    "power-of-two": rivals.power_of_two,
    "cache-aware": rivals.cache_aware,
}
ROUTING: Final = "least-requests"  # where nothing is said
DEAF: Final = frozenset({"round-robin", "least-requests", "cache-aware"})  # hear nothing told


@dataclass(slots=True)
class _Known:
    """What is known of one replica."""

    told: Told | None = None
    sent: deque[tuple[float, float, float, int]] = field(default_factory=deque)  # see Router.sent
    sent_s: dict[float, float] = field(default_factory=dict)  # their work, by `target_s`
    num_sent: Counter[float] = field(default_factory=Counter)  # likewise
    sent_tokens: int = 0
    num_calls: int = 0  # that are in flight
    in_flight: Counter[float] = field(default_factory=Counter)  # by `target_s`, of those with ids
    calls: dict[str, float] = field(default_factory=dict)  # their `target_s`, by their ids
    prefixes: KnownPrefixes = field(default_factory=KnownPrefixes)

    def forget_before(self, at: float) -> None:
        """What was sent until then is in what the replica told."""
        while self.sent and self.sent[0][0] <= at:
            _, target_s, work_s, tokens = self.sent.popleft()
            self.sent_tokens -= tokens
            self.sent_s[target_s] -= work_s
            if not _less(self.num_sent, target_s):  # no rounding error is kept
                del self.sent_s[target_s]


class Router:
    """Ranks replicas, which are known by their names, for one request after the other.

    The same calls in the same order give the same choices, with the same `seed`. Raises KeyError
    for a routing that is not among ROUTINGS.
    """

    def __init__(self, routing: str = "qos", seed: int = 0) -> None:
        self._rank = ROUTINGS[routing]
        self.listens = routing not in DEAF  # whether it makes a difference what replicas tell
        self._seed = seed
        self._turn = 0
        self._known: dict[str, _Known] = {}

    def told(self, name: str, told: Told) -> None:
        """A replica has told its load. What comes out of order is ignored."""
        known = self._of(name)
        if known.told is None or told.at >= known.told.at:
            known.told = told
            known.forget_before(told.at)

    def ranked(self, asked: Asked, names: Sequence[str], now: float) -> list[str]:
        """Returns the names of the replicas that are available, the best for the request first."""
        moment = Moment(now, self._turn, _draw(self._seed, self._turn))
        self._turn += 1
        replicas = [self._replica(self._of(name), asked) for name in names]
        return [names[i] for i in self._rank(asked, replicas, moment)]

    def sent(self, name: str, asked: Asked, now: float, call: str = "") -> None:
        """The request is on its way to that replica. `call` is an id of its own, by which it is
        known, when it ends, how urgent it was; without one it counts as urgent as any.
        """
        known = self._of(name)
        known.forget_before(now - STALE_S)  # of a replica that tells nothing
        tokens = asked.prompt_len - self._cached_len(known, asked)
        work_s = 0.0
        if known.told is not None:
            work_s = tokens * known.told.prefill_s + asked.output_len * known.told.decode_s
        known.sent.append((now, asked.target_s, work_s, tokens))
        known.sent_s[asked.target_s] = known.sent_s.get(asked.target_s, 0.0) + work_s
        known.num_sent[asked.target_s] += 1
        known.sent_tokens += tokens
        known.num_calls += 1
        if call:
            known.calls[call] = asked.target_s
            known.in_flight[asked.target_s] += 1
        known.prefixes.add(asked.prefixes)

    def ended(self, name: str, call: str = "") -> None:
        """A request that was sent there has ended. Nothing is noted of a replica that was lost, nor
        of a call that was not sent to who is there now.
        """
        known = self._known.get(name)
        if known is None or not known.num_calls or (call and call not in known.calls):
            return
        known.num_calls -= 1
        if call:
            _less(known.in_flight, known.calls.pop(call))

    def lost(self, name: str) -> None:
        """The replica is gone, with all that it held; one of that name that comes later is new."""
        self._known.pop(name, None)

    def _of(self, name: str) -> _Known:
        return self._known.setdefault(name, _Known())

    def _replica(self, known: _Known, asked: Asked) -> Replica:
        return Replica(
            known.told,
            known.sent_s,
            known.sent_tokens,
            known.num_calls,
            known.in_flight,
            self._cached_len(known, asked),
            len(known.prefixes) * asked.prefix_len,
        )

    @staticmethod
    def _cached_len(known: _Known, asked: Asked) -> int:
        """Returns the tokens of the prompt that the replica holds; the last one is computed."""
        held = known.prefixes.count(asked.prefixes) * asked.prefix_len
        return min(held, max(0, asked.prompt_len - 1))


def _less(counts: Counter[float], target_s: float) -> int:
    """Counts one less of a target, and returns how many are left. Of none nothing is kept: callers
    may state as many targets as there are numbers.
    """
    counts[target_s] -= 1
    return counts[target_s] or counts.pop(target_s)


def _draw(seed: int, turn: int) -> float:
    """Returns a number in [0, 1) by chance, the same for the same arguments."""
    digest = blake2b(f"{seed}/{turn}".encode(), digest_size=6).digest()
    return int.from_bytes(digest) / 256**6
