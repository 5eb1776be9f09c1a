import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Importance(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMPORTANCE_UNSPECIFIED: _ClassVar[Importance]
    IMPORTANCE_LOW: _ClassVar[Importance]
    IMPORTANCE_NORMAL: _ClassVar[Importance]
    IMPORTANCE_HIGH: _ClassVar[Importance]

class TargetSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGET_SOURCE_UNSPECIFIED: _ClassVar[TargetSource]
    TARGET_SOURCE_REQUEST: _ClassVar[TargetSource]
    TARGET_SOURCE_TIER: _ClassVar[TargetSource]
    TARGET_SOURCE_APPLICATION: _ClassVar[TargetSource]
    TARGET_SOURCE_RPC_DEADLINE: _ClassVar[TargetSource]
    TARGET_SOURCE_DEFAULT: _ClassVar[TargetSource]
    TARGET_SOURCE_GATEWAY: _ClassVar[TargetSource]
    TARGET_SOURCE_INFERRED: _ClassVar[TargetSource]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class TargetName(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGET_NAME_UNSPECIFIED: _ClassVar[TargetName]
    TARGET_NAME_TTFT: _ClassVar[TargetName]
    TARGET_NAME_TBT: _ClassVar[TargetName]
    TARGET_NAME_TTLT: _ClassVar[TargetName]
IMPORTANCE_UNSPECIFIED: Importance
IMPORTANCE_LOW: Importance
IMPORTANCE_NORMAL: Importance
IMPORTANCE_HIGH: Importance
TARGET_SOURCE_UNSPECIFIED: TargetSource
TARGET_SOURCE_REQUEST: TargetSource
TARGET_SOURCE_TIER: TargetSource
TARGET_SOURCE_APPLICATION: TargetSource
TARGET_SOURCE_RPC_DEADLINE: TargetSource
TARGET_SOURCE_DEFAULT: TargetSource
TARGET_SOURCE_GATEWAY: TargetSource
TARGET_SOURCE_INFERRED: TargetSource
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
TARGET_NAME_UNSPECIFIED: TargetName
TARGET_NAME_TTFT: TargetName
TARGET_NAME_TBT: TargetName
TARGET_NAME_TTLT: TargetName

class GenerateRequest(_message.Message):
    __slots__ = ("input", "sampling", "qos", "request_id")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    input: Input
    sampling: Sampling
    qos: QualityOfService
    request_id: str
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., qos: _Optional[_Union[QualityOfService, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GenerateStreamRequest(_message.Message):
    __slots__ = ("input", "sampling", "qos", "request_id")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    input: Input
    sampling: Sampling
    qos: QualityOfService
    request_id: str
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., qos: _Optional[_Union[QualityOfService, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("text", "token_ids", "chat")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    chat: Chat
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "logprobs", "n")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    logprobs: int
    n: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ..., n: _Optional[int] = ...) -> None: ...

class QualityOfService(_message.Message):
    __slots__ = ("interactive", "deadline", "best_effort", "tier", "importance", "application", "refuse_if_late")
    INTERACTIVE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    BEST_EFFORT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_FIELD_NUMBER: _ClassVar[int]
    REFUSE_IF_LATE_FIELD_NUMBER: _ClassVar[int]
    interactive: InteractiveTargets
    deadline: DeadlineTargets
    best_effort: BestEffortTargets
    tier: str
    importance: Importance
    application: str
    refuse_if_late: bool
    def __init__(self, interactive: _Optional[_Union[InteractiveTargets, _Mapping]] = ..., deadline: _Optional[_Union[DeadlineTargets, _Mapping]] = ..., best_effort: _Optional[_Union[BestEffortTargets, _Mapping]] = ..., tier: _Optional[str] = ..., importance: _Optional[_Union[Importance, str]] = ..., application: _Optional[str] = ..., refuse_if_late: _Optional[bool] = ...) -> None: ...

class InteractiveTargets(_message.Message):
    __slots__ = ("ttft", "tbt")
    TTFT_FIELD_NUMBER: _ClassVar[int]
    TBT_FIELD_NUMBER: _ClassVar[int]
    ttft: _duration_pb2.Duration
    tbt: _duration_pb2.Duration
    def __init__(self, ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tbt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DeadlineTargets(_message.Message):
    __slots__ = ("ttlt",)
    TTLT_FIELD_NUMBER: _ClassVar[int]
    ttlt: _duration_pb2.Duration
    def __init__(self, ttlt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class BestEffortTargets(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("request_id", "targets", "completions")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    targets: ResolvedTargets
    completions: _containers.RepeatedCompositeFieldContainer[Completion]
    def __init__(self, request_id: _Optional[str] = ..., targets: _Optional[_Union[ResolvedTargets, _Mapping]] = ..., completions: _Optional[_Iterable[_Union[Completion, _Mapping]]] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("index", "text", "token_ids", "logprobs", "finished")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    finished: Finished
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("accepted", "tokens", "relegated", "finished")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RELEGATED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    tokens: Tokens
    relegated: Relegated
    finished: Finished
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., relegated: _Optional[_Union[Relegated, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("request_id", "targets", "prompt_tokens", "forecast", "inferred")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    INFERRED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    targets: ResolvedTargets
    prompt_tokens: int
    forecast: Forecast
    inferred: ResolvedTargets
    def __init__(self, request_id: _Optional[str] = ..., targets: _Optional[_Union[ResolvedTargets, _Mapping]] = ..., prompt_tokens: _Optional[int] = ..., forecast: _Optional[_Union[Forecast, _Mapping]] = ..., inferred: _Optional[_Union[ResolvedTargets, _Mapping]] = ...) -> None: ...

class ResolvedTargets(_message.Message):
    __slots__ = ("tier", "ttft", "tbt", "ttlt", "importance", "source", "reason")
    TIER_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    TBT_FIELD_NUMBER: _ClassVar[int]
    TTLT_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    tier: str
    ttft: _duration_pb2.Duration
    tbt: _duration_pb2.Duration
    ttlt: _duration_pb2.Duration
    importance: Importance
    source: TargetSource
    reason: str
    def __init__(self, tier: _Optional[str] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tbt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttlt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., importance: _Optional[_Union[Importance, str]] = ..., source: _Optional[_Union[TargetSource, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Forecast(_message.Message):
    __slots__ = ("on_time", "ttft", "ttlt")
    ON_TIME_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    TTLT_FIELD_NUMBER: _ClassVar[int]
    on_time: bool
    ttft: _duration_pb2.Duration
    ttlt: _duration_pb2.Duration
    def __init__(self, on_time: _Optional[bool] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttlt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("index", "text", "token_ids", "logprobs")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Relegated(_message.Message):
    __slots__ = ("index", "reason", "expected_ttlt")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TTLT_FIELD_NUMBER: _ClassVar[int]
    index: int
    reason: str
    expected_ttlt: _duration_pb2.Duration
    def __init__(self, index: _Optional[int] = ..., reason: _Optional[str] = ..., expected_ttlt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("index", "reason", "matched_stop", "usage", "timings", "targets", "relegated")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    RELEGATED_FIELD_NUMBER: _ClassVar[int]
    index: int
    reason: FinishReason
    matched_stop: str
    usage: Usage
    timings: Timings
    targets: _containers.RepeatedCompositeFieldContainer[TargetResult]
    relegated: bool
    def __init__(self, index: _Optional[int] = ..., reason: _Optional[_Union[FinishReason, str]] = ..., matched_stop: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[TargetResult, _Mapping]]] = ..., relegated: _Optional[bool] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "output_tokens", "preemptions")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "ttft", "mean_tbt", "worst_tbt", "ttlt")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    MEAN_TBT_FIELD_NUMBER: _ClassVar[int]
    WORST_TBT_FIELD_NUMBER: _ClassVar[int]
    TTLT_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    ttft: _duration_pb2.Duration
    mean_tbt: _duration_pb2.Duration
    worst_tbt: _duration_pb2.Duration
    ttlt: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., mean_tbt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., worst_tbt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttlt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TargetResult(_message.Message):
    __slots__ = ("name", "target", "actual", "met")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    name: TargetName
    target: _duration_pb2.Duration
    actual: _duration_pb2.Duration
    met: bool
    def __init__(self, name: _Optional[_Union[TargetName, str]] = ..., target: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., actual: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., met: _Optional[bool] = ...) -> None: ...

class EstimateRequest(_message.Message):
    __slots__ = ("prompt_tokens", "output_tokens", "qos")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QOS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_tokens: int
    qos: QualityOfService
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., qos: _Optional[_Union[QualityOfService, _Mapping]] = ...) -> None: ...

class EstimateResponse(_message.Message):
    __slots__ = ("targets", "forecast", "admission")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    targets: ResolvedTargets
    forecast: Forecast
    admission: Admission
    def __init__(self, targets: _Optional[_Union[ResolvedTargets, _Mapping]] = ..., forecast: _Optional[_Union[Forecast, _Mapping]] = ..., admission: _Optional[_Union[Admission, _Mapping]] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("admitted", "reason", "detail", "retry_after")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    admitted: bool
    reason: str
    detail: str
    retry_after: _duration_pb2.Duration
    def __init__(self, admitted: _Optional[bool] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "targets", "decisions", "summary", "budget", "needed", "result", "tenant", "from_decision_log", "trace_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FROM_DECISION_LOG_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    targets: ResolvedTargets
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    summary: str
    budget: TimeBudget
    needed: _containers.RepeatedScalarFieldContainer[str]
    result: str
    tenant: str
    from_decision_log: bool
    trace_id: str
    def __init__(self, request_id: _Optional[str] = ..., targets: _Optional[_Union[ResolvedTargets, _Mapping]] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., summary: _Optional[str] = ..., budget: _Optional[_Union[TimeBudget, _Mapping]] = ..., needed: _Optional[_Iterable[str]] = ..., result: _Optional[str] = ..., tenant: _Optional[str] = ..., from_decision_log: _Optional[bool] = ..., trace_id: _Optional[str] = ...) -> None: ...

class TimeBudget(_message.Message):
    __slots__ = ("reading", "waiting", "prefill", "decoding", "held")
    READING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    reading: _duration_pb2.Duration
    waiting: _duration_pb2.Duration
    prefill: _duration_pb2.Duration
    decoding: _duration_pb2.Duration
    held: _duration_pb2.Duration
    def __init__(self, reading: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., waiting: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decoding: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., held: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("at", "kind", "detail", "predicted_at", "values", "ahead")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_AT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    at: _duration_pb2.Duration
    kind: str
    detail: str
    predicted_at: _duration_pb2.Duration
    values: _containers.ScalarMap[str, float]
    ahead: _containers.RepeatedCompositeFieldContainer[WorkAhead]
    def __init__(self, at: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., kind: _Optional[str] = ..., detail: _Optional[str] = ..., predicted_at: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., values: _Optional[_Mapping[str, float]] = ..., ahead: _Optional[_Iterable[_Union[WorkAhead, _Mapping]]] = ...) -> None: ...

class WorkAhead(_message.Message):
    __slots__ = ("tier", "tenant", "work", "beyond")
    TIER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    BEYOND_FIELD_NUMBER: _ClassVar[int]
    tier: str
    tenant: str
    work: _duration_pb2.Duration
    beyond: _duration_pb2.Duration
    def __init__(self, tier: _Optional[str] = ..., tenant: _Optional[str] = ..., work: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., beyond: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CountTokensRequest(_message.Message):
    __slots__ = ("input",)
    INPUT_FIELD_NUMBER: _ClassVar[int]
    input: Input
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ...) -> None: ...

class CountTokensResponse(_message.Message):
    __slots__ = ("count", "token_ids")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    count: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, count: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "model", "policy", "tiers", "default_tier", "limits", "sampling")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIER_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    version: str
    model: ModelInfo
    policy: str
    tiers: _containers.RepeatedCompositeFieldContainer[Tier]
    default_tier: str
    limits: Limits
    sampling: SamplingDefaults
    def __init__(self, version: _Optional[str] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., policy: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[Tier, _Mapping]]] = ..., default_tier: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., sampling: _Optional[_Union[SamplingDefaults, _Mapping]] = ...) -> None: ...

class SamplingDefaults(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_tokens: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "architecture", "context_length", "vocabulary_size", "parameters", "dtype", "device", "has_chat_template")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    context_length: int
    vocabulary_size: int
    parameters: int
    dtype: str
    device: str
    has_chat_template: bool
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., context_length: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., parameters: _Optional[int] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., has_chat_template: _Optional[bool] = ...) -> None: ...

class Tier(_message.Message):
    __slots__ = ("name", "ttft", "tbt", "ttlt", "importance", "max_gap", "note")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    TBT_FIELD_NUMBER: _ClassVar[int]
    TTLT_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_FIELD_NUMBER: _ClassVar[int]
    MAX_GAP_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    ttft: _duration_pb2.Duration
    tbt: _duration_pb2.Duration
    ttlt: _duration_pb2.Duration
    importance: Importance
    max_gap: float
    note: str
    def __init__(self, name: _Optional[str] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tbt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ttlt: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., importance: _Optional[_Union[Importance, str]] = ..., max_gap: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_requests", "max_batch_size", "kv_tokens", "max_message_bytes")
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_requests: int
    max_batch_size: int
    kv_tokens: int
    max_message_bytes: int
    def __init__(self, max_requests: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("tiers", "waiting", "backlog", "running", "demand", "rates", "speeds", "memory", "batch_fill")
    TIERS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    SPEEDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    BATCH_FILL_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[TierLoad]
    waiting: Work
    backlog: Work
    running: Work
    demand: float
    rates: Rates
    speeds: Speeds
    memory: MemoryLoad
    batch_fill: float
    def __init__(self, tiers: _Optional[_Iterable[_Union[TierLoad, _Mapping]]] = ..., waiting: _Optional[_Union[Work, _Mapping]] = ..., backlog: _Optional[_Union[Work, _Mapping]] = ..., running: _Optional[_Union[Work, _Mapping]] = ..., demand: _Optional[float] = ..., rates: _Optional[_Union[Rates, _Mapping]] = ..., speeds: _Optional[_Union[Speeds, _Mapping]] = ..., memory: _Optional[_Union[MemoryLoad, _Mapping]] = ..., batch_fill: _Optional[float] = ...) -> None: ...

class TierLoad(_message.Message):
    __slots__ = ("tier", "waiting", "relegated", "best_effort", "running", "outlook")
    TIER_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RELEGATED_FIELD_NUMBER: _ClassVar[int]
    BEST_EFFORT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    OUTLOOK_FIELD_NUMBER: _ClassVar[int]
    tier: str
    waiting: Work
    relegated: Work
    best_effort: Work
    running: Work
    outlook: Outlook
    def __init__(self, tier: _Optional[str] = ..., waiting: _Optional[_Union[Work, _Mapping]] = ..., relegated: _Optional[_Union[Work, _Mapping]] = ..., best_effort: _Optional[_Union[Work, _Mapping]] = ..., running: _Optional[_Union[Work, _Mapping]] = ..., outlook: _Optional[_Union[Outlook, _Mapping]] = ...) -> None: ...

class Outlook(_message.Message):
    __slots__ = ("headroom", "late_chance", "ttft", "ahead", "target", "prompt_tokens")
    HEADROOM_FIELD_NUMBER: _ClassVar[int]
    LATE_CHANCE_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    headroom: _duration_pb2.Duration
    late_chance: float
    ttft: _duration_pb2.Duration
    ahead: Work
    target: _duration_pb2.Duration
    prompt_tokens: int
    def __init__(self, headroom: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., late_chance: _Optional[float] = ..., ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ahead: _Optional[_Union[Work, _Mapping]] = ..., target: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("sequences", "time", "tokens")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequences: int
    time: _duration_pb2.Duration
    tokens: int
    def __init__(self, sequences: _Optional[int] = ..., time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tokens: _Optional[int] = ...) -> None: ...

class Rates(_message.Message):
    __slots__ = ("requests", "generated_tokens", "prefilled_tokens")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    requests: float
    generated_tokens: float
    prefilled_tokens: float
    def __init__(self, requests: _Optional[float] = ..., generated_tokens: _Optional[float] = ..., prefilled_tokens: _Optional[float] = ...) -> None: ...

class Speeds(_message.Message):
    __slots__ = ("iteration", "prefill_tokens_per_second", "slowdown", "decode")
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    iteration: _duration_pb2.Duration
    prefill_tokens_per_second: float
    slowdown: float
    decode: _duration_pb2.Duration
    def __init__(self, iteration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill_tokens_per_second: _Optional[float] = ..., slowdown: _Optional[float] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class MemoryLoad(_message.Message):
    __slots__ = ("total_tokens", "free_tokens", "cached_tokens", "patient_tokens", "usage")
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PATIENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    total_tokens: int
    free_tokens: int
    cached_tokens: int
    patient_tokens: int
    usage: float
    def __init__(self, total_tokens: _Optional[int] = ..., free_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., patient_tokens: _Optional[int] = ..., usage: _Optional[float] = ...) -> None: ...
