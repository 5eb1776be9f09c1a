"""The latency model: predictions by hand, inversion by brute force, learning by its formula."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.deciding.latency import (
    A100_LLAMA3_8B,
    UNBOUNDED,
    LatencyModel,
    LatencyProfile,
    Segment,
    add_chunk,
)
from engine.deciding.plan import Work

QUADRATIC = LatencyProfile(
    "quadratic", (Segment(64, 1e-3, 1e-5, 1e-5), Segment(UNBOUNDED, 2e-3, 0.0, 1e-5, 0, 0, 1e-7))
)
FLAT = LatencyProfile("flat", (Segment(UNBOUNDED, 1e-3),))
PROFILES = [A100_LLAMA3_8B, QUADRATIC, FLAT]


def linear(base: float, prefill: float) -> LatencyProfile:
    return LatencyProfile("linear", (Segment(UNBOUNDED, base, prefill),))


def test_predictions_equal_the_published_formula_in_both_ranges() -> None:
    """T, P, D, Cd, Cp as in the artifact: 10 decodes that read 5,000 positions, and a chunk.

    Chunk [100, 300): 0.014936 + 5.882e-5 * 210 + 2.248e-5 * 200 + 3.635e-5 * 10
                      + 1.111e-7 * 5000 + 7.555e-7 * 300 = 0.03292985
    Chunk [100, 1100): 0.005004 + 2.719e-5 * 1010 + 6.863e-5 * 1000 - 4.144e-5 * 10
                       + 1.663e-7 * 5000 + 2.727e-6 * 1100 = 0.1045127
    """
    model = LatencyModel(A100_LLAMA3_8B)
    decodes = Work(num_decodes=10, decode_context=5000)
    assert model.predict(add_chunk(decodes, 100, 200)) == pytest.approx(0.03292985)
    assert model.predict(add_chunk(decodes, 100, 1000)) == pytest.approx(0.1045127)


def test_a_chunk_adds_its_tokens_context_and_pairs() -> None:
    """Positions 3, 4 and 5 attend to 4, 5 and 6 positions: 15 pairs; the chunk reads 6."""
    work = add_chunk(Work(2, 9, 1, 1, 1, 1), 3, 3)
    assert work == Work(2, 9, 4, 7, 16, 2)
    assert work.num_tokens == 6


def brute_force(model: LatencyModel, work: Work, start: int, limit: int, budget_s: float) -> int:
    fits = (n for n in range(limit, 0, -1) if model.predict(add_chunk(work, start, n)) <= budget_s)
    return next(fits, 0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    profile=st.sampled_from(PROFILES),
    decodes=st.tuples(st.integers(0, 520), st.integers(0, 100_000)),
    start=st.integers(0, 4000),
    limit=st.integers(1, 1500),
    budget_s=st.one_of(st.floats(0.0, 0.3), st.sampled_from((0.0, 1e-3, 0.0556, math.inf))),
)
@example(A100_LLAMA3_8B, (0, 0), 0, 1500, 0.0556)
def test_the_largest_chunk_is_exact(
    profile: LatencyProfile, decodes: tuple[int, int], start: int, limit: int, budget_s: float
) -> None:
    model, work = LatencyModel(profile), Work(decodes[0], decodes[1])
    expected = brute_force(model, work, start, limit, budget_s)
    assert model.largest_chunk(work, start, limit, budget_s) == expected


def test_the_largest_chunk_looks_beyond_the_step_where_the_published_cost_falls() -> None:
    """512 tokens alone: 0.014936 + 8.2056e-5 * 512 = 0.0569 s; 513: 0.005004 + 9.8547e-5 * 513 =
    0.0556 s. A budget of 0.0556 s takes 513, though 512 (and even 500) would not fit.
    """
    model = LatencyModel(A100_LLAMA3_8B)
    assert model.predict(add_chunk(Work(), 0, 512)) == pytest.approx(0.0569, abs=5e-5)
    assert model.predict(add_chunk(Work(), 0, 513)) == pytest.approx(0.05556, abs=5e-6)
    assert model.largest_chunk(Work(), 0, 2000, 0.0556) == 513
    assert model.largest_chunk(Work(), 0, 512, 0.0556) == 495


def test_the_margin_is_a_high_quantile_of_actual_over_predicted() -> None:
    """Ratios 1.000, 1.001, ..., 1.099: the 91st of 100, in order, is 1.090. A budget of 10.9 ms
    then counts as 10 ms: 9 tokens beside the base of 1 ms.
    """
    model = LatencyModel(linear(1e-3, 1e-3), learns=False)
    for i in range(100):
        model.observe(Work(), 1e-3 * (1 + i / 1000))
    assert model.margin == pytest.approx(1.090)
    assert model.largest_chunk(Work(), 0, 100, 10.9e-3 + 1e-9) == 9
    errors = model.errors()
    assert errors is not None
    assert errors.count == 100
    assert errors.ratio_p50 == errors.error_p50 + 1 == pytest.approx(1.050)
    assert errors.ratio_p95 == errors.error_p95 + 1 == pytest.approx(1.095)


def test_the_margin_is_bounded_below_by_one_and_above() -> None:
    model = LatencyModel(linear(1e-3, 1e-3), learns=False)
    model.observe(Work(), 0.5e-3)
    assert model.margin == 1.0
    for _ in range(100):
        model.observe(Work(), 50e-3)
    assert model.margin == LatencyModel.MAX_MARGIN


def test_old_errors_are_forgotten() -> None:
    model = LatencyModel(linear(1e-3, 1e-3), learns=False)
    for _ in range(LatencyModel.WINDOW):
        model.observe(Work(), 1.4e-3)
    assert model.margin == pytest.approx(1.4)
    for _ in range(LatencyModel.WINDOW):
        model.observe(Work(), 1.0e-3)
    errors = model.errors()
    assert errors is not None
    assert (model.margin, errors.count) == (1.0, LatencyModel.WINDOW)


def test_learning_approaches_a_slower_machine() -> None:
    """Each iteration takes 3 % off the distance in the logarithm: after n, 1.3 ** (1 - 0.97 ** n).
    Only the range that was observed learns.
    """
    model = LatencyModel(A100_LLAMA3_8B)
    small, large = add_chunk(Work(), 0, 100), add_chunk(Work(), 0, 1000)
    before, untouched = model.usual(small), model.usual(large)
    for _ in range(100):
        model.observe(small, 1.3 * before)
    assert model.usual(small) == pytest.approx(before * 1.3 ** (1 - 0.97**100))
    for _ in range(200):
        model.observe(small, 1.3 * before)
    assert model.usual(small) == pytest.approx(1.3 * before, rel=1e-3)
    assert model.predict(small) == pytest.approx(1.3 * before, rel=1e-3)
    assert model.usual(large) == untouched


def test_the_state_of_the_machine_is_followed_quickly_in_every_range() -> None:
    """Half as slow again, then as usual: the next iteration is expected so within a few others,
    while plans for later hardly move.
    """
    model = LatencyModel(A100_LLAMA3_8B)
    small, large = add_chunk(Work(), 0, 100), add_chunk(Work(), 0, 1000)
    usual_small, usual_large = model.usual(small), model.usual(large)
    model.observe(small, 1.5 * usual_small)
    assert model.predict(large) == pytest.approx(usual_large * 1.5**0.25)
    for _ in range(9):
        model.observe(small, 1.5 * usual_small)
    assert model.predict(small) == pytest.approx(1.5 * usual_small, rel=0.05)
    assert model.usual(small) == pytest.approx(usual_small * 1.5 ** (1 - 0.97**10))
    for _ in range(10):
        model.observe(small, usual_small)
    assert model.predict(small) == pytest.approx(usual_small, rel=0.05)


def test_one_stall_moves_the_model_little() -> None:
    """However long, it counts as twice the prediction: 2 ** 0.25 for the next iteration, 2 ** 0.03
    for later ones.
    """
    model = LatencyModel(linear(1e-3, 1e-3))
    model.observe(Work(), 1000.0)
    assert model.usual(Work()) == pytest.approx(1e-3 * 2**0.03)
    assert model.predict(Work()) == pytest.approx(1e-3 * 2**0.28)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_no_duration_moves_a_prediction_beyond_its_bound(durations: list[float]) -> None:
    """Whatever a clock says, for as long as it likes: each correction stays within a factor."""
    model, work = LatencyModel(A100_LLAMA3_8B), add_chunk(Work(), 0, 100)
    before = model.usual(work)
    for duration in durations:
        for _ in range(400):
            model.observe(work, duration)
        assert before / 100.01 <= model.usual(work) <= before * 100.01
        assert model.usual(work) / 100.01 <= model.predict(work) <= model.usual(work) * 100.01
        assert 1 <= model.margin <= LatencyModel.MAX_MARGIN


def test_no_errors_before_the_first_iteration() -> None:
    assert LatencyModel(FLAT).errors() is None
    assert LatencyModel(FLAT).margin == 1.0


def test_the_saturating_chunk_by_hand() -> None:
    """10 ms and 0.1 ms per token: 8,192 tokens come at 8192 / 829.2 = 9.879 per ms, 99 % of which
    is 9.7806; 4,416 reach 9.7786, and 4,480 reach 9.7817.
    """
    assert LatencyModel(linear(10e-3, 0.1e-3)).saturating_chunk() == 4480


def test_a_prefill_is_predicted_chunk_by_chunk() -> None:
    """25 more tokens in chunks of 10: three iterations of 1 ms, and 25 ms; and the last 5 attend
    to 20 + 5 earlier tokens each, with 0.1 ms per position read by a chunk: 10 + 20 + 25.
    """
    plain = LatencyModel(linear(1e-3, 1e-3))
    assert plain.prefill_seconds(0, 25, 10) == pytest.approx(28e-3)
    reading = LatencyProfile("", (Segment(UNBOUNDED, 1e-3, 1e-3, prefill_context=1e-4),))
    assert LatencyModel(reading).prefill_seconds(0, 25, 10) == pytest.approx(33.5e-3)
    assert LatencyModel(reading).prefill_seconds(10, 25, 10) == pytest.approx((17 + 4.5) * 1e-3)


def test_a_last_chunk_that_is_not_full_shares_what_its_iteration_costs() -> None:
    """5 tokens of 10 have half of the 1 ms, in the segment of a full iteration; others as above. By
    themselves 5 tokens would be in the other segment, at 9 ms and 2 ms each.
    """
    profile = LatencyProfile("", (Segment(9, 9e-3, 2e-3), Segment(UNBOUNDED, 1e-3, 1e-3)))
    for start, stop, expected in (
        (0, 5, 5.5e-3),
        (0, 25, 27.5e-3),
        (20, 25, 5.5e-3),
        (0, 20, 22e-3),
    ):
        found = LatencyModel(profile).prefill_share_seconds(start, stop, 10)
        assert found == pytest.approx(expected)
    reading = LatencyProfile("", (Segment(UNBOUNDED, 1e-3, 1e-3, prefill_context=1e-4),))
    assert LatencyModel(reading).prefill_share_seconds(0, 25, 10) == pytest.approx(33e-3)


def test_a_decode_costs_what_it_adds_but_never_less_than_nothing() -> None:
    """Published, above 512 tokens: 2.719e-5 - 4.144e-5 + 1.663e-7 * context: negative below 86."""
    model = LatencyModel(A100_LLAMA3_8B)
    assert model.decode_seconds(50, 513) == 0.0
    assert model.decode_seconds(1000, 513) == pytest.approx(1.5205e-4)


def test_a_profile_survives_json() -> None:
    for profile in PROFILES:
        assert LatencyProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@pytest.mark.parametrize(
    "segments",
    [
        (),
        (Segment(512, 1e-3),),
        (Segment(UNBOUNDED, 1e-3), Segment(UNBOUNDED, 1e-3)),
        (Segment(512, 1e-3), Segment(256, 1e-3), Segment(UNBOUNDED, 1e-3)),
        (Segment(UNBOUNDED, math.nan),),
        (Segment(UNBOUNDED, 1e-3, prefill=-1e-6),),
        (Segment(UNBOUNDED, 1e-3, prefill_pairs=-1e-9),),
    ],
)
def test_a_profile_that_cannot_be_inverted_is_refused(segments: tuple[Segment, ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        LatencyProfile("bad", segments)


def test_a_machine_that_becomes_slow_is_told_however_well_it_is_learnt() -> None:
    """The predictions follow it, and the speed says what they hide. A model that goes on with what
    was learnt, as in an engine that takes a lost one's place, says the same.
    """
    model, work = LatencyModel(QUADRATIC), Work(4, 400)
    assert model.speed is None
    usual_s = QUADRATIC.seconds(work)

    def run(model: LatencyModel, factor: float, seconds: float) -> float:
        for _ in range(round(seconds / (factor * usual_s))):
            model.observe(work, factor * usual_s)
        return model.predict(work) / usual_s

    assert run(model, 1.0, 60.0) == pytest.approx(1.0)
    assert model.speed == pytest.approx(1.0)
    assert run(model, 2.0, 60.0) == pytest.approx(2.0, rel=0.05)
    assert model.speed == pytest.approx(0.5, rel=0.05)
    after = LatencyModel(QUADRATIC, learnt=model.learnt)
    run(after, 2.0, 1.0)
    assert after.speed == pytest.approx(0.5)
    run(after, 1.0, 60.0)
    assert after.speed == pytest.approx(1.0, rel=0.05)


@given(st.lists(st.sampled_from([0.0, -1.0, math.nan, math.inf, 1e-9, 1e9, 0.01]), max_size=30))
def test_no_clock_makes_the_speed_anything_but_a_ratio(durations: list[float]) -> None:
    model = LatencyModel(QUADRATIC)
    for seconds in durations:
        model.observe(Work(1, 1), seconds)
    assert model.speed is None or 0 < model.speed < math.inf
