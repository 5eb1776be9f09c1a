"""Questions that a front end asks of an engine, each with the type of its answer.

A `Question[A]` is a value that crosses to the engine process; the engine loop answers it with an
`A`. Asking changes nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.deciding.forecast import Forecast
from engine.deciding.notable import Notable
from engine.deciding.prefix_journal import Cached, CacheState
from engine.deciding.request import EVERYBODY_ELSE, Importance, Sampling, Share, Targets
from engine.deciding.stats import EngineStats, TierAsked
from engine.deciding.timeline import Timeline

AnswerT = TypeVar("AnswerT")

_SAMPLING = Sampling()  # the defaults


class Question(Generic[AnswerT]):
    """A question whose answer is an `AnswerT`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Stats(Question[EngineStats]):
    """How much the engine has done, how full it is now, and what a typical request of each of these
    tiers has to expect.
    """

    tiers: tuple[TierAsked, ...] = ()


@dataclass(frozen=True, slots=True)
class Recent(Question[tuple[Notable, ...]]):
    """The last notable decisions of all tenants, `most` of each kind, the newest first."""

    most: int = 20


@dataclass(frozen=True, slots=True)
class Explain(Question[Timeline]):
    """What was decided for a request, and why.

    `request_id` is the name that its tenant gave it. With `tenant` None, the request of any tenant
    is meant. The answer fails as NOT_FOUND when no such request is remembered, and as INVALID when
    several tenants have one.
    """

    request_id: str
    tenant: str | None = ""


@dataclass(frozen=True, slots=True)
class Prefixes(Question[CacheState]):
    """Where somebody begins who watches the prefix cache, and has had all batches up to the number
    `after`. The answer fails as INVALID while nobody watches.
    """

    after: int = 0


@dataclass(frozen=True, slots=True)
class PrefixPart(Question[tuple[Cached, ...]]):
    """The next cached pages of such a state, by their serial: above `after`, and at most `until`.
    The answer has none when there are no more, and fails as INVALID while nobody watches.
    """

    after: int
    until: int


@dataclass(frozen=True, slots=True)
class Estimate(Question[Forecast]):
    """What would become of a request that was sent now. Lengths are in tokens.

    With `output_len` None, the length is guessed from the history of such requests; where there is
    none yet it is what is usual, and at most `default_output_len`.
    """

    prompt_len: int
    output_len: int | None
    targets: Targets
    application: str = ""
    importance: Importance = Importance.NORMAL
    tier: str = ""
    tenant: str = ""
    default_output_len: int = _SAMPLING.max_tokens
    share: Share = EVERYBODY_ELSE
