"""What crosses the pipe between a front-end process and the engine process.

A front end sends batches of commands. The engine sends one `Report` with everything that an
iteration has to tell, however many streams it concerns. Requests travel as plain tuples, and so do
sampled tokens, by far the most frequent of all: tuples pickle several times quicker than objects.
How messages become bytes is for `engine.processes.frames` to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from engine.checkpoint.options import Choices
from engine.deciding.entries import Unserved
from engine.deciding.latency import LatencyProfile
from engine.deciding.plan import Accepted, Event, Finished, Relegated, Sampled, Token
from engine.deciding.prefix_journal import CacheBatch
from engine.deciding.questions import Question
from engine.deciding.request import Importance, Request, Sampling, Targets
from engine.deciding.sequence import FinishReason
from engine.tiers import Least, Tier


class Submit(NamedTuple):
    """Take the request in; an `Accepted` and at last a `Finished` answer it."""

    request: Request

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the request as plain values. Pickle's own way with dataclasses takes several
        times as long, and a request's way to the engine is part of its time to the first token.
        """
        request_id, prompt, sampling, arrived_at, targets, importance, *rest = _values(self.request)
        plain = (_values(sampling), arrived_at, _values(targets), int(importance))
        return _submit, (request_id, prompt, *plain, *rest)


def _submit(
    request_id: str,
    prompt: Sequence[int],
    sampling: tuple[Any, ...],
    arrived_at: float,
    targets: tuple[Any, ...],
    importance: int,
    *rest: Any,
) -> Submit:
    limits = Sampling(*sampling), arrived_at, Targets(*targets), Importance(importance)
    return Submit(Request(request_id, prompt, *limits, *rest))


_GETTERS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    kind: attrgetter(*[each.name for each in fields(kind)]) for kind in (Request, Sampling, Targets)
}


def _values(record: Request | Sampling | Targets) -> tuple[Any, ...]:
    """Returns the values of its fields, in their order."""
    return _GETTERS[type(record)](record)


class Cancel(NamedTuple):
    """Drop the request and free its pages; its `Finished` will state the reason."""

    request_id: str
    reason: FinishReason


class Ask(NamedTuple):
    """A question about the engine's state; the `Reply` with the same id answers it."""

    question_id: int
    question: Question[Any]


class Watch(NamedTuple):
    """Tell this front end what the prefix cache comes to hold and loses (`Report.cache`), or do so
    no longer. Watching again changes nothing.
    """

    is_on: bool


class Describe(NamedTuple):
    """What the service is configured as, in values that JSON has: for the decision log, which says
    it first of all.
    """

    service: dict[str, Any]


class Tell(NamedTuple):
    """A call, or a flood of calls, ended before the engine was given its requests. Nothing answers
    it: it is for the record.
    """

    call: Unserved

    def __reduce__(self) -> tuple[Any, ...]:
        request, *rest = self.call
        return _tell, (Submit(request), *rest)


def _tell(submit: Submit, *rest: Any) -> Tell:
    return Tell(Unserved(submit.request, *rest))


Command = Submit | Cancel | Ask | Watch | Describe | Tell


class Failure(Enum):
    """Why a question has no answer."""

    NOT_FOUND = "not found"
    INVALID = "invalid"


class Reply(NamedTuple):
    """The answer to a question, of the type that the question states, or why there is none:
    `failure` says of what kind the reason is, and `error` puts it in words.
    """

    question_id: int
    answer: Any
    error: str = ""
    failure: Failure | None = None


