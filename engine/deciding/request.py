"""What a caller asked: prompt, sampling, latency targets. Immutable once admitted.

Durations and instants are float seconds; an instant is read on the one monotonic clock that every
process of a machine shares. Lengths count tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, fields
from enum import Enum, IntEnum
from operator import attrgetter
from typing import NamedTuple


class TargetKind(Enum):
    """What a request asks for: a pace, an end, or nothing."""

    INTERACTIVE = "interactive"  # TTFT and TBT: token n is due at arrival + TTFT + (n - 1) * TBT
    DEADLINE = "deadline"  # TTLT: the last token is due at arrival + TTLT
    BEST_EFFORT = "best_effort"  # nothing is promised


class Importance(IntEnum):
    """How much a request matters: when not everybody can be on time, the lowest gives way first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


BEYOND = Importance.LOW - 1  # what a request counts as whose share has asked for more than its part


@dataclass(frozen=True, slots=True)
class Targets:
    """Latency targets of a request, in seconds: either ttft_s and tbt_s, or ttlt_s, or none.

    `max_gap` is the longest time between two tokens, in TBTs, if it is not to be the scheduler's;
    inf lets the deadlines of the tokens alone count.

    Raises ValueError, naming the field first, for any other combination or a value that is not
    finite and positive, and for a `max_gap` below 1.
    """

    ttft_s: float | None = None
    tbt_s: float | None = None
    ttlt_s: float | None = None
    max_gap: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tbt_s", "ttlt_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.ttlt_s is not None and (self.ttft_s is not None or self.tbt_s is not None):
            raise ValueError("ttlt_s cannot be combined with ttft_s or tbt_s")
        if (self.ttft_s is None) != (self.tbt_s is None):
            missing = "ttft_s" if self.ttft_s is None else "tbt_s"
            raise ValueError(f"{missing} is required: ttft_s and tbt_s go together")
        if self.max_gap is not None:
            if self.tbt_s is None:
                raise ValueError("max_gap is in TBTs: it needs ttft_s and tbt_s")
            if not self.max_gap >= 1:  # also false for nan
                raise ValueError(f"max_gap must be at least 1, got {self.max_gap}")

    @property
    def kind(self) -> TargetKind:
        if self.ttft_s is not None:
            return TargetKind.INTERACTIVE
        return TargetKind.BEST_EFFORT if self.ttlt_s is None else TargetKind.DEADLINE

    @property
    def target_s(self) -> float:
        """Returns the time until the first token is due or, with a TTLT, the last one; inf where
        nothing is.
        """
        stated = self.ttft_s if self.ttlt_s is None else self.ttlt_s
        return math.inf if stated is None else stated

    def within(self, limit_s: float) -> Targets:
        """Returns the same targets, but none of them longer than `limit_s` (positive, or inf)."""
        stated = (self.ttft_s, self.tbt_s, self.ttlt_s)
        if all(value is None or value <= limit_s for value in stated):
            return self
        ttft_s, tbt_s, ttlt_s = [None if each is None else min(each, limit_s) for each in stated]
        return Targets(ttft_s, tbt_s, ttlt_s, self.max_gap)


BEST_EFFORT = Targets()


class Pace(NamedTuple):
    """How evenly the tokens of a stream are to come; `max_gap` as in Targets."""

    tbt_s: float
    max_gap: float | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are picked, and when to stop. temperature 0 is greedy.

    Raises ValueError, naming the field first, for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: drawn by the front end, so that the engine is deterministic
    max_tokens: int = 128
    min_tokens: int = 0  # stop tokens are suppressed before this many tokens
    stop_token_ids: frozenset[int] = frozenset()  # end-of-sequence tokens included by the caller
    logprobs: int | None = None  # None: none; k: the token's own and those of the k likeliest

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 1e-9, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 1e-3, 100.0),
            ("presence_penalty", -100.0, 100.0),
            ("frequency_penalty", -100.0, 100.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also false for nan
                raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"min_tokens must be between 0 and max_tokens, got {self.min_tokens}")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise ValueError(f"logprobs must be between 0 and 20, got {self.logprobs}")


