"""A night of a service, as its metrics tell it: ten minutes, calm or overloaded on a slow machine.

What callers chose is hostile: names that would be markup where anybody took them for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from engine.deciding.notable import KINDS, Notable
from engine.deciding.request import Importance
from niyama.v1 import inference_pb2 as pb
from server.status.document import decisions, document
from server.status.findings import Parts, Phase
from server.status.history import History, Sample, Window

HOSTILE = "<img src=x onerror=\"document.title='taken'\">'&{{7*7}}"
UNIX_S = 1_800_000_000.0
SECONDS = 600
TIERS = {
    "interactive": {"ttft": 1.0, "tbt": 0.05},
    "standard": {"ttlt": 20.0},
    "batch": {"ttlt": 3600.0},
}
TENANTS = {"acme": 0.7, "initech": 0.1, "other": 0.2}  # with their shares of all calls


def overloaded_at(second: int) -> float:
    """From 0 to 1: how far the overload has come, which begins after four minutes."""
    return min(1.0, max(0.0, (second - 240) / 60))


def samples(second: int, is_bad: bool) -> Iterator[Sample]:
    """What metrics say after so many seconds."""
    bad = overloaded_at(second) if is_bad else 0.0
    passed = sum(overloaded_at(s) for s in range(second)) if is_bad else 0.0
    wave = 1 + 0.15 * math.sin(second / 17)
    config = {"model": "tiny", "policy": "niyama", "device": "cpu", "dtype": "bfloat16"}
    yield Sample("niyama_build_info", {"version": "0.1.0"}, 1.0)
    yield Sample("niyama_config_info", config, 1.0)
    for tier, targets in TIERS.items():
        for target, seconds in targets.items():
            yield Sample("niyama_tier_target_seconds", {"tier": tier, "target": target}, seconds)
        calls = {"interactive": 4.0, "standard": 1.5, "batch": 0.3}[tier]
        yield from _requests(tier, calls, second, passed)
        yield Sample(
            "niyama_headroom_seconds", {"tier": tier}, targets.get("ttlt", 0.8) * (1 - bad)
        )
        yield Sample("niyama_forecast_late_chance", {"tier": tier}, 0.01 + 0.6 * bad)
        for state, share in {"running": 0.4, "waiting": 0.3 * wave, "relegated": 2.5 * bad}.items():
            labels = {"tier": tier, "state": state}
            yield Sample("niyama_queued_work_seconds", labels, share * calls * (1 + 3 * bad))
            yield Sample("niyama_sequences", labels, round(4 * share * calls * (1 + 3 * bad)))
    reason = {"reason": "queue_full", "tier": "batch", "tenant": "acme", "importance": "low"}
    yield Sample("niyama_refused_total", reason, round(0.4 * passed))
    yield Sample("niyama_demand_ratio", {}, 0.55 * wave + 0.9 * bad)
    yield Sample("niyama_speed_ratio", {}, 0.99 - 0.56 * bad)
    yield Sample("niyama_kv_usage_ratio", {}, 0.4 * wave + 0.3 * bad)
    yield Sample("niyama_engine_busy_seconds_total", {}, 0.55 * second + 0.45 * passed)
    iteration_s = 0.021 * second + 0.027 * passed
    yield Sample("niyama_iteration_seconds_sum", {}, iteration_s * 20)
    yield Sample("niyama_iteration_seconds_count", {}, 20.0 * second)
    yield Sample("niyama_iteration_predicted_seconds_total", {}, 0.0205 * second * 20)
    yield Sample("niyama_prefill_tokens_total", {}, 20 * 180.0 * second - 20 * 90 * passed)
    yield Sample("niyama_chunks_total", {}, 20.0 * second)
    yield Sample("niyama_output_tokens_total", {}, 410.0 * second)
    yield Sample("niyama_queue_requests", {"importance": "normal"}, 40 * wave + 500 * bad)
    yield Sample("niyama_queue_tokens", {"importance": "normal"}, 9000 * wave + 120_000 * bad)
    yield Sample("niyama_limit_requests", {}, 1024.0)
    yield Sample("niyama_limit_queued_tokens", {}, 8_388_608.0)
    yield Sample("niyama_engine_losses_total", {}, 0.0)


def _requests(tier: str, calls: float, second: int, passed: float) -> Iterator[Sample]:
    for tenant, share in TENANTS.items():
        n, late = calls * share * second, 0.5 * calls * share * passed
        by_result = {"on_time": n - late, "late": 0.7 * late, "expired": 0.2 * late}
        for result, count in (by_result | {"refused": 0.1 * late, "cancelled": 0.01 * n}).items():
            labels = {"tier": tier, "tenant": tenant, "result": result, "importance": "normal"}
            yield Sample("niyama_requests_total", labels, float(round(count)))


def window(is_bad: bool, seconds: int = SECONDS) -> Window:
    """What is known after so many seconds."""
    history = History()
    for second in range(seconds + 1):
        history.add(float(second), samples(second, is_bad))
    return history.window()


def notable() -> list[Notable]:
    """Two of each kind, one of them with hostile names."""
    reasons = {
        "late": "Late: TTFT was 2900 ms against a target of 1000 ms. It was relegated: others could"
        " not be on time.",
        "relegated": "others could not be on time: its tenant has asked for more than its part",
        "refused": "Refused after 4000 ms of waiting: it gave its place to more important work.",
        "expired": "Ended by the caller (timeout) after 3 tokens.",
        "failed": "Failed: the model's logits are not finite.",
        "preempted": "memory is short",
    }
    ids = ("7f3a9c2be01d4456", HOSTILE), ("acme", HOSTILE), ("interactive", HOSTILE)
    return [
        Notable(
            SECONDS - 7.0 * i, kind, *(pair[j] for pair in ids), Importance.NORMAL, reasons[kind]
        )
        for i, kind in enumerate(KINDS)
        for j in (0, 1)
    ]


class Night:
    """Stands where `Source` does."""

    def __init__(self, is_bad: bool, parts: Parts = Parts(Phase.SERVING)) -> None:  # noqa: B008
        self._window = window(is_bad)
        self._is_bad = is_bad
        self._parts = parts

    def parts(self) -> Parts:
        return self._parts

    def document(self) -> dict[str, Any]:
        return document(self._window, self._parts, UNIX_S, float(SECONDS))

    def decisions(self) -> dict[str, Any]:
        told = decisions(notable() if self._is_bad else [], SECONDS, UNIX_S)
        return {"decisions": told, "decisions_age_s": 0.4}

    def inferred(self) -> str:
        return "# nothing\n"

    def explain(self, request_id: str, tenant: str | None) -> pb.ExplainResponse:
        told = pb.ExplainResponse(request_id=request_id, summary=f"Late: {HOSTILE}")
        for i in range(30):
            decision = told.decisions.add(kind="chunk", detail=f"tokens {i} of {HOSTILE}")
            decision.at.FromMilliseconds(400 + 50 * i)
            decision.predicted_at.FromMilliseconds(380 + 50 * i)
            decision.values["batch_tokens"], decision.values["slack_s"] = 512.0, -0.25
        return told
