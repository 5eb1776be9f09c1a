"""What is measured, on the real executor and on one that keeps a log."""

from __future__ import annotations

import pytest

from engine.computing import loading
from engine.computing.calibration import HELD_OUT, Measurements, measure
from engine.deciding.plan import Plan, Token
from engine.embedded import FOLDER

PAGE, PAGES = 16, 256
CONTEXT = 1024


class Noting:
    """Costs nothing; checks every plan as an executor would rely on it."""

    num_pages, page_size = PAGES, PAGE

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def run(self, plan: Plan) -> list[Token]:
        self.plans.append(plan)
        return [Token(0) for _ in plan.sampling]


@pytest.fixture(scope="module")
def noted() -> tuple[Noting, Measurements]:
    """With far more time than it takes: all that may be measured is."""
    executor = Noting()
    return executor, measure(executor, CONTEXT, max_batch_size=8, seconds=60)


def test_every_plan_is_one_that_a_scheduler_could_make(noted: tuple[Noting, Measurements]) -> None:
    for plan in noted[0].plans:
        sequences = [*plan.decodes, *(c.sequence for c in plan.chunks)]
        pages = [page for s in sequences for page in s.pages]
        assert len(pages) == len(set(pages))
        assert max(pages) < PAGES
        assert 1 <= len(sequences) <= 8
        for sequence in plan.decodes:
            assert sequence.num_uncomputed == 1
        for chunk in plan.chunks:
            assert chunk.start == chunk.sequence.num_computed
            assert chunk.samples
        assert all(s.num_known <= min(CONTEXT, len(s.pages) * PAGE) for s in sequences)


def test_work_is_counted_as_planning_counts_it(noted: tuple[Noting, Measurements]) -> None:
    for plan in noted[0].plans:
        assert plan.work.num_decodes == len(plan.decodes)
        assert plan.work.decode_context == sum(s.num_known for s in plan.decodes)
        assert plan.work.num_prefill == sum(c.length for c in plan.chunks)
        assert plan.work.prefill_context == sum(c.start + c.length for c in plan.chunks)


def test_what_judges_is_not_what_is_fitted(noted: tuple[Noting, Measurements]) -> None:
    _, measurements = noted
    fitted = {s.work for s in measurements.samples}
    assert len(measurements.held_out) == HELD_OUT
    assert all(s.work not in fitted for s in measurements.held_out)
    assert measurements.max_chunk == CONTEXT - 1
    works = [s.work for s in measurements.samples]
    assert max(w.num_decodes for w in works) == 8
    assert any(w.num_decodes and w.num_chunks for w in works)


def test_the_real_executor_is_measured_and_left_usable() -> None:
    executor = loading.load(FOLDER, num_pages=PAGES, page_size=PAGE, threads=1)
    measurements = measure(executor, CONTEXT, max_batch_size=8, seconds=0.2)
    assert all(s.seconds > 0 for s in measurements.samples)
    executor.warm_up()


def test_a_memory_of_few_pages_is_measured_as_far_as_it_goes() -> None:
    executor = Noting()
    executor.num_pages = 4  # type: ignore[misc]  # an instance's own
    measurements = measure(executor, CONTEXT, max_batch_size=64, seconds=0.1)
    assert measurements.max_chunk <= 4 * PAGE
    assert measurements.samples
