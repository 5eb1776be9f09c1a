"""Turns the client's values into protobuf and back. Of the others only `load` reads a
message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from niyama.client import arguments, values
from niyama.client.arguments import shown
from niyama.client.errors import InvalidRequest
from niyama.client.options import Prompt, QosOptions
from niyama.v1 import inference_pb2 as pb

TENANT_KEY = "niyama-tenant"
TOKEN_KEY = "authorization"
_SAMPLING_SCALARS: dict[str, Callable[[object, str], object]] = {
    "temperature": arguments.number,
    "top_k": arguments.whole,
    "top_p": arguments.number,
    "min_p": arguments.number,
    "repetition_penalty": arguments.number,
    "presence_penalty": arguments.number,
    "frequency_penalty": arguments.number,
    "seed": arguments.whole,
    "max_tokens": arguments.whole,
    "min_tokens": arguments.whole,
    "ignore_eos": arguments.truth,
    "logprobs": arguments.whole,
    "n": arguments.whole,
}
_SAMPLING = {*_SAMPLING_SCALARS, "stop", "stop_token_ids"}
_QOS = set(QosOptions.__annotations__)
_IMPORTANCE = {
    values.Importance.LOW: pb.IMPORTANCE_LOW,
    values.Importance.NORMAL: pb.IMPORTANCE_NORMAL,
    values.Importance.HIGH: pb.IMPORTANCE_HIGH,
}
_IMPORTANCE_BACK = {number: importance for importance, number in _IMPORTANCE.items()}
_FINISH_REASON = {
    pb.FINISH_REASON_STOP: values.FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: values.FinishReason.LENGTH,
}


# To the wire


def to_metadata(tenant: str | None, token: str | None) -> tuple[tuple[str, str], ...] | None:
    """Returns the metadata by which a call names its tenant and shows its token, both checked; None
    where it does neither.
    """
    metadata: tuple[tuple[str, str], ...] = ()
    if token is not None:
        metadata += ((TOKEN_KEY, f"Bearer {token}"),)
    if tenant is not None:
        metadata += ((TENANT_KEY, tenant),)
    return metadata or None


def to_generate_request(prompt: Prompt, options: Mapping[str, object]) -> pb.GenerateRequest:
    """Returns the message of a unary call that generates. Raises InvalidRequest."""
    return pb.GenerateRequest(**_request_fields(prompt, options))


def to_stream_request(prompt: Prompt, options: Mapping[str, object]) -> pb.GenerateStreamRequest:
    """Returns the message of a streaming call that generates. Raises InvalidRequest."""
    return pb.GenerateStreamRequest(**_request_fields(prompt, options))


def to_count_request(prompt: Prompt) -> pb.CountTokensRequest:
    """Returns the message that asks for a prompt's tokens. Raises InvalidRequest."""
    return pb.CountTokensRequest(input=_to_input(prompt))


def to_explain_request(request_id: str) -> pb.ExplainRequest:
    """Returns the message that asks for the story of a request. Raises InvalidRequest."""
    return pb.ExplainRequest(request_id=arguments.text(request_id, "request_id"))


def to_load_request() -> pb.GetLoadRequest:
    """Returns the question how loaded the engine is."""
    return pb.GetLoadRequest()


def to_info_request() -> pb.GetServerInfoRequest:
    """Returns the message that asks what the server says of itself."""
    return pb.GetServerInfoRequest()


def to_estimate_request(
    prompt_tokens: int, output_tokens: int, qos: QosOptions
) -> pb.EstimateRequest:
    """Returns the message that asks what would become of a request. Raises InvalidRequest."""
    unknown = set(qos) - _QOS
    if unknown:
        raise TypeError(f"unknown argument: {', '.join(sorted(unknown))}")
    request = pb.EstimateRequest(qos=_to_qos(cast(Mapping[str, Any], qos)))
    for name, value in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        _set(request, name, arguments.whole(value, name), "")
    return request


