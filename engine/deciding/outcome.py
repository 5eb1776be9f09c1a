"""What became of a request: its timings, and which targets it met."""

from __future__ import annotations

from engine.deciding.plan import Finished, Timings
from engine.deciding.request import TargetKind
from engine.deciding.sequence import FinishReason, Sequence

CHOICE = "no token is left to pick: min_tokens forbids all that the model gives a chance"
LOGITS = "the model's logits are not finite (a broken checkpoint, or an overflow of its format)"


def expect_token(sequence: Sequence) -> bool:
    """The sequence's next token is being computed: what is due next is the one after it. Whether
    there can be none after it."""
    request, number = sequence.request, len(sequence.output) + 1
    sequence.num_in_flight = 1
    sequence.in_flight_due_at = sequence.due_at
    if request.targets.tbt_s is not None:
        sequence.due_at = request.token_due_at(number + 1)
    return number >= request.sampling.max_tokens


def note_token(sequence: Sequence, now: float) -> None:
    """The token in flight (now the newest of the output) came out at `now`."""
    sequence.num_in_flight = 0
    last = sequence.last_token_at
    if last is None:
        sequence.first_token_at = now
    else:
        if now - last > sequence.worst_tbt_s:
            sequence.worst_tbt_s = now - last
        if now > sequence.in_flight_due_at:
            sequence.num_late_tokens += 1
    sequence.last_token_at = now


def end_of(sequence: Sequence) -> FinishReason | None:
    """Whether the newest token of the output is the last, and why."""
    sampling, count = sequence.request.sampling, len(sequence.output)
    stops = sampling.stop_token_ids
    if stops and sequence.output[-1] in stops and count > sampling.min_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if count >= sampling.max_tokens else None


def timings(sequence: Sequence, now: float) -> Timings:
    """As of `now`, the end. Unmet, not unknown, is what a target without its tokens is."""
    request, arrived = sequence.request, sequence.request.arrived_at
    targets, kind = request.targets, request.targets.kind
    first, last, count = sequence.first_token_at, sequence.last_token_at, len(sequence.output)
    ttft = None if first is None else first - arrived
    ttlt = (last if last is not None else now) - arrived
    mean = None if first is None or last is None or count < 2 else (last - first) / (count - 1)
    complete = sequence.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    interactive, deadline = kind is TargetKind.INTERACTIVE, kind is TargetKind.DEADLINE
    return Timings(
        queue_s=None
        if sequence.first_scheduled_at is None
        else sequence.first_scheduled_at - arrived,
        ttft_s=ttft,
        mean_tbt_s=mean,
        worst_tbt_s=sequence.worst_tbt_s if count > 1 else None,
        ttlt_s=ttlt,
        ttft_met=ttft is not None and ttft <= (targets.ttft_s or 0.0) if interactive else None,
        tbt_met=first is not None and sequence.num_late_tokens == 0 if interactive else None,
        ttlt_met=complete and ttlt <= (targets.ttlt_s or 0.0) if deadline else None,
    )


def finished(sequence: Sequence, now: float, detail: str = "") -> Finished:
    """The last event of a sequence whose finish_reason is set."""
    assert sequence.finish_reason is not None
    return Finished(
        request_id=sequence.id,
        reason=sequence.finish_reason,
        prompt_tokens=sequence.prompt_len,
        cached_tokens=sequence.num_cached,
        output_tokens=len(sequence.output),
        targets=sequence.request.targets,
        relegated=sequence.num_relegations > 0,
        num_preemptions=sequence.num_preemptions,
        timings=timings(sequence, now),
        detail=detail,
    )
