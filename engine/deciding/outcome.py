"""What became of a request: its timings, which targets it met, and its fate in a word."""

from __future__ import annotations

from enum import Enum

from engine.deciding.plan import Finished, Timings
from engine.deciding.request import Request, TargetKind
from engine.deciding.sequence import FinishReason, Sequence


class Fate(Enum):
    """What became of a request, as the decision log names it."""

    ON_TIME = "on_time"  # it ended by itself, and every target was met
    LATE = "late"  # it ended by itself, or its caller left when it was overdue
    EXPIRED = "expired"  # its own deadline passed
    REFUSED = "refused"  # there was no place for it, or it gave its place to others
    CANCELLED = "cancelled"  # its caller left with nothing overdue
    FAILED = "failed"
    BEST_EFFORT = "best_effort"  # it ended by itself, and had no target


# What counts against attainment; cancelled and best effort do neither for it nor against it.
MISSES = (Fate.LATE, Fate.EXPIRED, Fate.REFUSED, Fate.FAILED)


_FATES = {
    FinishReason.TIMEOUT: Fate.EXPIRED,
    FinishReason.DISPLACED: Fate.REFUSED,
    FinishReason.REJECTED: Fate.REFUSED,
    FinishReason.WOULD_BE_LATE: Fate.REFUSED,
    FinishReason.ERROR: Fate.FAILED,
}

# What `Finished.detail` says of an ERROR.
CHOICE = "no token is left to pick: min_tokens forbids all that the model gives a chance"
LOGITS = "the model's logits are not finite (a broken checkpoint, or an overflow of its format)"


def timings(sequence: Sequence, now: float) -> Timings:
    """Returns the timings of a request that ends at `now`, and which of its targets were met. A
    target for which the tokens never came counts as not met.
    """
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


def finished(
    sequence: Sequence,
    now: float,
    detail: str = "",
    retry_s: float = 0.0,
    expected: tuple[float, float] | None = None,
) -> Finished:
    """Returns the last event of a sequence that has ended; `detail` says what went wrong, if
    anything, `retry_s` when to try again, and `expected` what was expected of it.
    """
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
        retry_s=retry_s,
        expected=expected,
    )


def fate(request: Request, event: Finished, now: float) -> Fate:
    """Returns what became of a request that has ended at `now`, as far as the engine knows it."""
    if event.reason in _FATES:
        return _FATES[event.reason]
    if event.reason is FinishReason.CANCELLED:
        return Fate.LATE if now > request.token_due_at(event.output_tokens + 1) else Fate.CANCELLED
    if request.targets.kind is TargetKind.BEST_EFFORT:
        return Fate.BEST_EFFORT
    return Fate.ON_TIME if is_on_time(event) else Fate.LATE


def is_on_time(event: Finished) -> bool:
    """Says whether the request ended by itself and met all of its targets."""
    met = event.timings
    complete = event.reason in (FinishReason.STOP, FinishReason.LENGTH)
    return complete and False not in (met.ttft_met, met.tbt_met, met.ttlt_met)
