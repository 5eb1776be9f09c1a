"""What the status page shows, as `/status.json` has it.

Durations are in seconds, shares between 0 and 1, instants in seconds since 1970. What nobody knows
is null: an engine that is not there says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from engine.deciding.notable import Notable
from engine.deciding.queued_work import BEST_EFFORT, RELEGATED, RUNNING, WAITING
from server.bounded import shorten
from server.metrics import tier_name
from server.status.findings import (
    MISSED,
    RECENT_S,
    SLOW,
    Parts,
    Score,
    findings,
    scores,
    speed,
    work_shares,
)
from server.status.history import Row, Window

POINTS = 150  # of a chart
RATE_S = 10.0  # of what is told per second
MOST_DETAIL_BYTES = 500
STATES = (RUNNING, WAITING, RELEGATED, BEST_EFFORT)


def document(window: Window, parts: Parts, unix_s: float, uptime_s: float) -> dict[str, Any]:
    """Returns it, but for the latest decisions."""
    return {
        "at": round(unix_s, 3),
        "uptime_s": round(uptime_s, 1),
        "phase": parts.phase.value,
        "ready": parts.is_ready,
        "findings": [
            {"level": each.level.value, "line": each.line, "detail": each.detail, "do": each.do}
            for each in findings(parts, window)
        ],
        "config": _config(window),
        "load": _load(window),
        "tiers": _tiers(window),
        "tenants": _tenants(window),
        "relegations": _relegations(window),
        "refusals": _nonzero(window.gained_by("niyama_refused_total", RECENT_S, "reason")),
        "charts": _charts(window, unix_s),
    }


def decisions(recent: Sequence[Notable], now: float, unix_s: float) -> list[dict[str, Any]]:
    """Returns the latest decisions, told at `now` on the engine's clock, which is `unix_s`."""
    return [
        {
            "at": round(unix_s - (now - each.at), 3),
            "kind": each.kind,
            "request_id": each.request_id,
            "tenant": each.tenant,
            "tier": tier_name(each.tier),
            "importance": each.importance.name.lower(),
            "detail": shorten(each.detail, MOST_DETAIL_BYTES),
        }
        for each in recent
    ]


def _config(window: Window) -> dict[str, str]:
    """Returns what is served, and how."""
    found: dict[str, str] = {}
    for name in ("niyama_build_info", "niyama_config_info"):
        for labels, _ in window.each(name):
            found |= labels
    return found


def _load(window: Window) -> dict[str, Any]:
    iterations = "niyama_iteration_seconds"
    actual = window.rate(f"{iterations}_sum", RATE_S)
    predicted = window.rate("niyama_iteration_predicted_seconds_total", RATE_S)
    return {
        "utilization": _figure(_capped(window.rate("niyama_engine_busy_seconds_total", RATE_S))),
        "demand_ratio": _figure(window.value("niyama_demand_ratio")),
        "speed_ratio": _figure(speed(window)),
        "slow_below": SLOW,
        "actual_over_predicted": _figure(_ratio(actual, predicted)),
        "kv_usage": _figure(window.value("niyama_kv_usage_ratio")),
        "requests": _figure(window.value("niyama_queue_requests")),
        "most_requests": _figure(window.value("niyama_limit_requests")),
        "queued_tokens": _figure(window.value("niyama_queue_tokens")),
        "most_queued_tokens": _figure(window.value("niyama_limit_queued_tokens")),
        "arrivals_per_s": _figure(window.rate("niyama_requests_total", RATE_S)),
        "output_tokens_per_s": _figure(window.rate("niyama_output_tokens_total", RATE_S)),
        "queued_s": {
            state: _figure(window.value("niyama_queued_work_seconds", state=state))
            for state in STATES
        },
        "engine_losses": _figure(window.value("niyama_engine_losses_total")),
    }


def _tiers(window: Window) -> list[dict[str, Any]]:
    """Returns a row for each tier that there is, or of which anybody has called."""
    recent, ever = scores(window, "tier", RECENT_S), scores(window, "tier")
    targets: dict[str, dict[str, float]] = {}
    for labels, seconds in window.each("niyama_tier_target_seconds"):
        targets.setdefault(labels["tier"], {})[labels["target"]] = seconds
    headroom = window.by("niyama_headroom_seconds", "tier")
    chance = window.by("niyama_forecast_late_chance", "tier")
    queued = {
        state: window.by("niyama_queued_work_seconds", "tier", state=state) for state in STATES
    }
    sequences = {state: window.by("niyama_sequences", "tier", state=state) for state in STATES}
    names = dict.fromkeys((*targets, *recent, *queued["waiting"], *headroom))
    return [
        {
            "name": name,
            "targets": {target: _figure(s) for target, s in targets.get(name, {}).items()},
            "recent": _score(recent.get(name)),
            "since_start": _score(ever.get(name)),
            "headroom_s": _figure(headroom.get(name)),
            "late_chance": _figure(chance.get(name)),
            "queued_s": {state: _figure(by_tier.get(name)) for state, by_tier in queued.items()},
            "sequences": {
                state: _figure(by_tier.get(name)) for state, by_tier in sequences.items()
            },
        }
        for name in names
        if name in targets or name in headroom or _has_any(ever.get(name))
    ]


