"""Between protobuf and the engine's values: the only file of the server that knows both.

Reading checks everything that can be checked without a tokenizer and collects what is wrong, each
with the path of its field (`sampling.top_p`); what needs the prompt's length is checked in
`engine_requests`. Wire durations become float seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration

from engine.deciding.plan import Accepted, Finished, Relegated, Timings, Token
from engine.deciding.request import BEST_EFFORT, Importance, Request, Sampling, Targets
from engine.deciding.sequence import FinishReason
from engine.driving.messages import EngineInfo
from proto.niyama.v1 import inference_pb2 as pb
from server.tiers import Resolved, TargetSource, Tier, Tiers

DEFAULT_MAX_TOKENS = 128
MAX_NAME_BYTES = 128
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_N = 16
SEED_BITS = 64

_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_TARGET_FIELDS = {
    "interactive": {"ttft": "ttft_s", "tbt": "tbt_s"},
    "deadline": {"ttlt": "ttlt_s"},
    "best_effort": {},
}
_SOURCES = {
    TargetSource.REQUEST: pb.TARGET_SOURCE_REQUEST,
    TargetSource.TIER: pb.TARGET_SOURCE_TIER,
    TargetSource.APPLICATION: pb.TARGET_SOURCE_APPLICATION,
    TargetSource.RPC_DEADLINE: pb.TARGET_SOURCE_RPC_DEADLINE,
    TargetSource.DEFAULT: pb.TARGET_SOURCE_DEFAULT,
}
_IMPORTANCES = {
    pb.IMPORTANCE_LOW: Importance.LOW,
    pb.IMPORTANCE_NORMAL: Importance.NORMAL,
    pb.IMPORTANCE_HIGH: Importance.HIGH,
}
_TO_IMPORTANCE = {value: key for key, value in _IMPORTANCES.items()}
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


class Violation(NamedTuple):
    """`field` is its path in the request message."""

    field: str
    description: str


class InvalidRequest(ValueError):
    """The request breaks a rule of the API; every broken rule that was found."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Input:
    """A prompt: one of text, token ids, messages. `field` is the form's path, for errors."""

    field: str
    text: str | None = None
    token_ids: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request, before its prompt is tokenized."""

    request_id: str
    input: Input
    sampling: dict[str, Any]  # arguments of engine Sampling, without max_tokens
    max_tokens: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    n: int
    application: str
    quality: Resolved


class _Reader:
    """Collects violations, so that one answer names all of them."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def refuse(self, field: str, description: str) -> None:
        self.violations.append(Violation(field, description))

    def finish(self) -> None:
        if self.violations:
            raise InvalidRequest(self.violations)


def read_generate(
    request: pb.GenerateRequest | pb.GenerateStreamRequest,
    tiers: Tiers,
    vocab_size: int,
    timeout_s: float | None,
) -> Asked:
    """`timeout_s` is what the call's deadline leaves. Raises InvalidRequest."""
    reader = _Reader()
    _check_name(reader, "request_id", request.request_id)
    prompt = _read_input(reader, request, vocab_size)
    sampling = _read_sampling(reader, request.sampling, vocab_size)
    quality = _read_quality(reader, request.qos, tiers, timeout_s)
    reader.finish()
    assert quality is not None
    wire = request.sampling
    return Asked(
        request_id=request.request_id,
        input=prompt,
        sampling=sampling,
        max_tokens=wire.max_tokens if wire.HasField("max_tokens") else None,
        stop=tuple(wire.stop),
        ignore_eos=wire.ignore_eos,
        n=wire.n if wire.HasField("n") else 1,
        application=request.qos.application,
        quality=quality,
    )


def read_input(request: pb.CountTokensRequest, vocab_size: int) -> Input:
    """Raises InvalidRequest."""
    reader = _Reader()
    prompt = _read_input(reader, request, vocab_size)
    reader.finish()
    return prompt


def read_estimate(
    request: pb.EstimateRequest, tiers: Tiers, timeout_s: float | None
) -> tuple[int, int | None, Resolved]:
    """Prompt length, output length if stated, targets. Raises InvalidRequest."""
    reader = _Reader()
    if request.prompt_tokens < 1:
        reader.refuse("prompt_tokens", "must be at least 1")
    quality = _read_quality(reader, request.qos, tiers, timeout_s)
    reader.finish()
    assert quality is not None
    return request.prompt_tokens, request.output_tokens or None, quality


