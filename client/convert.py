"""Protobuf from and to the client's own values. Nothing else in `client` reads a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from client import values
from client.errors import InvalidRequest
from client.options import Prompt, QosOptions
from proto.niyama.v1 import inference_pb2 as pb

TENANT_KEY = "niyama-tenant"
_SAMPLING_SCALARS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "min_tokens",
    "ignore_eos",
    "logprobs",
    "n",
)
_SAMPLING = {*_SAMPLING_SCALARS, "stop", "stop_token_ids"}
_QOS = {"tier", "ttft", "tbt", "ttlt", "best_effort", "importance", "application"}
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


def to_metadata(tenant: str) -> tuple[tuple[str, str], ...] | None:
    """What a call says of its caller. Raises InvalidRequest for a name that gRPC cannot carry."""
    if not (tenant.isascii() and tenant.isprintable()):
        raise InvalidRequest(f"a tenant is printable ASCII, got {tenant!r}", TENANT_KEY)
    return ((TENANT_KEY, tenant),) if tenant else None


def to_generate_request(prompt: Prompt, options: Mapping[str, object]) -> pb.GenerateRequest:
    return pb.GenerateRequest(**_request_fields(prompt, options))


def to_stream_request(prompt: Prompt, options: Mapping[str, object]) -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(**_request_fields(prompt, options))


def to_count_request(prompt: Prompt) -> pb.CountTokensRequest:
    return pb.CountTokensRequest(input=_to_input(prompt))


def to_explain_request(request_id: str) -> pb.ExplainRequest:
    return pb.ExplainRequest(request_id=request_id)


def to_info_request() -> pb.GetServerInfoRequest:
    return pb.GetServerInfoRequest()


def to_estimate_request(
    prompt_tokens: int, output_tokens: int, qos: QosOptions
) -> pb.EstimateRequest:
    unknown = set(qos) - _QOS
    if unknown:
        raise TypeError(f"unknown argument: {', '.join(sorted(unknown))}")
    request = pb.EstimateRequest(qos=_to_qos(cast(Mapping[str, Any], qos)))
    _set(request, "prompt_tokens", prompt_tokens, "")
    _set(request, "output_tokens", output_tokens, "")
    return request


def _request_fields(prompt: Prompt, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options left out or None stay unset, so that the server's defaults apply."""
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
        fields["request_id"] = given["request_id"]
    return fields


def _to_input(prompt: Prompt) -> pb.Input:
    if isinstance(prompt, str):
        return pb.Input(text=prompt)
    if not isinstance(prompt, Sequence):
        raise TypeError(f"a prompt is text, token ids or chat messages, not {type(prompt)}")
    if prompt and isinstance(prompt[0], Mapping):
        messages = cast(Sequence[Mapping[str, str]], prompt)
        return pb.Input(chat=pb.Chat(messages=[_to_message(message) for message in messages]))
    try:
        return pb.Input(token_ids=pb.TokenIds(ids=cast(Sequence[int], prompt)))
    except ValueError as error:
        raise InvalidRequest(f"input.token_ids.ids: {error}", "input.token_ids.ids") from None


def _to_message(message: Mapping[str, str]) -> pb.ChatMessage:
    if set(message) != {"role", "content"}:
        found = ", ".join(sorted(message)) or "nothing"
        raise InvalidRequest(
            f"a chat message has role and content, not {found}", "input.chat.messages"
        )
    return pb.ChatMessage(role=message["role"], content=message["content"])


def _to_sampling(given: Mapping[str, Any]) -> pb.Sampling:
    sampling = pb.Sampling()
    for name in _SAMPLING_SCALARS:
        if name in given:
            _set(sampling, name, given[name], "sampling.")
    stop = given.get("stop", ())
    sampling.stop.extend([stop] if isinstance(stop, str) else stop)
    sampling.stop_token_ids.extend(given.get("stop_token_ids", ()))
    return sampling


