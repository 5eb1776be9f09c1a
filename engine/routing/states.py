"""What a decision looks at: the request, and of each replica what it has told and was sent since.

Durations and instants are in seconds, the latter on the router's clock. Work is in seconds of the
time of the replica's engine, as predicted: a slow device has more of it for the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.deciding.request import Importance, Targets

STALE_S = 3.0  # what a replica told is worth nothing once it is older


class Asked(NamedTuple):
    """A request, as far as it is known where it is routed.

    Each of `prefixes` stands for one more beginning of the prompt, the shortest first, `prefix_len`
    tokens longer than the one before (`prefixes.py` makes them).
    """

    tier: str  # "" where it states targets of its own
    targets: Targets
    importance: Importance
    prompt_len: int
    output_len: float  # that is expected
    prefixes: tuple[bytes, ...] = ()
    prefix_len: int = 0

    @property
    def target_s(self) -> float:
        """Returns the time until its first token, or with a TTLT its last one, is due; inf where
        nothing is.
        """
        return self.targets.target_s


class TierTold(NamedTuple):
    """What a replica told of one tier, and what a typical request of it would have to expect:
    `headroom_s` is the work that could come before it and it would be called on time still (None
    where that is not known), `ahead_s` the work that is served before it now. What waits does not
    include what was relegated.
    """

    target_s: float  # inf: best effort
    headroom_s: float | None = None
    waiting_s: float = 0.0
    running_s: float = 0.0
    typical_len: int = 0  # tokens of a typical prompt
    ahead_s: float = 0.0


class Told(NamedTuple):
    """What a replica told of itself at one instant."""

    at: float
    tiers: Mapping[str, TierTold]  # by name, "": of requests with targets of their own
    backlog_s: float = 0.0  # of relegated and best-effort requests
    prefill_s: float = 0.0  # work that a token of a prompt is
    decode_s: float = 0.0  # work that a token of an output is
    slowdown: float = 1.0  # time that passes for each second of work
    demand: float = 0.0  # work that arrives in a second, of late
    # For who balances by tokens. What waits is without what should repel nobody (`told.py`).
    num_waiting: int = 0
    num_backlog: int = 0  # all else that waits
    waiting_tokens: int = 0  # to prefill, like the next
    backlog_tokens: int = 0
    kv_usage: float = 0.0  # how full its memory is for a stream that comes, in [0, 1]
    kv_held: float = 0.0  # how full it is, whoever would give up some


class Replica(NamedTuple):
    """A replica as a router sees it when a request comes. `told` is None before it has told
    anything.
    """

    told: Told | None = None
    # Work that was sent there since, by `target_s` of the requests, and their uncached tokens.
    sent_s: Mapping[float, float] = {}
    sent_tokens: int = 0
    num_in_flight: int = 0  # that this router has sent there
    in_flight: Mapping[float, int] = {}  # of these, as far as is known: by `target_s`
    cached_len: int = 0  # tokens of this request's prompt that it holds already, as far as is known
    known_len: int = 0  # tokens of all prefixes that it is known to hold

    def is_known(self, now: float) -> bool:
        """Says whether what it told is worth anything."""
        return self.told is not None and now - self.told.at < STALE_S


class Moment(NamedTuple):
    """When a decision is taken, the how manieth of its router it is, and a number in [0, 1) that
    chance has drawn for it.
    """

    now: float
    turn: int = 0
    draw: float = 0.0
