"""What the command prints of what the client returns, in words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from niyama.client.values import (
    Accepted,
    Decision,
    Explanation,
    Finished,
    Forecast,
    Relegated,
    ResolvedTargets,
    SamplingDefaults,
    Targets,
    WorkAhead,
)

MOST_ALIKE = 3  # decisions one after the other that are told one by one


def relegation(event: Relegated) -> str:
    """Says that a request was relegated, and why."""
    expected = f"expected to be complete {ms(event.expected_ttlt)} after it was sent"
    return f"relegated: {event.reason}; {expected}"


def accepted(event: Accepted) -> Iterator[str]:
    """Yields what a caller should know of a request that waits: that it is expected to be late, and
    which targets nobody has stated.
    """
    if event.forecast and not event.forecast.on_time:
        yield f"expected late: {forecast(event.forecast)}"
    if event.targets.reason:
        yield f"targets: {resolved(event.targets)}"
    if event.inferred:
        yield f"would be inferred: {resolved(event.inferred)}"


def forecast(expected: Forecast) -> str:
    """Writes what is expected."""
    return f"TTFT {ms(expected.ttft)}  TTLT {ms(expected.ttlt)}"


def summary(request_id: str, finished: Finished) -> str:
    """Tells how a completion ended, and which targets it met."""
    usage, timings = finished.usage, finished.timings
    lines = [
        f"{request_id}: {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
        f"{usage.output_tokens} output tokens, ended by {finished.reason.value}",
        f"  queue {ms(timings.queue)}  TTFT {ms(timings.ttft)}  TBT mean {ms(timings.mean_tbt)} "
        f"worst {ms(timings.worst_tbt)}  TTLT {ms(timings.ttlt)}",
    ]
    for result in finished.targets:
        verdict = "met" if result.met else "MISSED"
        lines.append(f"  {result.name.upper()} target {ms(result.target)}: {verdict}")
    return "\n".join(lines)


def told(story: Explanation) -> str:
    """Tells the story of a request; of many decisions alike the first and the last."""
    whose = f" of tenant {story.tenant}" if story.tenant else ""
    lines = [f"{story.request_id}{whose}: {resolved(story.targets)}"]
    if story.trace_id:
        lines.append(f"trace {story.trace_id}")
    if story.from_decision_log:
        lines.append("read in the decision log")
    for _, run in groupby(story.decisions, lambda each: (each.kind, each.detail)):
        alike = list(run)
        is_told_together = len(alike) > MOST_ALIKE
        for decision in alike[:1] if is_told_together else alike:
            lines += _decision(decision)
        if is_told_together:
            lines.append(f"{ms(alike[-1].at):>12}  the last of {len(alike)} like this")
    lines.append(story.summary)
    return "\n".join([*lines, *(f"- {sentence}" for sentence in story.needed)])


def _decision(made: Decision) -> Iterator[str]:
    """Yields a line for a decision, and one for each whose work was ahead."""
    predicted = "" if made.predicted_at is None else f"  (predicted {ms(made.predicted_at)})"
    yield f"{ms(made.at):>12}  {made.kind:<12} {made.detail}{predicted}"
    is_told = any(part.tenant != "" for part in made.ahead)  # else no tenant has a share of its own
    for part in made.ahead:
        yield f"{ms(part.work):>38} ahead{_of_whom(part, is_told)}"


def _of_whom(part: WorkAhead, is_told: bool) -> str:
    tier = f", tier {part.tier}" if part.tier else ""
    whose = ", of others" if part.tenant is None else f", tenant {part.tenant}"
    whose = (", of tenants that are not named" if is_told else "") if part.tenant == "" else whose
    beyond = f", {ms(part.beyond)} of it beyond its part" if part.beyond else ""
    return tier + whose + beyond


def ms(seconds: float | None) -> str:
    """Writes a duration in milliseconds."""
    return "-" if seconds is None else f"{seconds * 1e3:,.1f} ms"


def sampling(defaults: SamplingDefaults) -> str:
    """Writes what holds where a request states no sampling."""
    return (
        f"temperature {defaults.temperature:g}, top-k {defaults.top_k}, top-p {defaults.top_p:g}, "
        f"min-p {defaults.min_p:g}, repetition penalty {defaults.repetition_penalty:g}, "
        f"{defaults.max_tokens:,} tokens at most"
    )


def targets(asked: Targets) -> str:
    """Writes latency targets."""
    named = (("TTFT", asked.ttft), ("TBT", asked.tbt), ("TTLT", asked.ttlt))
    stated = [f"{name} {ms(value)}" for name, value in named if value is not None]
    return ", ".join(stated) or "best effort"


def resolved(asked: ResolvedTargets) -> str:
    """Writes latency targets with who stated them."""
    source = asked.source.replace("_", " ")
    origin = source if source == "inferred" else f"from {source}"
    if asked.tier:
        origin = f"tier {asked.tier}, {origin}"
    reason = f": {asked.reason}" if asked.reason else ""
    return f"{targets(asked.targets)} ({origin}{reason}), importance {asked.importance.value}"
