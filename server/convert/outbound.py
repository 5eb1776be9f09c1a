"""Turns the engine's values into response messages. Float seconds become the wire's durations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from google.protobuf.duration_pb2 import Duration

from engine.deciding.budget import Budget
from engine.deciding.forecast import Forecast
from engine.deciding.plan import Accepted, Finished, Relegated, Timings, Token
from engine.deciding.request import Request, Sampling, Targets
from engine.deciding.sequence import FinishReason
from engine.deciding.story import needed, rows, summary
from engine.deciding.timeline import Decision, Timeline
from engine.messages import EngineInfo
from engine.tiers import Least, Resolved, TargetSource, Tier, Tiers, shortfalls
from niyama.v1 import inference_pb2 as pb
from server.convert.inbound import IMPORTANCES
from server.errors import Refused

_SOURCES = {
    TargetSource.REQUEST: pb.TARGET_SOURCE_REQUEST,
    TargetSource.TIER: pb.TARGET_SOURCE_TIER,
    TargetSource.APPLICATION: pb.TARGET_SOURCE_APPLICATION,
    TargetSource.RPC_DEADLINE: pb.TARGET_SOURCE_RPC_DEADLINE,
    TargetSource.DEFAULT: pb.TARGET_SOURCE_DEFAULT,
    TargetSource.GATEWAY: pb.TARGET_SOURCE_GATEWAY,
    TargetSource.INFERRED: pb.TARGET_SOURCE_INFERRED,
}
_TO_IMPORTANCE = {value: key for key, value in IMPORTANCES.items()}
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def to_duration(seconds: float) -> Duration:
    """Returns the duration, to the nearest nanosecond."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def _maybe(seconds: float | None) -> Duration | None:
    return None if seconds is None else to_duration(seconds)


def to_targets(quality: Resolved) -> pb.ResolvedTargets:
    """Returns the targets that a request is served with, and where they came from."""
    targets = quality.targets
    return pb.ResolvedTargets(
        tier=quality.tier,
        ttft=_maybe(targets.ttft_s),
        tbt=_maybe(targets.tbt_s),
        ttlt=_maybe(targets.ttlt_s),
        importance=_TO_IMPORTANCE[quality.importance],
        source=_SOURCES[quality.source],
        reason=quality.reason,
    )


def to_forecast(on_time: bool, ttft_s: float, ttlt_s: float) -> pb.Forecast:
    """Returns what is expected of a request. Durations are in seconds from its arrival."""
    return pb.Forecast(on_time=on_time, ttft=to_duration(ttft_s), ttlt=to_duration(ttlt_s))


def to_accepted(
    request_id: str,
    quality: Resolved,
    prompt_len: int,
    event: Accepted,
    inferred: Resolved | None = None,
) -> pb.Accepted:
    """Returns a stream's message that the request is in the queue; `inferred` would have been its
    targets, had they been used.
    """
    return pb.Accepted(
        request_id=request_id,
        targets=to_targets(quality),
        prompt_tokens=prompt_len,
        forecast=to_forecast(event.on_time, event.predicted_ttft_s, event.predicted_ttlt_s),
        inferred=None if inferred is None else to_targets(inferred),
    )


def to_logprobs(tokens: Iterable[Token]) -> list[pb.TokenLogprobs]:
    """Returns the tokens' log probabilities; empty unless they were asked for."""
    return [
        pb.TokenLogprobs(
            logprob=token.logprob,
            top=[pb.TokenLogprob(token_id=i, logprob=value) for i, value in token.top],
        )
        for token in tokens
        if token.logprob is not None
    ]


def to_piece(index: int, text: str, tokens: Sequence[Token]) -> pb.GenerateStreamResponse:
    """Returns a stream's message for new output of completion `index`."""
    if len(tokens) == 1 and tokens[0].logprob is None:
        return _of_one_token(index, text, tokens[0].id)
    message = pb.GenerateStreamResponse()
    piece = message.tokens  # filled in where it is: a message that is passed in is copied
    piece.text = text
    piece.token_ids.extend([token.id for token in tokens])
    if index:
        piece.index = index
    if tokens and tokens[0].logprob is not None:
        piece.logprobs.extend(to_logprobs(tokens))
    return message


@lru_cache(maxsize=8192)
def _of_one_token(index: int, text: str, token_id: int) -> pb.GenerateStreamResponse:
    """Returns a stream's message for one token. It is by far the most frequent message, and there
    are few different ones, so each is made once, sent often, and never changed.
    """
    return pb.GenerateStreamResponse(
        tokens=pb.Tokens(index=index, text=text, token_ids=(token_id,))
    )


def to_relegated(index: int, event: Relegated) -> pb.Relegated:
    """Returns a stream's message that completion `index` was moved behind other requests."""
    return pb.Relegated(
        index=index, reason=event.reason, expected_ttlt=to_duration(event.expected_ttlt_s)
    )


