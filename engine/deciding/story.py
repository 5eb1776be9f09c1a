"""Puts a timeline in words: was the request late, why, and what would have had to be different.

Every figure is one of the timeline, or a sum or difference of such. Other tenants are named to the
operator alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from engine.deciding.budget import Budget
from engine.deciding.outcome import Fate
from engine.deciding.request import Importance, Request, TargetKind
from engine.deciding.sequence import FinishReason
from engine.deciding.timeline import Decision, End, Timeline

GAVE_PLACE = "it gave its place to more important work"
IN_WORDS = ("reading it", "waiting", "its prefill", "decoding", "being held")  # of a Budget
LONG_S = 10.0  # from here on durations are told in seconds
SLOWER = 1.1  # than predicted: worth telling

_CALLER_LEFT = FinishReason.CANCELLED.value


class Row(NamedTuple):
    """Work ahead as one who asks may know it. `tenant` is None for several that are told as one:
    other tenants', where these are not named, and what is left beside the largest.
    """

    tier: str
    tenant: str | None
    seconds: float
    beyond_s: float = 0.0


def rows(decision: Decision, request: Request, is_operator: bool) -> list[Row]:
    """Returns whose work was ahead of the request, which makes up `ahead_s`."""
    found: dict[tuple[str, str | None], Row] = {}
    for each in decision.ahead:
        is_named = is_operator or each.share == request.share.name
        key = each.tier, each.share if is_named else None
        before = found.get(key, Row(*key, 0.0))
        found[key] = Row(*key, before.seconds + each.seconds, before.beyond_s + each.beyond_s)
    told = list(found.values())
    rest_s = decision.values.get("ahead_s", 0.0) - sum(row.seconds for row in told)
    return [*told, Row("", None, rest_s)] if told and rest_s >= 0.5e-3 else told


# Summary


def summary(timeline: Timeline, is_operator: bool = False) -> str:
    """Tells a person in one paragraph what became of a request, and why."""
    end = timeline.end
    if end is None:
        return " ".join(_in_flight(timeline, is_operator))
    what = head(timeline, end)
    if end.result is Fate.LATE and end.reason != _CALLER_LEFT:
        return " ".join([what, *_causes(timeline, end, is_operator)])
    if end.result in (Fate.LATE, Fate.EXPIRED):
        return " ".join([what, _spent(end.budget), *_decided(timeline, end, is_operator)])
    if end.result is Fate.CANCELLED:
        return f"{what} {_spent(end.budget)}"
    return what


def _in_flight(timeline: Timeline, is_operator: bool) -> Iterator[str]:
    if timeline.budget is None:
        yield timeline.note or "in flight"
        return
    yield f"in flight. {_spent(timeline.budget)}"
    for decision in timeline.decisions:
        if decision.kind == "relegated":
            yield f"It was relegated: {decision.detail}."
    if (waiting := _last(timeline.decisions, "waiting")) is not None:
        told = _told(waiting, timeline.request, is_operator)
        yield f"Now {_time(waiting.values['ahead_s'])} of work is ahead of it{told}."


def head(timeline: Timeline, end: End) -> str:
    """Returns what became of it, in a sentence."""
    lived = _time(end.budget.total_s)
    tokens = f"{end.output_tokens} tokens"
    match end.result:
        case Fate.ON_TIME:
            return f"On time: every target was met; complete after {_time(end.ttlt_s)}."
        case Fate.BEST_EFFORT:
            return f"Best effort; complete after {_time(end.ttlt_s)}."
        case Fate.REFUSED:
            if end.reason == FinishReason.DISPLACED.value:
                return f"Refused after {lived} of waiting: {end.detail or GAVE_PLACE}."
            return f"Refused on arrival: {end.detail or end.reason}."
        case Fate.FAILED:
            return f"Failed: {end.detail or 'its call ended with an error'}."
        case Fate.CANCELLED:
            return f"Cancelled by its caller after {lived} and {tokens}, with nothing overdue."
        case Fate.EXPIRED:
            timeout_s = timeline.request.timeout_s
            stated = "" if timeout_s is None else f" of {_time(timeout_s)}"
            return f"Expired: its deadline{stated} passed {_stage(end)}."
    if end.reason == _CALLER_LEFT:
        due_s = end.at - timeline.request.token_due_at(end.output_tokens + 1)
        late = f"{_time(due_s)} after the next was due"
        return f"Late: its caller left after {lived} and {tokens}, {late}."
    return "Late: " + "; ".join(text for text, _ in _missed(timeline.request, end)) + "."


def _stage(end: End) -> str:
    """Says how far it had come."""
    if end.output_tokens:
        return f"after {end.output_tokens} tokens"
    if end.budget.prefill_s > 0:
        return "during its prefill"
    return "while it waited" if end.budget.waiting_s > 0 else "before the engine had it"


def _missed(request: Request, end: End) -> list[tuple[str, float]]:
    """Lists the targets that were missed, each with what was asked and what came, and by how much
    what came was too late; of the pace that is not known.
    """
    targets = request.targets
    missed = []
    if targets.ttft_s is not None and end.ttft_s is not None and end.ttft_s > targets.ttft_s:
        text = f"TTFT was {_time(end.ttft_s)} against a target of {_time(targets.ttft_s)}"
        missed.append((text, end.ttft_s - targets.ttft_s))
    if targets.ttlt_s is not None and end.ttlt_s is not None and end.ttlt_s > targets.ttlt_s:
        text = f"TTLT was {_time(end.ttlt_s)} against a target of {_time(targets.ttlt_s)}"
        missed.append((text, end.ttlt_s - targets.ttlt_s))
    is_paced = (end.tbt_needed_s or 0.0) <= (targets.tbt_s or 0.0)
    if end.tbt_needed_s is not None and not (missed and is_paced):  # else the first alone was late
        text = (
            f"tokens came later than {_time(targets.ttft_s)} + n * {_time(targets.tbt_s)}"
            f" (longest gap {_time(end.worst_tbt_s)})"
        )
        missed.append((text, 0.0))
    return missed


def _spent(budget: Budget) -> str:
    """Says where the time went, in whole milliseconds that add up."""
    parts = budget.in_ms()
    told = [f"{ms:,} ms on {name}" for name, ms in zip(IN_WORDS, parts, strict=True) if ms]
    if not told:
        return "It took no time."
    return f"Of its {sum(parts):,} ms, {_and(told).replace(' on', ' went on', 1)}."


def _causes(timeline: Timeline, end: End, is_operator: bool) -> Iterator[str]:
    """Tells what can have made a request late."""
    yield _spent(end.budget)
    told = list(_decided(timeline, end, is_operator))
    yield from told
    if not told:
        yield "No decision made it so: iterations took longer than predicted."


def _decided(timeline: Timeline, end: End, is_operator: bool) -> Iterator[str]:
    """Tells the decisions that can have made a request late."""
    request = timeline.request
    for decision in timeline.decisions:
        told = _told(decision, request, is_operator)
        if decision.kind == "relegated":
            yield f"It was relegated: {decision.detail}."
            if told:
                yield f"From then on {_time(decision.values['ahead_s'])} was ahead{told}."
        elif decision.kind == "restarted":
            yield f"It was begun again: {decision.detail}."
        elif decision.kind == "admitted" and not decision.values.get("on_time", 1.0):
            chance = decision.values.get("late_chance", 1.0)
            yield (
                f"Already at admission {_time(decision.values.get('ahead_s'))} of work was ahead,"
                f" and its chance of being late {chance:.0%}{told}."
            )
        elif decision.kind == "admitted" and told:
            yield f"At admission {_time(decision.values['ahead_s'])} of work was ahead{told}."
    if end.preemptions:
        lost = sum(d.values.get("tokens_lost", 0.0) for d in timeline.decisions)
        times = f"{end.preemptions} time(s)"
        yield f"Its memory was taken {times}, and {lost:.0f} tokens computed again."
    if end.holds:
        yield (
            f"It sat out {end.holds} time(s), for {_time(end.budget.held_s)} in all, as tokens of"
            " others were due."
        )
    if end.queue_s is not None and end.ttlt_s and end.queue_s > end.ttlt_s / 2:
        yield f"It waited {_time(end.queue_s)} before the engine began with it."
    took_s, predicted_s = _prefill(timeline.decisions)
    if took_s > SLOWER * predicted_s > 0:
        yield f"Its prefill took {_time(took_s)} where {_time(predicted_s)} was predicted."


def _prefill(decisions: Iterable[Decision]) -> tuple[float, float]:
    """Returns what the iterations with its chunks took, and what had been predicted."""
    values = [d.values for d in decisions if d.kind == "chunk"]
    return sum(v.get("took_s", 0.0) for v in values), sum(v.get("expected_s", 0.0) for v in values)


def _told(decision: Decision, request: Request, is_operator: bool) -> str:
    """Says whose work was ahead; "" where that is not known. Where no tenant has a share of its
    own, none is spoken of.
    """
    found = rows(decision, request, is_operator)
    if all(row.tenant == "" for row in found):
        told = [f"{_time(row.seconds)} {_of_tier(row)}" for row in found]
    else:
        told = [_of_whom(row, request, is_operator) for row in found]
    return f": {_and(told)}" if told else ""


def _of_tier(row: Row) -> str:
    return f"tier {row.tier}" if row.tier else "of requests with their own targets"


def _of_whom(row: Row, request: Request, is_operator: bool) -> str:
    tier = f"tier {row.tier} " if row.tier else ""
    much = "all" if row.beyond_s > (1 - 1e-9) * row.seconds else _time(row.beyond_s)
    beyond = f" ({much} of it beyond its part)" if row.beyond_s > 0 else ""
    if row.tenant is None:
        whom = "of others" if is_operator or not row.tier else "of other tenants"
    elif row.tenant == "":
        whom = "of tenants without a share of their own"
    elif row.tenant == request.share.name and not is_operator:
        whom = "of its own tenant"
    else:
        whom = f"of tenant {row.tenant}"
    return f"{_time(row.seconds)} {tier}{whom}{beyond}"


# What would have had to be different


def needed(timeline: Timeline, is_operator: bool = False) -> list[str]:
    """Says what would have had to be different for a request to be on time: only what follows from
    what was recorded. Empty where it was on time or nothing follows.
    """
    end = timeline.end
    if end is None or end.result not in (Fate.LATE, Fate.EXPIRED, Fate.REFUSED):
        return []
    told = [*_targets_met(timeline.request, end), *_less_ahead(timeline, end, is_operator)]
    return [*told, *_more_important(timeline)]


def _targets_met(request: Request, end: End) -> Iterator[str]:
    """Says which targets what came would have met."""
    targets = request.targets
    if targets.ttft_s is not None and targets.tbt_s is not None and end.ttft_s is not None:
        stated = []
        if end.ttft_s > targets.ttft_s:
            stated.append(f"TTFT of {_time(end.ttft_s)}")
        if (end.tbt_needed_s or 0.0) > targets.tbt_s:
            stated.append(f"TBT of {_time(end.tbt_needed_s)}")
        if stated:
            yield f"A {' and a '.join(stated)} would have been met."
    is_complete = end.reason in (FinishReason.STOP.value, FinishReason.LENGTH.value)
    if targets.ttlt_s is not None and is_complete and (end.ttlt_s or 0.0) > targets.ttlt_s:
        yield f"A TTLT of {_time(end.ttlt_s)} would have been met."


def _less_ahead(timeline: Timeline, end: End, is_operator: bool) -> Iterator[str]:
    """Says how much less would have had to be before it."""
    request, admitted = timeline.request, _last(timeline.decisions, "admitted")
    waited_s = _waited_s(timeline, end)
    for text, by_s in _missed(request, end):
        name = text.partition(" ")[0]
        if by_s <= 0:
            continue
        if by_s > waited_s:
            yield (
                f"Without any waiting its {name} would still have been late, by"
                f" {_time(by_s - waited_s)}."
            )
            continue
        less = f"With {_time(by_s)} less of waiting (of {_time(waited_s)})"
        yield f"{less} its {name} would have been met."
        if admitted is None:
            continue
        for row in rows(admitted, request, is_operator):
            if row.beyond_s >= by_s:
                yield (
                    f"So much was ahead of it at admission beyond a tenant's part:"
                    f" {_of_whom(row, request, is_operator)}."
                )
    if end.result is Fate.EXPIRED and admitted is not None and not end.output_tokens:
        predicted = admitted.predicted_at
        if predicted is not None and predicted > end.at:
            expected_s = predicted - request.arrived_at
            yield f"At admission its first token was expected after {_time(expected_s)}."
    relegated = _last(timeline.decisions, "relegated")
    if relegated is not None and relegated.values.get("short_s", 0.0) > 0:
        less = f"With {_time(relegated.values['short_s'])} less to do for those before it"
        yield f"{less}, it need not have been relegated."
    elif relegated is not None and relegated.values.get("own_s", 0.0) > relegated.values.get(
        "left_s", 0.0
    ):
        yield (
            f"When it was relegated it needed {_time(relegated.values['own_s'])} by itself, and"
            f" {_time(max(0.0, relegated.values['left_s']))} was left."
        )


def _waited_s(timeline: Timeline, end: End) -> float:
    """Returns the seconds of waiting before what was late: the first token, or with a TTLT all."""
    first = _last(timeline.decisions, "first_token")
    if timeline.request.targets.kind is TargetKind.INTERACTIVE and first is not None:
        return first.values.get("waited_s", 0.0)
    return end.budget.waiting_s


def _more_important(timeline: Timeline) -> Iterator[str]:
    """Says what high importance would have changed."""
    if timeline.request.importance is Importance.HIGH:
        return
    admitted = _last(timeline.decisions, "admitted")
    number = 0.0 if admitted is None else admitted.values.get("overtaken_as_high", 0.0)
    if number:
        yield (
            f"Of high importance it would have been before {number:.0f} of the requests that were"
            " before it at admission."
        )
    relegated = _last(timeline.decisions, "relegated")
    if relegated is not None and relegated.values.get("as_high"):
        yield "Of high importance another would have been relegated before it."


def _last(decisions: list[Decision], kind: str) -> Decision | None:
    return next((d for d in reversed(decisions) if d.kind == kind), None)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{1e3 * seconds:.0f} ms" if seconds < LONG_S else f"{seconds:,.1f} s"


def _and(texts: list[str]) -> str:
    return ", ".join(texts[:-1]) + " and " + texts[-1] if len(texts) > 1 else "".join(texts)
