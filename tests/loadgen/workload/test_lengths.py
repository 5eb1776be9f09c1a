import random

import pytest

from loadgen.workload.lengths import (
    Fixed,
    FromTrace,
    Independent,
    Length,
    Lognormal,
    parse_distribution,
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
