"""Profiles from measurements whose coefficients are known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.computing.fit import (
    MIN_SAMPLES,
    Sample,
    fit,
    median_error,
    non_negative_least_squares,
)
from engine.deciding.latency import UNBOUNDED, LatencyProfile, Segment, add_chunk
from engine.deciding.plan import Work

ONE = Segment(UNBOUNDED, 2e-3, 5e-5, 1e-4, 6e-7, 2e-7, 9e-8, 3e-4)
TWO = (Segment(64, 1e-3, 4e-5, 2e-4, 5e-7), Segment(UNBOUNDED, 9e-3, 2e-5, 6e-5, 1e-6))


def works(seed: int = 1, count: int = 120) -> list[Work]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        num = rng.choice((0, 1, 3, 10, 40))
        work = Work(num, sum(rng.randint(8, 900) for _ in range(num)))
        for _ in range(rng.choice((0, 1, 2)) if num else 1):
            work = add_chunk(work, rng.choice((0, 128, 700)), rng.choice((4, 20, 90, 400, 1200)))
        made.append(work)
    return made


def measured(profile: LatencyProfile, noise: float = 0.0, seed: int = 1) -> list[Sample]:
    rng = random.Random(seed)
    return [Sample(w, profile.seconds(w) * rng.uniform(1 - noise, 1 + noise)) for w in works(seed)]


def test_exact_measurements_give_the_coefficients_back() -> None:
    profile = fit("one", measured(LatencyProfile("true", (ONE,))), 1200)
    (segment,) = profile.segments
    assert segment == pytest.approx(ONE, rel=1e-6)
    assert (profile.name, profile.max_chunk) == ("one", 1200)


def test_a_step_in_cost_becomes_a_bound_between_segments() -> None:
    true = LatencyProfile("true", TWO)
    profile = fit("two", measured(true), 1200)
    assert [s.up_to for s in profile.segments] == [64, UNBOUNDED]
    assert median_error(profile, measured(true, seed=2)) < 1e-6


def test_noise_is_not_taken_for_steps() -> None:
    samples = measured(LatencyProfile("true", (ONE,)), noise=0.1)
    profile = fit("noisy", samples, 1200)
    assert len(profile.segments) == 1
    assert median_error(profile, measured(LatencyProfile("true", (ONE,)), seed=3)) < 0.05


def test_a_few_stalls_do_not_bend_the_profile() -> None:
    true = LatencyProfile("true", (ONE,))
    samples = measured(true)
    stalled = [
        s._replace(seconds=8 * s.seconds) if i % 15 == 0 else s for i, s in enumerate(samples)
    ]
    assert median_error(fit("stalled", stalled, 1200), samples) < 0.02


def test_no_coefficient_is_negative_and_more_tokens_never_cost_less() -> None:
    """Whatever was measured: a profile refuses anything else, and planning relies on it."""
    rng = random.Random(7)
    samples = [Sample(work, rng.uniform(1e-3, 1e-1)) for work in works()]
    for segment in fit("chaos", samples, 64).segments:
        assert min(segment[1:]) >= 0


def test_too_few_measurements_are_refused() -> None:
    samples = measured(LatencyProfile("true", (ONE,)))[: MIN_SAMPLES - 1]
    with pytest.raises(ValueError, match="samples must be at least"):
        fit("few", samples, 64)


def test_least_squares_by_hand() -> None:
    """x + y = 1 and x - y = 3 want y = -1; held at 0, x is the mean of 1 and 3."""
    assert non_negative_least_squares([(1, 1), (1, -1)], [1, 3]) == pytest.approx([2, 0])
    assert non_negative_least_squares([(2, 0), (0, 4)], [6, 8]) == pytest.approx([3, 2])
    assert non_negative_least_squares([(1, 1), (2, 2)], [2, 4])[0] >= 0  # columns alike


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-10, 10) for _ in range(3)], st.floats(-10, 10)),
        min_size=3,
        max_size=12,
    )
)
def test_the_solution_is_where_no_allowed_step_improves(
    equations: list[tuple[float, float, float, float]],
) -> None:
    """The conditions of Karush, Kuhn and Tucker, which are sufficient for this problem."""
    rows, values = [e[:3] for e in equations], [e[3] for e in equations]
    x = non_negative_least_squares(rows, values)
    assert min(x) >= 0
    residuals = [
        v - sum(a * b for a, b in zip(r, x, strict=True)) for r, v in zip(rows, values, strict=True)
    ]
    for j in range(3):
        column = [row[j] for row in rows]
        scale = sum(c * c for c in column) ** 0.5 * (1 + sum(v * v for v in values) ** 0.5)
        gradient = sum(c * r for c, r in zip(column, residuals, strict=True))
        assert gradient <= 1e-5 * scale + 1e-9
        if x[j] > 1e-6:
            assert abs(gradient) <= 1e-5 * scale + 1e-9
