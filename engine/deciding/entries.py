"""What the record tells of a request, first and last: what it asked for, and how it ended."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from engine.deciding.budget import Account, Budget
from engine.deciding.outcome import Fate, fate
from engine.deciding.plan import Finished
from engine.deciding.request import Request
from engine.deciding.sequence import Sequence
from engine.deciding.timeline import End

Entry = dict[str, Any]  # what a sink gets: values that JSON has


class Unserved(NamedTuple):
    """A call that ended before the engine had its requests. Of a flood, `num_calls` calls of one
    tier, importance and share are told as one, from `request`, the first of them, until `until`:
    its prompt and `max_tokens` are then the means of all, and it has no name.

    The prompt is a `range`: as long as it was, or is estimated to have been.
    """

    request: Request
    fate: Fate
    reason: str  # as metrics and logs name it
    detail: str = ""
    until: float = 0.0  # when it ended
    num_calls: int = 1


def asked(request: Request) -> Entry:
    """Returns what a request asks for, without what it says nothing of."""
    targets = request.targets
    max_gap = targets.max_gap
    said = {
        "tier": request.tier,
        "application": request.application,
        "importance": request.importance.name.lower(),
        "share": request.share.name,
        "ttft_s": targets.ttft_s,
        "tbt_s": targets.tbt_s,
        "ttlt_s": targets.ttlt_s,
        "max_gap": "inf" if max_gap == math.inf else max_gap,
        "target_source": request.target_source or None,
        "target_reason": request.target_reason or None,
        "prompt_tokens": len(request.prompt),
        "max_tokens": request.sampling.max_tokens,
        "timeout_s": request.timeout_s,
        "trace_id": request.trace_id or None,
        "attempt": request.attempt if request.attempt > 1 else None,
        "refuse_if_late": request.refuse_if_late or None,
    }
    return {name: value for name, value in said.items() if value is not None}


def end_of(sequence: Sequence, event: Finished, account: Account, at: float) -> End:
    """Returns how a request has ended."""
    timings = event.timings
    return End(
        at=at,
        result=fate(sequence.request, event, at),
        reason=event.reason.value,
        detail=event.detail,
        output_tokens=event.output_tokens,
        budget=account.until(at),
        queue_s=timings.queue_s,
        ttft_s=timings.ttft_s,
        worst_tbt_s=timings.worst_tbt_s,
        ttlt_s=timings.ttlt_s,
        tbt_needed_s=sequence.tbt_needed_s,
        preemptions=event.num_preemptions,
        holds=account.num_holds,
    )


def unserved_end(call: Unserved) -> End:
    """Returns how a call has ended that never came to the engine."""
    budget = Budget(max(0.0, call.until - call.request.arrived_at), 0.0, 0.0, 0.0, 0.0)
    return End(call.until, call.fate, call.reason, call.detail, 0, budget)


def fared(event: Finished, end: End) -> Entry:
    """Returns what the log says of an end."""
    return {
        "result": end.result.value,
        "reason": end.reason,
        "output_tokens": end.output_tokens,
        "cached_tokens": event.cached_tokens,
        "ttft_s": end.ttft_s,
        "worst_tbt_s": end.worst_tbt_s,
        "ttlt_s": end.ttlt_s,
        "lived_s": end.budget.total_s,
        "relegated": event.relegated,
        "preemptions": end.preemptions,
        "queue_s": end.queue_s,
        "tbt_needed_s": end.tbt_needed_s,
        "holds": end.holds,
        **end.budget._asdict(),
    }
