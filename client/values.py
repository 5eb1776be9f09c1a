"""What a caller gets back: plain frozen values, no protobuf.

Durations are float seconds, measured by the server from the arrival of the call. Lengths count
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
    """The targets a request is served with, and where they came from."""

    targets: Targets
    tier: str  # "" when the targets were explicit or are the call's deadline
    importance: Importance
    source: str  # "request", "tier", "application", "rpc_deadline" or "default"


@dataclass(frozen=True, slots=True)
class Forecast:
    """The scheduler's prediction from the load at one moment."""

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


class TokenLogprob(NamedTuple):
    """A token and the natural logarithm of its probability."""

    token_id: int
    logprob: float


class PositionLogprobs(NamedTuple):
    """Log probabilities at one position of the output: the picked token's, and the likeliest."""

    logprob: float
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Some more output, usually one token. The text may lag its tokens: no character is cut in
    half, and what may become a stop string is held back."""

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
    prompt_tokens: int
    cached_tokens: int  # those of the prompt found in the prefix cache
    output_tokens: int
    preemptions: int  # times its memory was taken and computed again


@dataclass(frozen=True, slots=True)
class Timings:
    queue: float | None  # arrival until the engine first worked on it
    ttft: float | None  # time to first token
    mean_tbt: float | None  # mean time between tokens
    worst_tbt: float | None  # longest time between two tokens
    ttlt: float | None  # time to last token


@dataclass(frozen=True, slots=True)
class TargetResult:
    """One target and what came of it. For "tbt", `actual` is the longest gap, which may exceed the
    target while every token still met its deadline; `met` goes by the deadlines."""

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
        """Whether every target was met."""
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
        return self.completions[0].text

    @property
    def finished(self) -> Finished:
        return self.completions[0].finished


@dataclass(frozen=True, slots=True)
class TokenCount:
    count: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a call finds a place in the queue, and if not why and when to try again."""

    admitted: bool
    reason: str = ""  # "queue_full", "work_full" or "share_used"
    detail: str = ""  # the same for a person
    retry_after: float | None = None  # seconds


@dataclass(frozen=True, slots=True)
class Estimate:
    """What would come of a request sent now. The forecast is of one that is admitted."""

    targets: ResolvedTargets
    forecast: Forecast
    admission: Admission = Admission(admitted=True)


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of a request's timeline; instants are seconds since its arrival."""

    at: float
    kind: str  # "admitted", "chunk", "first_token", "preempted", "relegated", "finished", ...
    detail: str
    predicted_at: float | None
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The story of one request: every decision that changed its fate, oldest first."""

    request_id: str
    targets: ResolvedTargets
    decisions: tuple[Decision, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class Tier:
    """A named set of targets."""

    name: str
    targets: Targets
    importance: Importance


@dataclass(frozen=True, slots=True)
class Model:
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
    """What the server refuses beyond."""

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
    version: str
    model: Model
    policy: str
    tiers: tuple[Tier, ...]
    default_tier: str
    limits: Limits
    sampling: SamplingDefaults

    def tier(self, name: str) -> Tier | None:
        """The tier of that name, or None."""
        return next((tier for tier in self.tiers if tier.name == name), None)