class Share(NamedTuple):
    """A part of the engine for which requests compete: each tenant that the operator has named has
    a share, and everybody else together has one. `weight` is relative to the other shares'.
    """

    name: str = ""
    weight: float = 1.0


EVERYBODY_ELSE = Share()


def key_of(tenant: str, name: str, completion: int | None = None) -> str:
    """Returns the id of a request, which tells it from all others.

    A name is its tenant's own, so two tenants may use the same; and completion 0 of a request `a`
    is not the request that somebody calls `a/0`. The separators in an id are not printable, and
    therefore occur in no tenant and no name.
    """
    key = f"{tenant}\n{name}" if tenant else name
    return key if completion is None else f"{key}\t{completion}"


def named_by(key: str) -> tuple[str, str]:
    """Returns the tenant and the name in an id. The name is what people read: `NAME/INDEX` for one
    of several completions.
    """
    tenant, separator, name = key.partition("\n")
    return (tenant, name.replace("\t", "/")) if separator else ("", key.replace("\t", "/"))


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be continued, and on what terms.

    `id` is unique among the requests in flight (see `key_of`). The deciding core looks at tokens of
    the prompt only to share prefixes, so a simulation passes a `range`. Raises ValueError for an
    empty prompt.
    """

    id: str
    prompt: TokenIds[int]
    sampling: Sampling
    arrived_at: float
    targets: Targets = BEST_EFFORT
    importance: Importance = Importance.NORMAL
    tier: str = ""  # name of the tier the targets came from, "" when they were explicit
    application: str = ""  # requests of one application have outputs of similar lengths
    tenant: str = ""  # prefixes are shared within a tenant, and the name is unique within it
    target_source: str = ""  # what stated the targets, for the record: "request", "tier", ...
    share: Share = EVERYBODY_ELSE
    attempt: int = 1  # 2: the engine process that had it was lost before any of it was seen
    timeout_s: float | None = None  # from its arrival to the call's own deadline, for the record
    trace_id: str = ""  # of the trace that its call is a part of, for the record
    target_reason: str = ""  # why it has these targets, where nobody stated them; for the record
    refuse_if_late: bool = False  # end it when it comes where it would not be on time
    num_after: int = 0  # completions of the same call that come right after it

    def __post_init__(self) -> None:
        if not len(self.prompt):
            raise ValueError("prompt must hold at least one token")

    @property
    def name(self) -> str:
        """Returns the name by which its tenant knows it."""
        return named_by(self.id)[1]

    @property
    def first_of_call(self) -> str:
        """Returns the id of completion 0 of the same call; its own where the call has one alone."""
        call, separator, _ = self.id.partition("\t")
        return f"{call}\t0" if separator else call

    @property
    def output_group(self) -> str:
        """Returns the group of requests whose output lengths tell what to expect of this one. It is
        within the tenant, so that nobody changes what is expected of another's requests.
        """
        return key_of(self.tenant, self.application or self.tier)

    def without_tokens(self) -> Request:
        """Returns the same request, but of its prompt nothing but the length."""
        id_, prompt, *others = _values_of(self)
        return Request(id_, range(len(prompt)), *others)

    def token_due_at(self, n: int) -> float:
        """Returns the deadline of token n (1 is the first); inf where the targets set none.

        Niyama (arXiv 2503.22562), section 3: D_n = t_arrival + TTFT + (n - 1) * TBT, and for a
        deadline request t_arrival + TTLT for the last token, whichever that is.
        """
        if self.targets.ttft_s is not None and self.targets.tbt_s is not None:
            return self.arrived_at + self.targets.ttft_s + (n - 1) * self.targets.tbt_s
        if self.targets.ttlt_s is not None:
            return self.arrived_at + self.targets.ttlt_s
        return math.inf


_values_of = attrgetter(*(field.name for field in fields(Request)))  # in the order of __init__