def read_request_id(request: pb.ExplainRequest) -> str:
    """Raises InvalidRequest."""
    reader = _Reader()
    _check_name(reader, "request_id", request.request_id)
    if not request.request_id:
        reader.refuse("request_id", "is required")
    reader.finish()
    return request.request_id


def _check_name(reader: _Reader, field: str, name: str) -> None:
    if len(name.encode()) > MAX_NAME_BYTES:
        reader.refuse(field, f"must be at most {MAX_NAME_BYTES} bytes")
    elif not (name.isascii() and name.isprintable()):
        reader.refuse(field, "must be printable ASCII")


def _read_input(reader: _Reader, request: Any, vocab_size: int) -> Input:
    form = request.input.WhichOneof("form")
    field = f"input.{form}"
    if form == "text":
        return Input(field, text=request.input.text)
    if form == "token_ids":
        ids = tuple(request.input.token_ids.ids)
        if not ids:
            reader.refuse("input.token_ids.ids", "must hold at least one token")
        elif max(ids) >= vocab_size:
            reader.refuse("input.token_ids.ids", f"must be below {vocab_size}, got {max(ids)}")
        return Input(field, token_ids=ids)
    if form == "chat":
        messages = tuple(Message(m.role, m.content) for m in request.input.chat.messages)
        if not messages:
            reader.refuse("input.chat.messages", "must hold at least one message")
        for i, message in enumerate(messages):
            if not message.role:
                reader.refuse(f"input.chat.messages[{i}].role", "is required")
        return Input(field, messages=messages)
    reader.refuse("input", "is required: one of text, token_ids, chat")
    return Input("input")


def _read_sampling(reader: _Reader, wire: pb.Sampling, vocab_size: int) -> dict[str, Any]:
    """Arguments for engine Sampling, max_tokens apart: its default depends on the prompt."""
    _check_stops(reader, wire, vocab_size)
    if wire.HasField("n") and not 1 <= wire.n <= MAX_N:
        reader.refuse("sampling.n", f"must be between 1 and {MAX_N}, got {wire.n}")
    read = {name: getattr(wire, name) for name in _FLOATS if wire.HasField(name)}
    read |= {"top_k": min(wire.top_k, vocab_size), "min_tokens": wire.min_tokens}
    read |= {"stop_token_ids": frozenset(wire.stop_token_ids)}
    for name in ("seed", "logprobs"):
        if wire.HasField(name):
            read[name] = getattr(wire, name)
    most = wire.max_tokens if wire.HasField("max_tokens") else max(1, wire.min_tokens)
    # One at a time, so that each bad field is named; then together, for min_tokens.
    for name, value in read.items() - {("min_tokens", wire.min_tokens)}:
        _refused(reader, lambda name=name, value=value: Sampling(**{name: value}))
    if _refused(reader, lambda: Sampling(max_tokens=most)):
        return read
    _refused(reader, lambda: Sampling(max_tokens=most, min_tokens=wire.min_tokens))
    return read


def _refused(reader: _Reader, build: Callable[[], object]) -> bool:
    """Whether the engine refuses the value; its message begins with the field's name."""
    try:
        build()
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        reader.refuse(f"sampling.{name}", rest)
        return True
    return False


def _check_stops(reader: _Reader, wire: pb.Sampling, vocab_size: int) -> None:
    if len(wire.stop) > MAX_STOPS:
        reader.refuse("sampling.stop", f"must be at most {MAX_STOPS} texts")
    for i, text in enumerate(wire.stop):
        if not 1 <= len(text.encode()) <= MAX_STOP_BYTES:
            reader.refuse(f"sampling.stop[{i}]", f"must be 1 to {MAX_STOP_BYTES} bytes long")
    for i, token in enumerate(wire.stop_token_ids):
        if token >= vocab_size:
            reader.refuse(f"sampling.stop_token_ids[{i}]", f"must be below {vocab_size}")


def _read_quality(
    reader: _Reader, wire: pb.QualityOfService, tiers: Tiers, timeout_s: float | None
) -> Resolved | None:
    _check_name(reader, "qos.tier", wire.tier)
    _check_name(reader, "qos.application", wire.application)
    if wire.importance and wire.importance not in _IMPORTANCES:
        reader.refuse("qos.importance", f"unknown value {wire.importance}")
    explicit = _read_targets(reader, wire)
    if explicit is not None and wire.tier:
        reader.refuse("qos.tier", "cannot be combined with explicit targets")
    importance = _IMPORTANCES.get(wire.importance)
    try:
        return tiers.resolve(explicit, wire.tier, wire.application, timeout_s, importance)
    except ValueError as error:
        reader.refuse("qos.tier", str(error))
        return None


