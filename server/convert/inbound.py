"""Turns request messages into the engine's values, or says all that is wrong with them.

Reading a message checks everything that can be checked without a tokenizer, and names each bad
field by its path (`sampling.top_p`). What needs the prompt's tokens is checked by
`engine_requests`. Durations of the wire become float seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration

from engine.deciding.questions import Estimate
from engine.deciding.request import (
    BEST_EFFORT,
    EVERYBODY_ELSE,
    Importance,
    Request,
    Sampling,
    Share,
    Targets,
    key_of,
)
from engine.tiers import NO_GATEWAY, FromGateway, Inferred, Resolved, Tiers
from engine.tiers_file import MOST_NAME_BYTES
from niyama.v1 import inference_pb2 as pb
from server.convert.input import Bounds, Input, read_form
from server.violations import InvalidRequest, Violation, Violations

TENANT_KEY = "niyama-tenant"
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 256
MAX_N = 16
SEED_BITS = 64
MAX_DURATION_S = 315_576_000_000  # by the definition of google.protobuf.Duration

_LEAST_TIMEOUT_S = 1e-3  # of a call whose deadline has passed when it is read

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
IMPORTANCES = {
    pb.IMPORTANCE_LOW: Importance.LOW,
    pb.IMPORTANCE_NORMAL: Importance.NORMAL,
    pb.IMPORTANCE_HIGH: Importance.HIGH,
}


Metadata = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request, before its prompt is tokenized."""

    input: Input
    sampling: dict[str, Any]  # arguments of engine Sampling that are stated, without max_tokens
    max_tokens: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    n: int
    application: str
    quality: Resolved
    tenant: str = ""
    share: Share = EVERYBODY_ELSE
    timeout_s: float | None = None  # from the call's arrival to its deadline
    refuse_if_late: bool = False


class Limits(NamedTuple):
    """What the served model allows. A prompt and its output must fit into both lengths, in tokens.
    `sampling` holds for requests that leave it out.
    """

    context_len: int
    kv_len: int
    vocab_size: int  # a tokenizer may know more tokens than its model
    eos_token_ids: frozenset[int]
    sampling: Sampling = Sampling()


def read_generate(
    request: pb.GenerateRequest | pb.GenerateStreamRequest,
    tiers: Tiers,
    vocab_size: int,
    timeout_s: float | None,
    tenant: str = "",
    bounds: Bounds | None = None,
    prompt: Input | None = None,
    gateway: FromGateway = NO_GATEWAY,
    inferred: Inferred | None = None,
) -> Asked:
    """Checks a message that asks for output, of a tenant. Raises InvalidRequest, and NotAllowed
    where it states what the tenant may not have.

    `timeout_s` is from the call's arrival to its deadline. `prompt` is the message's input, where
    it was read before; else it is read here, and must keep to `bounds`. `gateway` is what one says
    of the call, `inferred` what is for one of which nobody states targets.
    """
    reader = Violations()
    _check_name(reader, "request_id", request.request_id)
    prompt = prompt or read_form(reader, request.input, bounds or Bounds(vocab_size))
    sampling = _read_sampling(reader, request.sampling, vocab_size)
    quality = _read_quality(reader, request.qos, tiers, timeout_s, tenant, gateway, inferred)
    reader.finish()
    assert quality is not None
    wire = request.sampling
    return Asked(
        input=prompt,
        sampling=sampling,
        max_tokens=wire.max_tokens if wire.HasField("max_tokens") else None,
        stop=tuple(wire.stop),
        ignore_eos=wire.ignore_eos,
        n=wire.n if wire.HasField("n") else 1,
        application=request.qos.application,
        quality=quality,
        tenant=tenant,
        share=tiers.share_of(tenant),
        timeout_s=None if timeout_s is None else max(_LEAST_TIMEOUT_S, timeout_s),
        refuse_if_late=request.qos.refuse_if_late,
    )


def read_quality(
    request: pb.GenerateRequest | pb.GenerateStreamRequest,
    tiers: Tiers,
    timeout_s: float | None,
    tenant: str = "",
    gateway: FromGateway = NO_GATEWAY,
) -> Resolved | None:
    """Returns what a message that is not to be served asks for; None where it says nothing good of
    that. Raises NotAllowed.
    """
    reader = Violations()
    quality = _read_quality(reader, request.qos, tiers, timeout_s, tenant, gateway)
    return None if reader else quality


