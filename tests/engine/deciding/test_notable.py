"""The last notable decisions: bounded, whoever floods, and each under its kind."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from engine.deciding.notable import KINDS, MOST, NotableDecisions
from engine.deciding.request import Importance, key_of
from engine.deciding.sequence import FinishReason
from engine.deciding.story import summary
from tests.engine.deciding.parts import Driver, deadline, interactive, make_request, make_scheduler


def told(driver: Driver) -> list[tuple[str, str]]:
    return [(each.kind, each.request_id) for each in driver.scheduler.recent(20)]


def test_each_is_told_under_its_kind_and_by_the_name_that_its_tenant_gave() -> None:
    driver = Driver(make_scheduler())
    lost = make_request(key_of("acme", "lost"), 500, 1, targets=interactive(0.3, 1), tenant="acme")
    driver.submit(lost)
    driver.submit(make_request("kept", 10, 1, targets=deadline(9.0)))
    driver.submit(make_request("left", 10, 1))
    driver.cancel("left")
    driver.submit(make_request("expires", 10, 1, targets=deadline(9.0)))
    driver._take(driver.scheduler.cancel("expires", FinishReason.TIMEOUT, driver.now))
    driver.drain()
    assert told(driver) == [("late", "lost"), ("expired", "expires"), ("relegated", "lost")]
    late, _, relegated = driver.scheduler.recent(20)
    assert (late.tenant, late.importance) == ("acme", Importance.NORMAL)
    assert summary(driver.scheduler.explain("lost", "acme")).startswith(late.detail)
    assert relegated.detail == "it would end late by itself"


def test_preemptions_are_told_and_nothing_where_the_record_is_off() -> None:
    for capacity, expected in ((100, {"preempted", "late"}), (0, set[str]())):
        scheduler = make_scheduler(
            "fcfs", num_pages=8, page_size=4, context_len=32, record_capacity=capacity
        )
        driver = Driver(scheduler)
        for name in ("a", "b"):
            driver.submit(make_request(name, 12, 18, targets=deadline(0.01)))
        driver.drain()
        assert {kind for kind, _ in told(driver)} == expected


@given(st.lists(st.tuples(st.sampled_from(KINDS[:2]), st.integers(0, 3)), max_size=50))
def test_a_flood_hides_nobody_and_nothing_grows_without_bound(
    events: list[tuple[str, int]],
) -> None:
    notable = NotableDecisions()
    for at, (kind, tenant) in enumerate(events):
        name = f"t{tenant}"
        notable.add(make_request(f"r{at}", tenant=name), float(at), kind, "")
    for at in range(2 * MOST):
        notable.add(make_request(f"f{at}", tenant="flood"), 100.0 + at, "relegated", "")
    assert all(count <= MOST for count in Counter(each.kind for each in notable).values())
    kept = {each.request_id for each in notable}
    assert {f"r{at}" for at in range(len(events))} <= kept, "a flood made others forgotten"
    last = notable.last(3)
    assert [each.at for each in last] == sorted((each.at for each in last), reverse=True)
    assert max(Counter(each.kind for each in last).values()) <= 3