def to_finished(index: int, event: Finished, matched_stop: str, num_tokens: int) -> pb.Finished:
    """Returns how a completion ended. `num_tokens` were handed to the client, perhaps fewer than
    the engine made: it may have been a token ahead of a stop string.
    """
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
    """Returns what came of each target. An output of one token has no gap, so its TBT is met."""
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


def to_estimate(
    quality: Resolved, forecast: Forecast, refusal: Refused | None
) -> pb.EstimateResponse:
    """Returns the answer to Estimate; `refusal` is why such a call would find no place now."""
    return pb.EstimateResponse(
        targets=to_targets(quality),
        forecast=to_forecast(forecast.on_time, forecast.ttft_s, forecast.ttlt_s),
        admission=to_admission(refusal),
    )


def to_admission(refusal: Refused | None) -> pb.Admission:
    """Returns whether a call would find a place in the queue now; with a refusal, why it would
    not.
    """
    if refusal is None:
        return pb.Admission(admitted=True)
    return pb.Admission(
        reason=refusal.refusal.value,
        detail=refusal.message,
        retry_after=to_duration(refusal.retry_after_s),
    )


def to_explanation(
    timeline: Timeline, is_operator: bool = False, from_decision_log: bool = False
) -> pb.ExplainResponse:
    """Returns the answer to Explain, as the operator or the request's own tenant may know it."""
    request, end = timeline.request, timeline.end
    budget = timeline.budget if end is None else end.budget
    return pb.ExplainResponse(
        request_id=request.name,
        targets=_to_told_targets(request),
        decisions=[_to_decision(each, request, is_operator) for each in timeline.decisions],
        summary=summary(timeline, is_operator),
        budget=None if budget is None else _to_budget(budget),
        needed=needed(timeline, is_operator),
        result="" if end is None else end.result.value,
        tenant=request.tenant,
        from_decision_log=from_decision_log,
        trace_id=request.trace_id,
    )


def _to_told_targets(request: Request) -> pb.ResolvedTargets:
    """Returns the targets of a request that was told of by the engine or, perhaps changed by
    somebody, by its log.
    """
    known = {source.value for source in TargetSource}
    source = request.target_source if request.target_source in known else TargetSource.REQUEST.value
    return to_targets(
        Resolved(
            request.targets,
            request.importance,
            TargetSource(source),
            request.tier,
            request.target_reason,
        )
    )


def _to_budget(budget: Budget) -> pb.TimeBudget:
    reading, waiting, prefill, decoding, held = (to_duration(ms / 1e3) for ms in budget.in_ms())
    return pb.TimeBudget(
        reading=reading, waiting=waiting, prefill=prefill, decoding=decoding, held=held
    )


def _to_decision(entry: Decision, request: Request, is_operator: bool) -> pb.Decision:
    arrived_at = request.arrived_at
    predicted = None if entry.predicted_at is None else entry.predicted_at - arrived_at
    return pb.Decision(
        at=to_duration(entry.at - arrived_at),
        kind=entry.kind,
        detail=entry.detail,
        predicted_at=_maybe(predicted),
        values=entry.values,
        ahead=[
            pb.WorkAhead(
                tier=row.tier,
                tenant=row.tenant,
                work=to_duration(row.seconds),
                beyond=to_duration(row.beyond_s),
            )
            for row in rows(entry, request, is_operator)
        ],
    )


def to_tier(tier: Tier, max_gap: float | None = None, least: Least | None = None) -> pb.Tier:
    """Returns a tier as GetServerInfo tells of it; `max_gap` holds where it has none itself, None
    where the policy knows no bound. `least` is what the engine can keep, None where nobody knows.
    """
    short = [] if least is None else shortfalls(tier.targets, least)
    has_gap = max_gap is not None and tier.targets.tbt_s is not None
    own_gap = tier.targets.max_gap
    return pb.Tier(
        name=tier.name,
        ttft=_maybe(tier.targets.ttft_s),
        tbt=_maybe(tier.targets.tbt_s),
        ttlt=_maybe(tier.targets.ttlt_s),
        importance=_TO_IMPORTANCE[tier.importance],
        max_gap=(max_gap if own_gap is None else own_gap) if has_gap else None,
        note="; ".join(map(str, short)),
    )


def to_sampling_defaults(sampling: Sampling) -> pb.SamplingDefaults:
    """Returns the sampling of requests that leave it out, as GetServerInfo tells of it."""
    return pb.SamplingDefaults(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=sampling.max_tokens,
    )


def to_server_info(
    version: str,
    info: EngineInfo,
    tiers: Tiers,
    limits: pb.Limits,
    sampling: Sampling,
    has_chat_template: bool,
) -> pb.GetServerInfoResponse:
    """Returns the answer to GetServerInfo."""
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
        tiers=[to_tier(tier, info.max_gap, info.least) for tier in tiers.tiers.values()],
        default_tier=tiers.default,
        limits=limits,
        sampling=to_sampling_defaults(sampling),
    )