def _tenants(window: Window) -> list[dict[str, Any]]:
    """Returns a row for each tenant with a name of its own, and the others; the one first that sent
    most of the work.
    """
    recent, ever = scores(window, "tenant", RECENT_S), scores(window, "tenant")
    shares = work_shares(window)
    names = sorted(ever, key=lambda name: (-shares.get(name, 0.0), name))
    return [
        {
            "name": name,
            "work_share": _figure(shares.get(name, 0.0)),
            "recent": _score(recent.get(name)),
            "since_start": _score(ever[name]),
        }
        for name in names
        if _has_any(ever[name])
    ]


def _relegations(window: Window) -> dict[str, float]:
    """Returns how many requests were relegated lately, by reason."""
    return _nonzero(window.gained_by("niyama_relegations_total", RECENT_S, "reason"))


def _score(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"attainment": None, "judged": 0, "missed": 0, "results": {}}
    return {
        "attainment": _figure(score.attainment),
        "judged": round(score.judged),
        "missed": round(score.missed),
        "results": {result: round(n) for result, n in sorted(score.by_result.items()) if n},
    }


def _has_any(score: Score | None) -> bool:
    return score is not None and any(score.by_result.values())


def _charts(window: Window, unix_s: float) -> dict[str, Any]:
    """Returns the charts of all that is kept: `at` are instants, and each series has a value for
    each of them. What is told of a step is what was counted since the instant before.
    """
    rows = window.spread(POINTS)
    offset_s = unix_s - rows[-1].at if rows else 0.0
    step = _Steps(window, rows)
    iterations = step.gained("niyama_iteration_seconds_count")
    actual_s = step.gained("niyama_iteration_seconds_sum")
    predicted_s = step.gained("niyama_iteration_predicted_seconds_total")
    return {
        "at": [round(row.at + offset_s, 1) for row in rows],
        "iteration_s": step.ratio(actual_s, iterations),
        "predicted_s": step.ratio(predicted_s, iterations),
        "chunk_tokens": step.ratio(
            step.gained("niyama_prefill_tokens_total"), step.gained("niyama_chunks_total")
        ),
        "speed_ratio": step.values("niyama_speed_ratio"),
        "demand_ratio": step.values("niyama_demand_ratio"),
        "queued_s": {
            state: step.values("niyama_queued_work_seconds", state=state) for state in STATES
        },
        "ended_per_s": {
            "on_time": step.per_second("niyama_requests_total", "on_time"),
            "missed": step.per_second("niyama_requests_total", *MISSED),
            "best_effort": step.per_second("niyama_requests_total", "best_effort", "cancelled"),
        },
    }


class _Steps:
    """Reads what changed between the rows of a chart."""

    def __init__(self, window: Window, rows: list[Row]) -> None:
        self._window = window
        self._rows = rows

    def values(self, name: str, **labels: str) -> list[float | None]:
        return [_figure(value) for value in self._window.series(name, self._rows, **labels)]

    def gained(self, name: str, **labels: str) -> list[float | None]:
        """Returns what a counter has gained since the row before."""
        told = self._window.series(name, self._rows, **labels)
        return [None, *map(_gain, told[1:], told)][: len(told)]

    def per_second(self, name: str, *results: str) -> list[float | None]:
        gains = [self.gained(name, result=result) for result in results]
        sums = [_added(each) for each in zip(*gains, strict=True)]
        elapsed_s = [0.0, *(b.at - a.at for a, b in pairwise(self._rows))][: len(self._rows)]
        return self.ratio(sums, elapsed_s)

    @staticmethod
    def ratio(above: Iterable[float | None], below: Iterable[float | None]) -> list[float | None]:
        return [_figure(_ratio(a, b)) for a, b in zip(above, below, strict=True)]


def _gain(now: float | None, before: float | None) -> float | None:
    return None if now is None else now - (before or 0.0)


def _added(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _capped(share: float | None) -> float | None:
    """Returns a share that is told a little late or early, and so may seem to be above 1."""
    return None if share is None else min(1.0, share)


def _figure(value: float | None) -> float | None:
    """Rounds to what a person reads. What JSON cannot tell is left out."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def _nonzero(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value) for name, value in sorted(values.items()) if value}