def _read_targets(reader: _Reader, wire: pb.QualityOfService) -> Targets | None:
    kind = wire.WhichOneof("targets")
    if kind is None:
        return None
    message = getattr(wire, kind)
    seconds = {}
    for name, argument in _TARGET_FIELDS[kind].items():
        path = f"qos.{kind}.{name}"
        value = to_seconds(getattr(message, name))
        if not message.HasField(name):
            reader.refuse(path, "is required")
        elif not value > 0:
            reader.refuse(path, f"must be positive, got {value:g} s")
        else:
            seconds[argument] = value
    complete = len(seconds) == len(_TARGET_FIELDS[kind])
    return Targets(**seconds) if complete else BEST_EFFORT  # the refusal stands either way


class Limits(NamedTuple):
    """What a prompt and its output must fit into, in tokens."""

    context_len: int
    kv_len: int
    eos_token_ids: frozenset[int]


def engine_requests(
    asked: Asked, prompt: Sequence[int], limits: Limits, seed: int, arrived_at: float
) -> list[Request]:
    """One engine request per completion. `seed` is used where none was given. Raises
    InvalidRequest for a prompt that leaves no room for output, or more than memory ever holds.
    """
    max_tokens = _max_tokens(asked, len(prompt), limits)
    sampling = dict(asked.sampling)
    seed = sampling.pop("seed", seed)
    sampling["min_tokens"] = min(sampling["min_tokens"], max_tokens)
    if not asked.ignore_eos:
        sampling["stop_token_ids"] = sampling["stop_token_ids"] | limits.eos_token_ids
    quality = asked.quality
    return [
        Request(
            id=asked.request_id if asked.n == 1 else f"{asked.request_id}/{i}",
            prompt=prompt,
            sampling=Sampling(**sampling, seed=(seed + i) % 2**SEED_BITS, max_tokens=max_tokens),
            arrived_at=arrived_at,
            targets=quality.targets,
            importance=quality.importance,
            tier=quality.tier,
            application=asked.application,
        )
        for i in range(asked.n)
    ]


def _max_tokens(asked: Asked, prompt_len: int, limits: Limits) -> int:
    field = asked.input.field
    if prompt_len < 1:
        raise InvalidRequest([Violation(field, "must hold at least one token")])
    context_room = limits.context_len - prompt_len
    kv_room = limits.kv_len - prompt_len
    for room, what, size in (
        (context_room, "the context length", limits.context_len),
        (kv_room, "the KV memory", limits.kv_len),
    ):
        if room < 1:
            text = f"prompt of {prompt_len} tokens leaves no room for output in {what} of {size}"
            raise InvalidRequest([Violation(field, text)])
    if asked.max_tokens is None:
        wanted = max(DEFAULT_MAX_TOKENS, asked.sampling["min_tokens"])
        return min(wanted, context_room, kv_room)
    most = min(asked.max_tokens, context_room)
    if most > kv_room:
        text = (
            f"{prompt_len} prompt tokens and {most} of output exceed the KV memory "
            f"of {limits.kv_len}"
        )
        raise InvalidRequest([Violation("sampling.max_tokens", text)])
    return most


def to_seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos * 1e-9


def to_duration(seconds: float) -> Duration:
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def _maybe(seconds: float | None) -> Duration | None:
    return None if seconds is None else to_duration(seconds)


def to_targets(quality: Resolved) -> pb.ResolvedTargets:
    targets = quality.targets
    return pb.ResolvedTargets(
        tier=quality.tier,
        ttft=_maybe(targets.ttft_s),
        tbt=_maybe(targets.tbt_s),
        ttlt=_maybe(targets.ttlt_s),
        importance=_TO_IMPORTANCE[quality.importance],
        source=_SOURCES[quality.source],
    )


def to_forecast(on_time: bool, ttft_s: float, ttlt_s: float) -> pb.Forecast:
    return pb.Forecast(on_time=on_time, ttft=to_duration(ttft_s), ttlt=to_duration(ttlt_s))