def read_estimate(
    request: pb.EstimateRequest,
    tiers: Tiers,
    limits: Limits,
    tenant: str = "",
    gateway: FromGateway = NO_GATEWAY,
) -> tuple[Estimate, Resolved]:
    """Returns the question that the message puts to the engine, and the targets with which such a
    request is served. The call's own deadline says nothing about those. Raises InvalidRequest, and
    NotAllowed.
    """
    reader = Violations()
    prompt_len, output_len = request.prompt_tokens, request.output_tokens
    room = min(limits.context_len, limits.kv_len) - prompt_len
    if prompt_len < 1:
        reader.refuse("prompt_tokens", "must be at least 1")
    elif room < 1:
        reader.refuse("prompt_tokens", f"must be below {room + prompt_len}, got {prompt_len}")
    elif output_len > room:
        reader.refuse("output_tokens", f"must be at most {room} with such a prompt")
    quality = _read_quality(reader, request.qos, tiers, None, tenant, gateway)
    reader.finish()
    assert quality is not None
    question = Estimate(
        prompt_len=prompt_len,
        output_len=output_len or None,
        targets=quality.targets,
        application=request.qos.application,
        importance=quality.importance,
        tier=quality.tier,
        tenant=tenant,
        share=tiers.share_of(tenant),
        default_output_len=min(limits.sampling.max_tokens, room),
    )
    return question, quality


def read_request_id(request: pb.ExplainRequest) -> str:
    """Returns the id that the message asks about. Raises InvalidRequest where it states none."""
    reader = Violations()
    _check_name(reader, "request_id", request.request_id)
    if not request.request_id:
        reader.refuse("request_id", "is required")
    reader.finish()
    return request.request_id


def read_tenant(metadata: Metadata, gateway_tenant: str = "") -> str:
    """Returns the tenant that a call's metadata names, else the one that a gateway names, "" where
    neither does. Raises InvalidRequest.
    """
    names = [value for key, value in metadata if key == TENANT_KEY]
    if not names:
        return gateway_tenant
    reader = Violations()
    if len(names) > 1:
        reader.refuse(TENANT_KEY, "must be given once")
    _check_name(reader, TENANT_KEY, names[0])
    reader.finish()
    return names[0]


def names_tenant(metadata: Metadata) -> bool:
    """Returns whether a call's metadata names a tenant, be it the nameless one."""
    return any(key == TENANT_KEY for key, _ in metadata)


def _check_name(reader: Violations, field: str, name: str) -> None:
    if len(name.encode()) > MOST_NAME_BYTES:
        reader.refuse(field, f"must be at most {MOST_NAME_BYTES} bytes")
    elif not (name.isascii() and name.isprintable()):
        reader.refuse(field, "must be printable ASCII")


def _read_sampling(reader: Violations, wire: pb.Sampling, vocab_size: int) -> dict[str, Any]:
    """Returns the arguments for the engine's `Sampling` that the message states, without
    max_tokens, whose default depends on the prompt.
    """
    check_stops(reader, wire, vocab_size)
    if wire.HasField("n") and not 1 <= wire.n <= MAX_N:
        reader.refuse("sampling.n", f"must be between 1 and {MAX_N}, got {wire.n}")
    read = {name: getattr(wire, name) for name in _FLOATS if wire.HasField(name)}
    if wire.HasField("top_k"):
        read["top_k"] = min(wire.top_k, vocab_size)
    read["min_tokens"] = wire.min_tokens
    read |= {"stop_token_ids": frozenset(wire.stop_token_ids[:MAX_STOP_TOKENS])}
    for name in ("seed", "logprobs"):
        if wire.HasField(name):
            read[name] = getattr(wire, name)
    most = wire.max_tokens if wire.HasField("max_tokens") else max(1, wire.min_tokens)
    if not _is_valid(read | {"max_tokens": most}):
        # One at a time, so that each bad field is named; min_tokens only beside its limit.
        fields = [{name: value} for name, value in read.items() if name != "min_tokens"]
        for arguments in [*fields, {"max_tokens": most}]:
            _check_sampling(reader, arguments)
        if most:
            _check_sampling(reader, {"max_tokens": most, "min_tokens": wire.min_tokens})
    return read


def _is_valid(arguments: dict[str, Any]) -> bool:
    try:
        Sampling(**arguments)
    except ValueError:
        return False
    return True


def _check_sampling(reader: Violations, arguments: dict[str, Any]) -> None:
    """Refuses what the engine's `Sampling` refuses. Its error begins with the field's name."""
    try:
        Sampling(**arguments)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        reader.refuse(f"sampling.{name}", rest)


def check_stops(reader: Violations, wire: pb.Sampling, vocab_size: int) -> None:
    """Refuses stop strings and stop tokens that are too many, too long or unknown. A list that is
    too long is not looked into.
    """
    if len(wire.stop) > MAX_STOPS:
        reader.refuse("sampling.stop", f"must be at most {MAX_STOPS} texts, got {len(wire.stop)}")
    else:
        for i, text in enumerate(wire.stop):
            if not 1 <= len(text.encode()) <= MAX_STOP_BYTES:
                reader.refuse(f"sampling.stop[{i}]", f"must be 1 to {MAX_STOP_BYTES} bytes long")
    if (count := len(wire.stop_token_ids)) > MAX_STOP_TOKENS:
        reader.refuse("sampling.stop_token_ids", f"must be at most {MAX_STOP_TOKENS}, got {count}")
    else:
        for i, token in enumerate(wire.stop_token_ids):
            if token >= vocab_size:
                reader.refuse(f"sampling.stop_token_ids[{i}]", f"must be below {vocab_size}")