def _request_fields(prompt: Prompt, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a request that generates. Options that are left out, or None, stay
    unset, so that the server's defaults hold.
    """
    unknown = set(options) - _SAMPLING - _QOS - {"request_id"}
    if unknown:
        raise TypeError(f"unknown argument: {', '.join(sorted(unknown))}")
    given = {name: value for name, value in options.items() if value is not None}
    fields: dict[str, Any] = {"input": _to_input(prompt)}
    if not _SAMPLING.isdisjoint(given):
        fields["sampling"] = _to_sampling(given)
    if not _QOS.isdisjoint(given):
        fields["qos"] = _to_qos(given)
    if "request_id" in given:
        fields["request_id"] = arguments.text(given["request_id"], "request_id")
    return fields


def _to_input(prompt: Prompt) -> pb.Input:
    if isinstance(prompt, str):
        return pb.Input(text=arguments.text(prompt, "input.text"))
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
        arguments.refuse(
            f"a prompt is text, token ids or chat messages, not {shown(prompt)}", "input"
        )
    if not prompt:
        arguments.refuse("the prompt is empty", "input")
    if isinstance(prompt[0], Mapping):
        return pb.Input(chat=pb.Chat(messages=[_to_message(message) for message in prompt]))
    ids = pb.TokenIds()
    _extend(ids, "ids", prompt, "input.token_ids.")
    return pb.Input(token_ids=ids)


def _to_message(message: object) -> pb.ChatMessage:
    role, content = arguments.message(message, "input.chat.messages")
    return pb.ChatMessage(role=role, content=content)


def _to_sampling(given: Mapping[str, Any]) -> pb.Sampling:
    sampling = pb.Sampling()
    for name, check in _SAMPLING_SCALARS.items():
        if name in given:
            _set(sampling, name, check(given[name], f"sampling.{name}"), "sampling.")
    sampling.stop.extend(arguments.texts(given.get("stop", ()), "sampling.stop"))
    _extend(sampling, "stop_token_ids", given.get("stop_token_ids", ()), "sampling.")
    return sampling


def _set(message: Message, name: str, value: object, path: str) -> None:
    """Sets a scalar field. Raises InvalidRequest, which names the field as protobuf does not."""
    try:
        setattr(message, name, value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{path}{name} cannot be {shown(value)}", path + name) from None


def _extend(message: Message, name: str, numbers: object, path: str) -> None:
    """Sets a field of several whole numbers. Raises InvalidRequest, naming the field."""
    field = path + name
    checked = arguments.wholes(numbers, field)
    try:
        getattr(message, name).extend(checked)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{field}: {error}", field) from None


def _to_qos(given: Mapping[str, Any]) -> pb.QualityOfService:
    qos = pb.QualityOfService()
    for name in ("tier", "application"):
        if given.get(name) is not None:
            setattr(qos, name, arguments.text(given[name], f"qos.{name}"))
    if given.get("refuse_if_late") is not None:
        qos.refuse_if_late = arguments.truth(given["refuse_if_late"], "qos.refuse_if_late")
    if given.get("importance") is not None:
        qos.importance = _to_importance(given["importance"])
    ttft, tbt, ttlt = (given.get(name) for name in ("ttft", "tbt", "ttlt"))
    asked = given.get("best_effort")
    best_effort = asked is not None and arguments.truth(asked, "qos.best_effort")
    explicit = (ttft is not None or tbt is not None) + (ttlt is not None) + best_effort
    if explicit > 1:
        raise InvalidRequest("ttft with tbt, ttlt and best_effort exclude each other", "qos")
    if ttft is not None or tbt is not None:
        if ttft is None or tbt is None:
            missing = "ttft" if ttft is None else "tbt"
            raise InvalidRequest(
                f"{missing} is required: ttft and tbt go together", f"qos.interactive.{missing}"
            )
        qos.interactive.ttft.CopyFrom(arguments.duration(ttft, "qos.interactive.ttft"))
        qos.interactive.tbt.CopyFrom(arguments.duration(tbt, "qos.interactive.tbt"))
    elif ttlt is not None:
        qos.deadline.ttlt.CopyFrom(arguments.duration(ttlt, "qos.deadline.ttlt"))
    elif best_effort:
        qos.best_effort.SetInParent()
    return qos


def _to_importance(importance: values.Importance | str) -> pb.Importance:
    try:
        return _IMPORTANCE[values.Importance(importance)]
    except ValueError:
        known = ", ".join(each.value for each in values.Importance)
        raise InvalidRequest(
            f"importance is one of {known}, not {shown(importance)}", "qos.importance"
        ) from None


# From protobuf


def _seconds(message: Message, field: str) -> float | None:
    """Returns the duration in that field in seconds; None where it is absent."""
    if not message.HasField(field):
        return None
    return cast(Duration, getattr(message, field)).ToNanoseconds() / 1e9


def _from_targets(message: pb.ResolvedTargets | pb.Tier) -> values.Targets:
    return values.Targets(
        ttft=_seconds(message, "ttft"), tbt=_seconds(message, "tbt"), ttlt=_seconds(message, "ttlt")
    )


def _from_importance(importance: int) -> values.Importance:
    return _IMPORTANCE_BACK.get(cast(pb.Importance, importance), values.Importance.NORMAL)


def _from_resolved(message: pb.ResolvedTargets) -> values.ResolvedTargets:
    return values.ResolvedTargets(
        _from_targets(message),
        message.tier,
        _from_importance(message.importance),
        _word(pb.TargetSource, message.source, "TARGET_SOURCE_"),
        message.reason,
    )


def _word(kind: Any, number: int, prefix: str) -> str:
    """Returns the name of a value of an enum, in small letters and without its prefix. A value that
    only a newer server knows is called by its number.
    """
    return (
        (kind.Name(number) if number in kind.values() else str(number)).removeprefix(prefix).lower()
    )


def _from_forecast(message: pb.Forecast) -> values.Forecast:
    return values.Forecast(message.on_time, _seconds(message, "ttft"), _seconds(message, "ttlt"))


def _from_logprobs(
    positions: Iterable[pb.TokenLogprobs],
) -> tuple[values.PositionLogprobs, ...]:
    return tuple(
        values.PositionLogprobs(
            position.logprob,
            tuple(values.TokenLogprob(each.token_id, each.logprob) for each in position.top),
        )
        for position in positions
    )


Event = values.Accepted | values.Tokens | values.Relegated | values.Finished


def from_stream_response(message: pb.GenerateStreamResponse) -> Event | None:
    """Returns the event that the message holds. None for a kind that only a newer server sends."""
    kind = message.WhichOneof("event")
    if kind == "tokens":
        tokens = message.tokens
        return values.Tokens(
            tokens.text, tuple(tokens.token_ids), _from_logprobs(tokens.logprobs), tokens.index
        )
    if kind == "accepted":
        accepted = message.accepted
        has_forecast = accepted.HasField("forecast")
        return values.Accepted(
            accepted.request_id,
            _from_resolved(accepted.targets),
            accepted.prompt_tokens,
            _from_forecast(accepted.forecast) if has_forecast else None,
            _from_resolved(accepted.inferred) if accepted.HasField("inferred") else None,
        )
    if kind == "relegated":
        relegated = message.relegated
        return values.Relegated(
            relegated.reason, _seconds(relegated, "expected_ttlt"), relegated.index
        )
    return _from_finished(message.finished) if kind == "finished" else None


def _from_finished(message: pb.Finished) -> values.Finished:
    usage, timings = message.usage, message.timings
    return values.Finished(
        reason=_FINISH_REASON.get(message.reason, values.FinishReason.STOP),
        matched_stop=message.matched_stop,
        usage=values.Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            preemptions=usage.preemptions,
        ),
        timings=values.Timings(
            queue=_seconds(timings, "queue"),
            ttft=_seconds(timings, "ttft"),
            mean_tbt=_seconds(timings, "mean_tbt"),
            worst_tbt=_seconds(timings, "worst_tbt"),
            ttlt=_seconds(timings, "ttlt"),
        ),
        targets=tuple(_from_target_result(result) for result in message.targets),
        relegated=message.relegated,
        index=message.index,
    )


def _from_target_result(message: pb.TargetResult) -> values.TargetResult:
    return values.TargetResult(
        name=_word(pb.TargetName, message.name, "TARGET_NAME_"),
        target=_seconds(message, "target") or 0.0,
        actual=_seconds(message, "actual"),
        met=message.met,
    )


def from_generate_response(message: pb.GenerateResponse) -> values.Result:
    """Returns the whole output of a unary call."""
    return values.Result(
        message.request_id,
        _from_resolved(message.targets),
        tuple(
            values.Completion(
                completion.text,
                tuple(completion.token_ids),
                _from_logprobs(completion.logprobs),
                _from_finished(completion.finished),
                completion.index,
            )
            for completion in message.completions
        ),
    )


def from_count_response(message: pb.CountTokensResponse) -> values.TokenCount:
    """Returns a prompt's tokens."""
    return values.TokenCount(message.count, tuple(message.token_ids))


def from_estimate_response(message: pb.EstimateResponse) -> values.Estimate:
    """Returns what would become of a request."""
    return values.Estimate(
        _from_resolved(message.targets), _from_forecast(message.forecast), _from_admission(message)
    )


def _from_admission(message: pb.EstimateResponse) -> values.Admission:
    """Returns what the server says of admission. An older server says nothing, and admits."""
    if not message.HasField("admission"):
        return values.Admission(admitted=True)
    said = message.admission
    return values.Admission(said.admitted, said.reason, said.detail, _seconds(said, "retry_after"))


def from_explain_response(message: pb.ExplainResponse) -> values.Explanation:
    """Returns the story of a request."""
    decisions = tuple(
        values.Decision(
            _seconds(decision, "at") or 0.0,
            decision.kind,
            decision.detail,
            _seconds(decision, "predicted_at"),
            dict(decision.values),
            tuple(map(_from_ahead, decision.ahead)),
        )
        for decision in message.decisions
    )
    return values.Explanation(
        request_id=message.request_id,
        targets=_from_resolved(message.targets),
        decisions=decisions,
        summary=message.summary,
        needed=tuple(message.needed),
        budget=_from_budget(message.budget) if message.HasField("budget") else None,
        result=message.result,
        tenant=message.tenant,
        from_decision_log=message.from_decision_log,
        trace_id=message.trace_id,
    )


def _from_ahead(ahead: pb.WorkAhead) -> values.WorkAhead:
    tenant = ahead.tenant if ahead.HasField("tenant") else None
    work, beyond = (_seconds(ahead, name) or 0.0 for name in ("work", "beyond"))
    return values.WorkAhead(ahead.tier, tenant, work, beyond)


def _from_budget(budget: pb.TimeBudget) -> values.TimeBudget:
    names = ("reading", "waiting", "prefill", "decoding", "held")
    return values.TimeBudget(*(_seconds(budget, name) or 0.0 for name in names))


def from_info_response(message: pb.GetServerInfoResponse) -> values.ServerInfo:
    """Returns what the server says of itself."""
    model, limits, sampling = message.model, message.limits, message.sampling
    return values.ServerInfo(
        version=message.version,
        model=values.Model(
            model.name,
            model.architecture,
            model.context_length,
            model.vocabulary_size,
            model.parameters,
            model.dtype,
            model.device,
            model.has_chat_template,
        ),
        policy=message.policy,
        tiers=tuple(
            values.Tier(
                tier.name,
                _from_targets(tier),
                _from_importance(tier.importance),
                tier.max_gap if tier.HasField("max_gap") else None,
                tier.note,
            )
            for tier in message.tiers
        ),
        default_tier=message.default_tier,
        limits=values.Limits(
            limits.max_requests,
            limits.max_batch_size,
            limits.kv_tokens,
            limits.max_message_bytes,
        ),
        sampling=values.SamplingDefaults(
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.max_tokens,
        ),
    )
