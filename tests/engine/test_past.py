"""A request found in the decision log is the one that the engine remembered."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import past
from engine.deciding import story
from engine.deciding.entries import Unserved
from engine.deciding.latency import LatencyModel
from engine.deciding.outcome import Fate
from engine.deciding.request import Importance, Request, key_of
from engine.deciding.scheduler import Scheduler
from engine.deciding.scheduler_config import SchedulerConfig
from engine.deciding.sequence import FinishReason
from engine.deciding.timeline import Timeline
from engine.driving.decision_file import DecisionFile
from tests.engine.deciding.parts import MILLI, TARGETS, Driver, make_request

TENANTS = ("", "acme", 'a "b" {c}')


def make_driver(log: DecisionFile) -> Driver:
    """A small memory, so that some are preempted."""
    config = SchedulerConfig(num_pages=40, page_size=8, context_len=300, prefix_caching=False)
    return Driver(Scheduler(config, LatencyModel(MILLI), log.write))


def asked(number: int, rng: random.Random, now: float) -> Request:
    tenant = rng.choice(TENANTS)
    name = key_of(tenant, f"r{number}", rng.choice((None, 0)))
    request = make_request(
        name,
        rng.randint(1, 150),
        rng.randint(1, 20),
        now,
        rng.choice(TARGETS),
        rng.choice(list(Importance)),
        tenant=tenant,
    )
    return replace(request, tier=rng.choice(("", "chat")), target_source="request", timeout_s=9.0)


def as_told(timeline: Timeline) -> tuple[object, ...]:
    """All that anybody is told of it."""
    request = timeline.request
    views = [(story.summary(timeline, who), story.needed(timeline, who)) for who in (True, False)]
    terms = request.targets, request.importance, request.tier, request.target_source
    ahead = [story.rows(each, request, True) for each in timeline.decisions]
    return request.name, request.tenant, terms, timeline.end, timeline.decisions, ahead, views


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_the_log_tells_the_very_story_that_was_remembered(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever befell a request, however many files the log has by then."""
    rng = random.Random(seed)
    path = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    log = DecisionFile(path, 1e9, {"version": "1"}, most_bytes=5000, most_files=100)
    driver = make_driver(log)
    for number in range(rng.randint(1, 12)):
        driver.submit(asked(number, rng, driver.now))
        for _ in range(rng.randint(0, 4)):
            driver.step(slowdown=rng.choice((1.0, 3.0)), ahead=rng.random() < 0.5)
            log.flush()
        if rng.random() < 0.2 and driver.in_flight:
            name, reason = rng.choice(driver.in_flight), FinishReason.DISPLACED
            driver._take(driver.scheduler.cancel(name, reason, driver.now))
    driver.drain()
    log.flush()
    for each in driver.stories.values():
        name, tenant = each.request.name, each.request.tenant
        remembered = driver.scheduler.explain(name, tenant)
        assert as_told(past.find(path, name, tenant)) == as_told(remembered)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


def test_the_rules_of_tenants_are_those_of_the_memory(path: Path) -> None:
    log = DecisionFile(path, 0.0, {"version": "1"})
    driver = make_driver(log)
    for tenant in ("", "acme"):
        driver.submit(make_request(key_of(tenant, "same"), tenant=tenant))
    driver.submit(make_request(key_of("acme", "several", 0), tenant="acme"))
    driver.submit(make_request(key_of("acme", "several", 1), tenant="acme"))
    driver.drain()
    log.flush()
    assert past.find(path, "several").request.name == "several/0"
    assert past.find(path, "several/1", "acme").request.name == "several/1"
    assert past.find(path, "same", "").request.tenant == ""
    with pytest.raises(ValueError, match="niyama-tenant must be given: 2 tenants"):
        past.find(path, "same")
    for name, tenant in (("several", ""), ("same", "b"), ("never", None), ("sam", None)):
        with pytest.raises(LookupError):
            past.find(path, name, tenant)
    with pytest.raises(LookupError):
        past.find(path.with_name("none"), "same", "")


def test_an_id_that_is_used_again_is_its_last_request(path: Path) -> None:
    log = DecisionFile(path, 0.0, {"version": "1"})
    driver = make_driver(log)
    for prompt in (10, 20):
        driver.submit(make_request("r", prompt, at=driver.now))
        while driver.in_flight:
            driver.step()
    log.flush()
    found = past.find(path, "r")
    assert len(found.request.prompt) == 20
    assert [d.kind for d in found.decisions].count("admitted") == 1


def test_what_never_came_to_the_engine_is_found(path: Path) -> None:
    log = DecisionFile(path, 0.0, {"version": "1"})
    driver = make_driver(log)
    request = make_request(key_of("acme", "refused"), tenant="acme", at=1.0)
    call = Unserved(request, Fate.REFUSED, "queue_full", "the queue is full", until=1.5)
    driver.scheduler.unserved(call)
    driver.scheduler.unserved(call._replace(request=replace(request, id="\n"), num_calls=5))
    log.flush()
    remembered = driver.scheduler.explain("refused", "acme")
    assert as_told(past.find(path, "refused", "acme")) == as_told(remembered)
    assert story.summary(remembered) == "Refused on arrival: the queue is full."


def test_a_search_is_bounded_and_takes_no_harm_from_broken_lines(path: Path) -> None:
    """An end that was cut off with its engine is told as not known; an arrival that is beyond the
    bytes that are searched, or has been deleted with its file, is not found.
    """
    log = DecisionFile(path, 0.0, {"version": "1"})
    driver = make_driver(log)
    driver.submit(make_request("old"))
    driver.drain()
    log.flush()
    old_bytes = path.stat().st_size
    driver.submit(make_request("cut", 100, targets=TARGETS[6], at=driver.now))
    driver.step()
    log.flush()
    log.close()
    new_bytes = path.stat().st_size - old_bytes
    with path.open("ab") as file:
        file.write(b'{"kind": "finished", "request_id": "cut", "tenant": "", "at')
    assert past.find(path, "old", most_bytes=1 << 20).end is not None
    with pytest.raises(LookupError):
        past.find(path, "old", most_bytes=new_bytes)
    found = past.find(path, "cut", most_bytes=new_bytes + 100)
    assert [each.kind for each in found.decisions] == ["admitted", "chunk"]
    assert story.summary(found) == past.NO_END
    text = path.read_text().replace('"kind": "arrived"', '"kind": "other"')
    path.write_text('not JSON, but "request_id": "old"\n[1]\n' + text)
    with pytest.raises(LookupError, match="no longer has the arrival"):
        past.find(path, "old")


@pytest.mark.parametrize("is_written", [False, True])
def test_a_pipe_remembers_nothing_and_loses_nothing(path: Path, is_written: bool) -> None:
    os.mkfifo(path)
    path.with_name(f"{path.name}.1").mkdir()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if is_written else None
    if reader is not None:
        log = DecisionFile(path, 0.0, {"version": "1"})
        make_driver(log).submit(make_request("old"))
        log.flush()
    with pytest.raises(LookupError, match="is not remembered"):
        past.find(path, "old")
    if reader is not None:
        assert b'"old"' in os.read(reader, 1 << 16)
        os.close(reader)
        log.close()