def to_accepted(
    request_id: str, quality: Resolved, prompt_len: int, event: Accepted
) -> pb.Accepted:
    return pb.Accepted(
        request_id=request_id,
        targets=to_targets(quality),
        prompt_tokens=prompt_len,
        forecast=to_forecast(event.on_time, event.predicted_ttft_s, event.predicted_ttlt_s),
    )


def to_logprobs(tokens: Iterable[Token]) -> list[pb.TokenLogprobs]:
    """Empty unless log probabilities were asked for."""
    return [
        pb.TokenLogprobs(
            logprob=token.logprob,
            top=[pb.TokenLogprob(token_id=i, logprob=value) for i, value in token.top],
        )
        for token in tokens
        if token.logprob is not None
    ]


def to_tokens(index: int, text: str, tokens: Sequence[Token]) -> pb.Tokens:
    return pb.Tokens(
        index=index,
        text=text,
        token_ids=[token.id for token in tokens],
        logprobs=to_logprobs(tokens),
    )


def to_relegated(index: int, event: Relegated) -> pb.Relegated:
    return pb.Relegated(
        index=index, reason=event.reason, expected_ttlt=to_duration(event.expected_ttlt_s)
    )


def to_finished(index: int, event: Finished, matched_stop: str, num_tokens: int) -> pb.Finished:
    """`num_tokens` were handed to the client: the engine may have been a token ahead of a stop."""
    return pb.Finished(
        index=index,
        reason=pb.FINISH_REASON_STOP if matched_stop else _REASONS[event.reason],
        matched_stop=matched_stop,
        usage=pb.Usage(
            prompt_tokens=event.prompt_tokens,
            cached_tokens=event.cached_tokens,
            output_tokens=num_tokens,
            preemptions=event.num_preemptions,
        ),
        timings=_to_timings(event.timings),
        targets=_to_results(event.targets, event.timings),
        relegated=event.relegated,
    )


def _to_timings(timings: Timings) -> pb.Timings:
    return pb.Timings(
        queue=_maybe(timings.queue_s),
        ttft=_maybe(timings.ttft_s),
        mean_tbt=_maybe(timings.mean_tbt_s),
        worst_tbt=_maybe(timings.worst_tbt_s),
        ttlt=_maybe(timings.ttlt_s),
    )


def _to_results(targets: Targets, timings: Timings) -> list[pb.TargetResult]:
    """A single token has no gap, so its TBT is met."""
    rows = (
        (pb.TARGET_NAME_TTFT, targets.ttft_s, timings.ttft_s, timings.ttft_met),
        (pb.TARGET_NAME_TBT, targets.tbt_s, timings.worst_tbt_s, timings.tbt_met is not False),
        (pb.TARGET_NAME_TTLT, targets.ttlt_s, timings.ttlt_s, timings.ttlt_met),
    )
    return [
        pb.TargetResult(name=name, target=_maybe(target), actual=_maybe(actual), met=bool(met))
        for name, target, actual, met in rows
        if target is not None
    ]


def to_completion(
    index: int, text: str, tokens: Sequence[Token], finished: pb.Finished
) -> pb.Completion:
    return pb.Completion(
        index=index,
        text=text,
        token_ids=[token.id for token in tokens],
        logprobs=to_logprobs(tokens),
        finished=finished,
    )


def to_tier(tier: Tier) -> pb.Tier:
    return pb.Tier(
        name=tier.name,
        ttft=_maybe(tier.targets.ttft_s),
        tbt=_maybe(tier.targets.tbt_s),
        ttlt=_maybe(tier.targets.ttlt_s),
        importance=_TO_IMPORTANCE[tier.importance],
    )


def to_server_info(
    version: str, info: EngineInfo, tiers: Tiers, limits: pb.Limits, has_chat_template: bool
) -> pb.GetServerInfoResponse:
    return pb.GetServerInfoResponse(
        version=version,
        model=pb.ModelInfo(
            name=info.model_name,
            architecture=info.architecture,
            context_length=info.context_len,
            vocabulary_size=info.vocab_size,
            parameters=info.num_parameters,
            dtype=info.dtype,
            device=info.device,
            has_chat_template=has_chat_template,
        ),
        policy=info.policy,
        tiers=[to_tier(tier) for tier in tiers.tiers.values()],
        default_tier=tiers.default,
        limits=limits,
    )