class Calibration(NamedTuple):
    """How the latency profile came to be.

    `took_s` is how long measuring took, in seconds; None for a profile from the cache.
    `median_error` is the median of |actual / predicted - 1| over iterations that it was not made
    from; None where there were none. `profile` is its file; None where it could not be written, and
    then `note` says why.
    """

    took_s: float | None
    median_error: float | None
    from_cache: bool
    profile: str | None
    note: str | None = None

    def log_fields(self) -> dict[str, Any]:
        """Returns the fields that have a value, for a log line."""
        return {name: value for name, value in self._asdict().items() if value is not None}


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine process tells of itself once it can serve. Lengths are in tokens."""

    model_name: str
    architecture: str
    context_len: int
    vocab_size: int
    num_parameters: int
    dtype: str
    device: str
    policy: str
    num_pages: int
    page_size: int
    max_batch_size: int
    pid: int
    eos_token_ids: frozenset[int] = frozenset()
    context_note: str = ""  # why the context is shorter than the checkpoint states
    tiers: tuple[Tier, ...] = ()  # that it proposes; empty: the built-in ones hold
    calibration: Calibration | None = None  # None: it learns in service only
    compile_note: str = ""  # why it is not compiled as asked
    least: Least | None = None  # that it can keep; None: nothing was measured, and nobody knows
    max_gap: float | None = None  # in TBTs, where a tier has none; None: the policy has no bound

    @property
    def kv_len(self) -> int:
        """Returns the number of token positions whose keys and values the memory holds."""
        return self.num_pages * self.page_size


class Pinned(NamedTuple):
    """What the first engine of a service chose and measured. It holds for the engines that take its
    place, since a service does not change because one of its processes was lost.

    `learnt` are the corrections that the latency model had come to, one for each segment of the
    profile; it is empty until the first are reported.
    """

    choices: Choices
    profile: LatencyProfile
    calibration: Calibration | None
    learnt: tuple[float, ...] = ()


class Starting(NamedTuple):
    """What the engine is doing until it can serve, for people who wait."""

    doing: str


class Ready(NamedTuple):
    """The engine can serve. `pinned` is for who starts the next engine; None where this one chose
    nothing.
    """

    info: EngineInfo
    pinned: Pinned | None = None


class Failed(NamedTuple):
    """The engine process is about to exit: `line` tells the operator why, and `trace`, the
    traceback of a defect of ours, is for the log.
    """

    line: str
    trace: str = ""


# (request id, token id), or with log probabilities (request id, token id, logprob, top).
SampledTuple = tuple[str, int] | tuple[str, int, float | None, tuple[tuple[int, float], ...]]


@dataclass(slots=True)
class Report:
    """The events of one iteration, to be delivered in the order of the fields.

    An empty report says that the engine is alive. `notices` are lines for the log, `refused` are
    the ids of requests that are in flight for another front end, and `learnt` is as in `Pinned`,
    empty where there is nothing to report of it. `cache` is for front ends that watch.
    """

    news: list[Accepted | Relegated] = field(default_factory=list)
    sampled: list[SampledTuple] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    learnt: tuple[float, ...] = ()
    cache: CacheBatch | None = None

    def add(self, events: Iterable[Event]) -> None:
        """Sorts the scheduler's events into the fields. The events of one request keep their order
        where it matters: its `Finished` is delivered last.
        """
        for event in events:
            if isinstance(event, Sampled):
                token = event.token
                self.sampled.append(
                    (event.request_id, token.id)
                    if token.logprob is None
                    else (event.request_id, token.id, token.logprob, token.top)
                )
            elif isinstance(event, Finished):
                self.finished.append(event)
            else:
                self.news.append(event)

    def __bool__(self) -> bool:
        usual = self.sampled or self.news or self.finished
        others = self.replies or self.notices or self.refused or self.learnt
        return bool(usual or others or self.cache)

    def __reduce__(self) -> tuple[Any, ...]:
        usual = (self.news, self.sampled, self.finished, self.replies)
        return Report, (*usual, self.notices, self.refused, self.learnt, self.cache)


def token_of(sampled: SampledTuple) -> Token:
    """Returns the token that a tuple of `Report.sampled` stands for."""
    return _plain_token(sampled[1]) if len(sampled) == 2 else Token(*sampled[1:])


# Without log probabilities there are few different tokens, and each comes often.
_plain_token = lru_cache(maxsize=8192)(Token)
