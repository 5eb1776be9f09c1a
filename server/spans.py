"""What a trace shows of a request: where its time went, as spans, and decisions, as events.

All of it is what the engine remembers of the request (`engine.deciding.timeline`): nothing is timed
here. Instants are those of the engine's clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.deciding.timeline import Decision, Timeline

Value = str | float | int | bool
Attributes = Mapping[str, Value]
# What is told by the spans themselves, or is no decision.
_UNTOLD = frozenset({"chunk", "first_token", "finished", "waiting"})


class Event(NamedTuple):
    """Something that was decided about a request."""

    name: str
    at: float
    attributes: Attributes


class Span(NamedTuple):
    """A part of a request's life."""

    name: str
    began_at: float
    ended_at: float
    attributes: Attributes


def spans_of(timeline: Timeline, completion: int) -> list[Span]:
    """Returns where the time of one completion went: `queue`, `prefill` and `decode`, one after the
    other, as far as it came; nothing of a request whose end is not known.
    """
    end = timeline.end
    if end is None:
        return []
    arrived_at = timeline.request.arrived_at
    begun_at = end.at if end.queue_s is None else min(end.at, arrived_at + end.queue_s)
    first_at = end.at if end.ttft_s is None else min(end.at, max(begun_at, arrived_at + end.ttft_s))
    common: dict[str, Value] = {"niyama.completion": completion}
    budget = end.budget
    waited: dict[str, Value] = {
        "niyama.reading_s": budget.reading_s,
        "niyama.waiting_s": budget.waiting_s,
    }
    spans = [Span("queue", arrived_at, begun_at, common | waited)]
    if end.queue_s is not None:
        computed: dict[str, Value] = {
            "gen_ai.usage.input_tokens": len(timeline.request.prompt),
            "niyama.prefill_s": budget.prefill_s,
        }
        spans.append(Span("prefill", begun_at, first_at, common | computed))
    if end.ttft_s is not None:
        told: dict[str, Value] = {
            "gen_ai.usage.output_tokens": end.output_tokens,
            "niyama.held_s": budget.held_s,
            "niyama.holds": end.holds,
            "niyama.preemptions": end.preemptions,
        }
        if end.worst_tbt_s is not None:
            told["niyama.worst_tbt_s"] = end.worst_tbt_s
        spans.append(Span("decode", first_at, end.at, common | told))
    return spans


def events_of(timeline: Timeline, completion: int) -> list[Event]:
    """Returns the decisions that changed the fate of one completion, oldest first."""
    arrived_at = timeline.request.arrived_at
    return [
        Event(each.kind, each.at, {"niyama.completion": completion} | _said(each, arrived_at))
        for each in timeline.decisions
        if each.kind not in _UNTOLD
    ]


def _said(decision: Decision, arrived_at: float) -> dict[str, Value]:
    said: dict[str, Value] = {f"niyama.{name}": value for name, value in decision.values.items()}
    if decision.detail:
        said["niyama.detail"] = decision.detail
    if decision.predicted_at is not None:
        said["niyama.predicted_s"] = decision.predicted_at - arrived_at
    return said