def _read_quality(
    reader: Violations,
    wire: pb.QualityOfService,
    tiers: Tiers,
    timeout_s: float | None,
    tenant: str,
    gateway: FromGateway,
    inferred: Inferred | None = None,
) -> Resolved | None:
    _check_name(reader, "qos.tier", wire.tier)
    _check_name(reader, "qos.application", wire.application)
    if wire.importance and wire.importance not in IMPORTANCES:
        reader.refuse("qos.importance", f"unknown value {wire.importance}")
    explicit = _read_targets(reader, wire)
    if explicit is not None and wire.tier:
        reader.refuse("qos.tier", "cannot be combined with explicit targets")
    importance = IMPORTANCES.get(wire.importance)
    try:
        rights = tiers.rights_of(tenant)
        return tiers.resolve(
            *(explicit, wire.tier, wire.application, timeout_s, importance),
            gateway,
            inferred,
            rights,
        )
    except ValueError as error:
        reader.refuse("qos.tier", str(error))
        return None


def _read_targets(reader: Violations, wire: pb.QualityOfService) -> Targets | None:
    kind = wire.WhichOneof("targets")
    if kind is None:
        return None
    message = getattr(wire, kind)
    seconds = {}
    for name, argument in _TARGET_FIELDS[kind].items():
        path = f"qos.{kind}.{name}"
        duration = getattr(message, name)
        value = to_seconds(duration)
        if not message.HasField(name):
            reader.refuse(path, "is required")
        elif not (0 <= duration.nanos < 10**9 and duration.seconds <= MAX_DURATION_S):
            reader.refuse(path, "is not a valid google.protobuf.Duration above 0")
        elif not value > 0:
            reader.refuse(path, f"must be positive, got {value:g} s")
        else:
            seconds[argument] = value
    complete = len(seconds) == len(_TARGET_FIELDS[kind])
    return Targets(**seconds) if complete else BEST_EFFORT  # the refusal stands either way


def engine_requests(
    asked: Asked,
    request_id: str,
    prompt: Sequence[int],
    limits: Limits,
    seed: int,
    arrived_at: float,
    trace_id: str = "",
) -> list[Request]:
    """Returns the engine's requests, one for each completion. `request_id` and `seed` are the
    call's own, or made for it.

    Raises InvalidRequest for a prompt that leaves no room for output, for more than the memory
    holds, and for a token that the model does not know.
    """
    max_tokens = _max_tokens(asked, len(prompt), limits)
    if (largest := max(prompt)) >= limits.vocab_size:
        text = f"holds token {largest}; the model knows those below {limits.vocab_size}"
        raise InvalidRequest([Violation(asked.input.field, text)])
    stated = dict(asked.sampling)
    seed = stated.pop("seed", seed)
    stated["min_tokens"] = min(stated["min_tokens"], max_tokens)
    if not asked.ignore_eos:
        stated["stop_token_ids"] = stated["stop_token_ids"] | limits.eos_token_ids
    sampling = replace(limits.sampling, **stated, max_tokens=max_tokens)
    if sampling.min_tokens and not _leaves_a_token(sampling.stop_token_ids, limits.vocab_size):
        text = "must be 0 where every token of the model ends the output"
        raise InvalidRequest([Violation("sampling.min_tokens", text)])
    quality = asked.quality
    return [
        Request(
            id=key_of(asked.tenant, request_id, None if asked.n == 1 else i),
            prompt=prompt,
            sampling=replace(sampling, seed=(seed + i) % 2**SEED_BITS),
            arrived_at=arrived_at,
            targets=quality.targets,
            importance=quality.importance,
            tier=quality.tier,
            application=asked.application,
            tenant=asked.tenant,
            target_source=quality.source.value,
            target_reason=quality.reason,
            share=asked.share,
            timeout_s=asked.timeout_s,
            trace_id=trace_id,
            refuse_if_late=asked.refuse_if_late,
            num_after=asked.n - 1 - i,
        )
        for i in range(asked.n)
    ]


def _leaves_a_token(stop_ids: frozenset[int], vocab_size: int) -> bool:
    return len(stop_ids) < vocab_size or not stop_ids.issuperset(range(vocab_size))


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
        wanted: int = max(limits.sampling.max_tokens, asked.sampling["min_tokens"])
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
    """Returns the duration in seconds."""
    return duration.seconds + duration.nanos * 1e-9
