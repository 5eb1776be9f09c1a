"""What a caller gets back: plain frozen values without protobuf.

Durations are float seconds, which the server measures from the arrival of the call. Lengths count
tokens of the served model. None stands for "there is none".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Importance(Enum):
    """Who is relegated first when not everybody can be on time: the lowest."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class FinishReason(Enum):
    """Why an output ended."""

    STOP = "stop"  # a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the model's context length


@dataclass(frozen=True, slots=True)
class Targets:
    """Latency targets: (ttft and tbt), or ttlt, or none (best effort).

    Interactive: token n is due at arrival + ttft + (n - 1) * tbt. Deadline: the last token is due
    at arrival + ttlt.
    """

    ttft: float | None = None
    tbt: float | None = None
    ttlt: float | None = None


@dataclass(frozen=True, slots=True)
class ResolvedTargets:
    """The targets that a request is served with, and where they came from."""

    targets: Targets
    tier: str  # "" when the targets were explicit or are the call's deadline
    importance: Importance
    source: (
        str  # "request", "tier", "application", "rpc_deadline", "default", "gateway", "inferred"
    )
    reason: str = ""  # for a person: what was inferred from what, or which metadata a gateway sent


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the scheduler predicts of a request, from the load at one moment."""

    on_time: bool
    ttft: float | None
    ttlt: float | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is in the queue."""

    request_id: str
    targets: ResolvedTargets
    prompt_tokens: int
    forecast: Forecast | None
    # What the server would have inferred for a request without targets, where it only watches.
    inferred: ResolvedTargets | None = None


class TokenLogprob(NamedTuple):
    """A token and the natural logarithm of its probability."""

    token_id: int
    logprob: float


class PositionLogprobs(NamedTuple):
    """Log probabilities at one position of the output: of the picked token and of the likeliest."""

    logprob: float
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Some more output, usually one token. The text may come later than its tokens: no character is
    cut in half, and what may become a stop string is held back.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()  # parallel to token_ids when asked for, else empty
    index: int = 0  # which completion, where several were asked for


@dataclass(frozen=True, slots=True)
class Relegated:
    """The request was moved behind the others. It still finishes; the caller may cancel."""

    reason: str
    expected_ttlt: float | None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """How many tokens a completion took, and how often it had to start again."""

    prompt_tokens: int
    cached_tokens: int  # those of the prompt found in the prefix cache
    output_tokens: int
    preemptions: int  # times its memory was taken and computed again


@dataclass(frozen=True, slots=True)
class Timings:
    """What the server measured of a completion, in seconds."""

    queue: float | None  # arrival until the engine first worked on it
    ttft: float | None  # time to first token
    mean_tbt: float | None  # mean time between tokens
    worst_tbt: float | None  # longest time between two tokens
    ttlt: float | None  # time to last token


@dataclass(frozen=True, slots=True)
class TargetResult:
    """One target and what came of it.

    For "tbt", `actual` is the longest gap between tokens. It may exceed the target though every
    token met its deadline; `met` goes by the deadlines.
    """

    name: str  # "ttft", "tbt" or "ttlt"
    target: float
    actual: float | None
    met: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """How one completion ended."""

    reason: FinishReason
    matched_stop: str  # the stop string that ended it, else ""
    usage: Usage
    timings: Timings
    targets: tuple[TargetResult, ...]  # empty for best effort
    relegated: bool
    index: int = 0

    @property
    def on_time(self) -> bool:
        """Returns whether every target was met."""
        return all(target.met for target in self.targets)


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished continuation of the prompt, without its stop string."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    finished: Finished
    index: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The whole answer of a unary call. `text` and `finished` are the first completion's."""

    request_id: str
    targets: ResolvedTargets
    completions: tuple[Completion, ...]

    @property
    def text(self) -> str:
        """Returns the text of the first completion."""
        return self.completions[0].text

    @property
    def finished(self) -> Finished:
        """Returns how the first completion ended."""
        return self.completions[0].finished


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A prompt's tokens."""

    count: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a call would find a place in the queue, and if not, why and when to try again."""

    admitted: bool
    reason: str = ""  # "queue_full", "work_full", "share_used" or "rejected"
    detail: str = ""  # the same for a person
    retry_after: float | None = None  # seconds


@dataclass(frozen=True, slots=True)
class Estimate:
    """What would become of a request sent now. The forecast is that of one that is admitted."""

    targets: ResolvedTargets
    forecast: Forecast
    admission: Admission = Admission(admitted=True)


@dataclass(frozen=True, slots=True)
class WorkAhead:
    """Work that is served before a request, and how much of it came while its tenant had asked for
    more than its part. Seconds of the engine's time.
    """

    tier: str  # "" where the targets were explicit, and where several are told as one
    tenant: str | None  # "": all that the operator has not named; None: several told as one
    work: float
    beyond: float


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """Where the time of a request went: seconds, in whole milliseconds that add up to all of it."""

    reading: float  # until the engine had it
    waiting: float  # in the queue
    prefill: float
    decoding: float
    held: float  # it sat iterations out


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of a request's timeline. Instants are in seconds since its arrival."""

    at: float
    kind: str  # "admitted", "chunk", "first_token", "preempted", "relegated", "finished", ...
    detail: str
    predicted_at: float | None
    values: dict[str, float]
    ahead: tuple[WorkAhead, ...] = ()  # whose work was then before it, where that was told


@dataclass(frozen=True, slots=True)
class Explanation:
    """The story of one request: every decision that changed its fate, oldest first."""

    request_id: str
    targets: ResolvedTargets
    decisions: tuple[Decision, ...]
    summary: str
    needed: tuple[str, ...] = ()  # what would have had to be different, a sentence each
    budget: TimeBudget | None = None
    result: str = ""  # "on_time", "late", "expired", ...; "" while it is in flight
    tenant: str = ""
    from_decision_log: bool = False  # the engine does not remember it (any more)
    trace_id: str = ""  # W3C's, of the trace that its call was part of


@dataclass(frozen=True, slots=True)
class Tier:
    """A named set of targets. `max_gap` is the longest time that the scheduler lets pass between
    two tokens of its requests, in TBTs, where it has such a bound; `note` says why its targets
    cannot be kept on the server's machine, if so.
    """

    name: str
    targets: Targets
    importance: Importance
    max_gap: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """The served model."""

    name: str
    architecture: str
    context_length: int  # most tokens of prompt and output together
    vocabulary_size: int
    parameters: int
    dtype: str
    device: str
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that the server takes: what is beyond is refused, or waits."""

    max_requests: int  # waiting or running
    max_batch_size: int
    kv_tokens: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How tokens are picked where a request does not say."""

    temperature: float  # 0 is greedy
    top_k: int  # 0 is all tokens
    top_p: float
    min_p: float
    repetition_penalty: float
    max_tokens: int  # fewer where the context leaves fewer


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself."""

    version: str
    model: Model
    policy: str
    tiers: tuple[Tier, ...]
    default_tier: str
    limits: Limits
    sampling: SamplingDefaults

    def tier(self, name: str) -> Tier | None:
        """Returns the tier of that name, or None."""
        return next((tier for tier in self.tiers if tier.name == name), None)
