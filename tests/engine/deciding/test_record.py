"""The record stays bounded, and its sink misses nothing."""

from __future__ import annotations

from typing import Any

from engine.deciding.config import SchedulerConfig
from engine.deciding.latency import LatencyModel
from engine.deciding.record import MAX_DECISIONS, DecisionLog
from engine.deciding.scheduler import Scheduler
from tests.engine.deciding.parts import MILLI, Driver, make_request


def test_a_request_keeps_a_bounded_number_of_entries_whatever_their_kinds() -> None:
    """Chunks and preemptions in turn: the last of each kind gathers what no longer fits."""
    log = DecisionLog()
    log.open(make_request("r"))
    for i in range(5 * MAX_DECISIONS):
        log.note("r", float(i), ("chunk", "preempted")[i % 2], tokens=1.0)
    timeline = log.timeline("r")
    assert timeline is not None
    assert len(timeline.decisions) == MAX_DECISIONS
    instants = [d.at for d in timeline.decisions]
    assert instants == sorted(instants)
    for kind in ("chunk", "preempted"):
        noted = [d.values["tokens"] for d in timeline.decisions if d.kind == kind]
        assert sum(noted) == 2.5 * MAX_DECISIONS, "no token is lost"


def test_requests_are_forgotten_oldest_first_and_the_sink_is_told_all_the_same() -> None:
    told: list[dict[str, Any]] = []
    log = DecisionLog(1, told.append)
    log.open(make_request("old"))
    log.open(make_request("new"))
    log.note("old", 1.0, "chunk", "tokens 0 to 5", 2.0, tokens=5.0)
    assert log.timeline("old") is None
    assert log.timeline("new") is not None
    assert told == [
        {
            "request_id": "old",
            "at": 1.0,
            "kind": "chunk",
            "detail": "tokens 0 to 5",
            "predicted_at": 2.0,
            "tokens": 5.0,
        }
    ]


def test_a_decision_log_is_written_though_nothing_is_remembered() -> None:
    told: list[dict[str, Any]] = []
    config = SchedulerConfig(num_pages=100, context_len=100, record_capacity=0)
    driver = Driver(Scheduler(config, LatencyModel(MILLI), told.append))
    driver.submit(make_request("r", output=2))
    driver.drain()
    assert [entry["kind"] for entry in told] == ["admitted", "chunk", "first_token", "finished"]
