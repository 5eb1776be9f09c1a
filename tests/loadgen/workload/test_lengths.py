import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.workload.lengths import (
    Exact,
    Fixed,
    FromTrace,
    Independent,
    Length,
    Lognormal,
    Stated,
    parse_distribution,
    parse_stated,
    state,
)
from loadgen.workload.traces import Row


def test_lognormal_lengths_have_the_asked_for_median_and_90th_percentile() -> None:
    rng = random.Random(0)
    drawn = sorted(Lognormal(100, 300).draw(rng) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(100, rel=0.03)
    assert drawn[18_000] == pytest.approx(300, rel=0.03)


def test_equal_quantiles_are_a_fixed_length() -> None:
    rng = random.Random(0)
    assert {Lognormal(50, 50).draw(rng) for _ in range(20)} == {50}


def test_no_length_is_below_1() -> None:
    rng = random.Random(0)
    assert min(Lognormal(1, 30).draw(rng) for _ in range(1000)) == 1


def test_prompt_and_output_of_a_trace_stay_together() -> None:
    rows = (Row(0.0, 10, 1), Row(1.0, 20, 2))
    rng = random.Random(0)
    drawn = {FromTrace(rows).draw(rng) for _ in range(50)}
    assert drawn == {Length(10, 1), Length(20, 2)}


def test_lengths_as_people_type_them() -> None:
    assert parse_distribution("100") == Fixed(100)
    assert parse_distribution("80/200") == Lognormal(80, 200)
    assert Independent(Fixed(3), Fixed(4)).draw(random.Random(0)) == Length(3, 4)


@pytest.mark.parametrize("text", ["", "long", "0", "-5", "200/80", "0/10", "1.5", "a/b"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="length"):
        parse_distribution(text)


@pytest.mark.parametrize("stated", [Fixed(2048), Fixed(1), Lognormal(300, 900), Exact()])
@given(output=st.integers(1, 10_000), spare=st.integers(0, 10_000), seed=st.integers(0, 9))
def test_what_is_stated_is_enough_and_fits(
    stated: Stated, output: int, spare: int, seed: int
) -> None:
    most = state(stated, output, output + spare, random.Random(seed))
    assert output <= most <= output + spare


def test_a_cap_that_is_too_small_is_doubled_and_says_no_length() -> None:
    rng = random.Random(0)
    caps = [state(Fixed(2048), output, 100_000, rng) for output in (1, 2048, 2049, 5000)]
    assert caps == [2048, 2048, 4096, 8192]
    assert state(Exact(), 17, 100_000, rng) == 17


def test_what_is_stated_as_people_type_it() -> None:
    for text in ("exact", "2048", "300/900"):
        assert str(parse_stated(text)) == text
    with pytest.raises(ValueError, match="length"):
        parse_stated("true")
