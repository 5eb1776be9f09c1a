"""Arrivals against instants worked out by hand, and processes against their moments."""

import itertools
import math
import random
import statistics

import pytest

from loadgen.workload.arrivals import Process, Rate, Shape, arrival_times, parse_rate, unit_gaps


def constant_gaps_at(rate: Rate, duration_s: float) -> list[float]:
    gaps = unit_gaps(Process.CONSTANT, 1.0, random.Random(0))
    return list(arrival_times(rate, gaps, duration_s))


def test_a_constant_rate_spaces_evenly() -> None:
    assert constant_gaps_at(Rate(4, 4), 1.1) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_a_square_wave_changes_every_period() -> None:
    """1/s for 2 s, then 4/s for 2 s: the arrivals at 2.0 and 4.0 fall on the borders."""
    instants = constant_gaps_at(Rate(1, 4, Shape.SQUARE, 2.0), 5.5)
    expected = [1.0, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 5.0]
    assert instants == pytest.approx(expected)


def test_a_step_stays_up() -> None:
    instants = constant_gaps_at(Rate(1, 2, Shape.STEP, 2.0), 4.1)
    assert instants == pytest.approx([1.0, 2.0, 2.5, 3.0, 3.5, 4.0])


def test_a_ramp_arrives_where_the_integral_of_the_rate_is_whole() -> None:
    """0 to 8/s over 2 s: 2 t^2 arrivals expected by t, so the n-th is at sqrt(n / 2)."""
    instants = constant_gaps_at(Rate(0, 8, Shape.RAMP), 2.0)
    assert instants == pytest.approx([math.sqrt(n / 2) for n in range(1, 8)])


def test_a_falling_ramp() -> None:
    """4 to 0/s over 2 s: 4t - t^2 expected by t, so the n-th is at 2 - sqrt(4 - n)."""
    instants = constant_gaps_at(Rate(4, 1e-12, Shape.RAMP), 2.0)
    assert instants[:3] == pytest.approx([2 - math.sqrt(4 - n) for n in range(1, 4)])


def test_a_sine_is_low_at_the_borders_of_its_period_and_high_in_the_middle() -> None:
    rate = Rate(2, 6, Shape.SINE, 100.0)
    assert rate.mean(300.0) == pytest.approx(4.0)
    instants = constant_gaps_at(rate, 100.0)
    per_tenth = [sum(10 * k <= at < 10 * (k + 1) for at in instants) for k in range(10)]
    assert per_tenth[0] == per_tenth[-1] == min(per_tenth) == pytest.approx(21, abs=1)
    assert max(per_tenth) == per_tenth[4] == pytest.approx(59, abs=1)


def test_the_mean_of_a_partial_period_counts_only_that_part() -> None:
    assert Rate(2, 5, Shape.SQUARE, 10.0).mean(15.0) == pytest.approx((2 * 10 + 5 * 5) / 15)


@pytest.mark.parametrize(
    ("process", "cv"), [(Process.POISSON, 1.0), (Process.GAMMA, 3.0), (Process.GAMMA, 0.5)]
)
def test_gaps_have_mean_1_and_the_asked_for_variation(process: Process, cv: float) -> None:
    gaps = list(itertools.islice(unit_gaps(process, cv, random.Random(1)), 40_000))
    assert statistics.fmean(gaps) == pytest.approx(1.0, rel=0.05)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.05)


def test_poisson_counts_at_a_changing_rate_have_the_variance_of_poisson() -> None:
    """Over 400 periods of a square wave, the counts per high half: mean 8, variance 8."""
    rate = Rate(2, 8, Shape.SQUARE, 1.0)
    gaps = unit_gaps(Process.POISSON, 1.0, random.Random(2))
    counts = [0] * 400
    for at in arrival_times(rate, gaps, 800.0):
        if int(at) % 2:
            counts[int(at) // 2] += 1
    assert statistics.fmean(counts) == pytest.approx(8.0, rel=0.06)
    assert statistics.variance(counts) == pytest.approx(8.0, rel=0.25)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("40", Rate(40, 40)),
        ("2..5/15m", Rate(2, 5, Shape.SQUARE, 900.0)),
        ("step:2..5/1m", Rate(2, 5, Shape.STEP, 60.0)),
        ("ramp:2..5", Rate(2, 5, Shape.RAMP)),
        ("sine:1..9/24h", Rate(1, 9, Shape.SINE, 86400.0)),
    ],
)
def test_rates_as_people_type_them(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "5/15m", "zigzag:1..2", "1..", "square:5"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a rate such as"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["2..5", "square:2..5", "step:2..5"])
def test_what_changes_after_a_period_needs_one(text: str) -> None:
    """As long as the run it would never change."""
    with pytest.raises(ValueError, match=r"needs a period, such as (square|step):2\.\.5/15m"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-1..5", "2..0"])
def test_rates_are_positive(text: str) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        parse_rate(text)
