"""What happens when the memory runs out: page by page, with sizes worked out by hand."""

from __future__ import annotations

from engine.deciding.sequence import Status
from tests.engine.deciding.parts import Driver, deadline, interactive, make_request, make_scheduler


def test_streams_that_sat_out_rejoin_when_the_one_they_waited_for_loses_its_pages() -> None:
    """ "calm" holds 3 of 16 pages and sits out, since the gap of "tight" (2 * 0.55 ms) has room for
    one decode of 1.1 ms and not for two. When "tight" needs a 14th page it has more slack (of
    100 s) than "calm" (of 50 s), so it loses its own, and cannot start again beside "calm".
    """
    driver = Driver(make_scheduler(num_pages=16, page_size=4, context_len=64, prefix_caching=False))
    driver.submit(make_request("calm", prompt=8, output=6, targets=deadline(50.0)))
    driver.step()
    driver.submit(make_request("tight", prompt=40, output=24, targets=interactive(100.0, 0.00055)))
    sequence = driver.scheduler.sequence
    while not sequence("tight").num_preemptions:
        held = driver.scheduler.stats().num_held
        driver.step()
    assert held == 1, "it sat out until then"
    assert sequence("tight").status is Status.WAITING
    assert driver.scheduler.stats().num_held == 0
    driver.drain()


def test_work_that_can_wait_leaves_places_open_for_interactive_requests() -> None:
    """Of 16 places, deadline requests take 14 (7/8), whatever their number; an interactive request
    that comes then starts at once, and so does a second.
    """
    driver = Driver(make_scheduler(num_pages=400, page_size=4, context_len=64, max_batch_size=16))
    for i in range(30):
        driver.submit(make_request(f"bulk{i}", prompt=4, output=50, targets=deadline(100.0)))
    while driver.scheduler.stats().num_running < 14:
        driver.step()
    driver.step()
    assert driver.scheduler.stats().num_running == 14
    for name in ("chat0", "chat1"):
        driver.submit(make_request(name, prompt=4, output=5, targets=interactive(5.0, 5.0)))
    driver.step()
    assert driver.scheduler.sequence("chat0").status is Status.DECODING
    assert driver.scheduler.sequence("chat1").status is Status.DECODING
    driver.drain()
