"""The values that pass between the scheduler and whoever executes its decisions.

One iteration after the other:                     With one iteration of look-ahead:

    plan = scheduler.plan(now)                         plan = scheduler.plan(expected end of last)
    pending = executor.launch(plan)                    pending = executor.launch(plan)
    events = scheduler.commit(                         events = scheduler.commit(
        plan, pending.tokens(), now)                       last_plan, last_pending.tokens(), now)
                                                       scheduler.advance(plan, now)

All durations and instants are in seconds, and all lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from engine.deciding.request import Targets
from engine.deciding.sequence import FinishReason, Sequence

# The id of a `Token` where none was picked.
NOT_FINITE = -1
NOTHING_LEFT = -2


class Chunk(NamedTuple):
    """Known tokens [start, start + length) of a waiting sequence, to be computed in one iteration.

    Pages for all of them are already in `sequence.pages`. `samples` is true for the chunk that
    reaches the last known token: it yields the sequence's next token.
    """

    sequence: Sequence
    start: int
    length: int
    samples: bool


class Work(NamedTuple):
    """The counts on which the cost of an iteration depends, and nothing else does (latency.py)."""

    num_decodes: int = 0  # sequences that decode, one token each
    decode_context: int = 0  # sum of the context lengths that those read, own token included
    num_prefill: int = 0  # prefill tokens over all chunks
    prefill_context: int = 0  # sum over chunks of start + length: the context each chunk reads
    prefill_pairs: int = 0  # sum over prefill tokens of the positions each attends to (causal)
    num_chunks: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + self.num_prefill


class Plan(NamedTuple):
    """One iteration: every token that it computes, of which there is at least one.

    Each decode computes position `num_computed` of its sequence, whose page is granted.
    """

    decodes: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]
    work: Work
    planned_at: float
    predicted_s: float
    # Pages to be zeroed before anything is computed: they hold what nobody knows any more, and a
    # batch reads some of it with weight 0, which leaves NaN and infinity what they are.
    cleared: tuple[int, ...] = ()
    is_full: bool = False  # somebody waits whom it leaves waiting

    @property
    def sampling(self) -> list[Sequence]:
        """Returns the sequences that get a token from this iteration, in the order of the
        executor's answer.
        """
        return [*self.decodes, *[c.sequence for c in self.chunks if c.samples]]


class Token(NamedTuple):
    """What an executor gives for one sequence: its next token, or why there is none.

    `logprob` and `top` are there when they were asked for; `top` holds pairs of token id and log
    probability, the likeliest first.

    The id is NOT_FINITE where the largest logit is NaN or infinite (a broken checkpoint, or an
    overflow of its number format), and NOTHING_LEFT where min_tokens forbids every token that the
    model gives a chance: none was sampled, and the sequence cannot go on.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    @property
    def is_sampled(self) -> bool:
        return self.id >= 0

    @property
    def is_finite(self) -> bool:
        return self.id != NOT_FINITE


class Pending(Protocol):
    """An iteration that has been launched."""

    def tokens(self) -> list[Token]:
        """Waits for the tokens, and returns one for each sequence of `plan.sampling`, in order."""


@dataclass(frozen=True, slots=True)
class Done:
    """The result of an executor that computes while it launches: there is nothing to wait for."""

    result: list[Token]

    def tokens(self) -> list[Token]:
        return self.result


class Executor(Protocol):
    """Computes plans, in the order in which they are launched."""

    @property
    def compilations(self) -> int:
        """How often it has compiled something since it was made: none is expected in service."""

    def launch(self, plan: Plan) -> Pending:
        """Starts to compute the plan. It reads the plan and its sequences before it returns, and
        never again. A decode whose newest token is in flight continues with the token that the
        launch before this one gives.
        """


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine took the request in. Predictions are durations from its arrival, in seconds."""

    request_id: str
    on_time: bool  # whether all targets are expected to be met
    predicted_ttft_s: float
    predicted_ttlt_s: float


class Sampled(NamedTuple):
    """The request's next token. The one event that is made by the thousand."""

    request_id: str
    token: Token


# `Sampled(...)` takes twice as long.
make_sampled: Callable[[type[Sampled], tuple[str, Token]], Sampled] = tuple.__new__


@dataclass(frozen=True, slots=True)
class Relegated:
    """The request was moved behind the others; it still finishes."""

    request_id: str
    reason: str
    expected_ttlt_s: float  # from its arrival


@dataclass(frozen=True, slots=True)
class Timings:
    """When tokens came, in seconds, and which targets were met. None stands where there is no such
    instant or no such target.
    """

    queue_s: float | None  # arrival to the first iteration that computed any of it
    ttft_s: float | None
    mean_tbt_s: float | None  # over the gaps between tokens; None with fewer than two tokens
    worst_tbt_s: float | None
    ttlt_s: float | None  # arrival to last token
    ttft_met: bool | None
    tbt_met: bool | None  # by the envelope: every token after the first by its deadline
    ttlt_met: bool | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The request ended. There is exactly one such event for each that was submitted."""

    request_id: str
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    targets: Targets
    relegated: bool  # at any time
    num_preemptions: int
    timings: Timings
    detail: str = ""  # where it ended for no reason of its own: what happened
    retry_s: float = 0.0  # of one that was refused: when such a request would fare better
    # For WOULD_BE_LATE: the expected times to the first and to the last token, from its arrival.
    expected: tuple[float, float] | None = None


Event = Accepted | Sampled | Relegated | Finished