def _set(message: Message, name: str, value: object, path: str) -> None:
    """Sets a scalar field. Protobuf's own error for a bad value does not say which field it was."""
    try:
        setattr(message, name, value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{path}{name} cannot be {value!r}", path + name) from None


def _to_qos(given: Mapping[str, Any]) -> pb.QualityOfService:
    qos = pb.QualityOfService(
        tier=given.get("tier") or "", application=given.get("application") or ""
    )
    if given.get("importance") is not None:
        qos.importance = _to_importance(given["importance"])
    ttft, tbt, ttlt = (given.get(name) for name in ("ttft", "tbt", "ttlt"))
    best_effort = bool(given.get("best_effort"))
    explicit = (ttft is not None or tbt is not None) + (ttlt is not None) + best_effort
    if explicit > 1:
        raise InvalidRequest("ttft with tbt, ttlt and best_effort exclude each other", "qos")
    if ttft is not None or tbt is not None:
        if ttft is None or tbt is None:
            missing = "ttft" if ttft is None else "tbt"
            raise InvalidRequest(
                f"{missing} is required: ttft and tbt go together", f"qos.interactive.{missing}"
            )
        qos.interactive.ttft.CopyFrom(_to_duration(ttft, "qos.interactive.ttft"))
        qos.interactive.tbt.CopyFrom(_to_duration(tbt, "qos.interactive.tbt"))
    elif ttlt is not None:
        qos.deadline.ttlt.CopyFrom(_to_duration(ttlt, "qos.deadline.ttlt"))
    elif best_effort:
        qos.best_effort.SetInParent()
    return qos


def _to_importance(importance: values.Importance | str) -> pb.Importance:
    try:
        return _IMPORTANCE[values.Importance(importance)]
    except ValueError:
        known = ", ".join(each.value for each in values.Importance)
        raise InvalidRequest(
            f"importance is one of {known}, not {importance!r}", "qos.importance"
        ) from None


def _to_duration(seconds: float, field: str) -> Duration:
    """Any finite number of seconds to the nanosecond; whether it is positive the server judges."""
    duration = Duration()
    try:
        duration.FromNanoseconds(round(seconds * 1e9))
    except (ValueError, OverflowError, TypeError):
        raise InvalidRequest(f"{field} must be a number of seconds, got {seconds}", field) from None
    return duration


# From protobuf


def _seconds(message: Message, field: str) -> float | None:
    """The duration in that field in seconds; None where it is absent."""
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
    source = pb.TargetSource.Name(message.source).removeprefix("TARGET_SOURCE_").lower()
    return values.ResolvedTargets(
        _from_targets(message), message.tier, _from_importance(message.importance), source
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
    """The event; None for a kind that a newer server may send."""
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
            usage.prompt_tokens, usage.cached_tokens, usage.output_tokens, usage.preemptions
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
        name=pb.TargetName.Name(message.name).removeprefix("TARGET_NAME_").lower(),
        target=_seconds(message, "target") or 0.0,
        actual=_seconds(message, "actual"),
        met=message.met,
    )


def from_generate_response(message: pb.GenerateResponse) -> values.Result:
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
    return values.TokenCount(message.count, tuple(message.token_ids))


def from_estimate_response(message: pb.EstimateResponse) -> values.Estimate:
    return values.Estimate(_from_resolved(message.targets), _from_forecast(message.forecast))


def from_explain_response(message: pb.ExplainResponse) -> values.Explanation:
    decisions = tuple(
        values.Decision(
            _seconds(decision, "at") or 0.0,
            decision.kind,
            decision.detail,
            _seconds(decision, "predicted_at"),
            dict(decision.values),
        )
        for decision in message.decisions
    )
    return values.Explanation(
        message.request_id, _from_resolved(message.targets), decisions, message.summary
    )


def from_info_response(message: pb.GetServerInfoResponse) -> values.ServerInfo:
    model, limits = message.model, message.limits
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
            values.Tier(tier.name, _from_targets(tier), _from_importance(tier.importance))
            for tier in message.tiers
        ),
        default_tier=message.default_tier,
        limits=values.Limits(
            limits.max_requests,
            limits.max_batch_size,
            limits.kv_tokens,
            limits.max_message_bytes,
        ),
    )
