import pytest

from loadgen.workload.units import (
    parse_count,
    parse_duration,
    parse_positive,
    parse_shares,
    parse_weights,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30", 30.0), ("1.5s", 1.5), ("15m", 900.0), ("4h", 14400.0), ("1d", 86400.0)],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-3s", "3 parsecs", "nan", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_shares_keep_their_order() -> None:
    assert list(parse_shares("b:0.4, a:0.6").items()) == [("b", 0.4), ("a", 0.6)]


@pytest.mark.parametrize("text", ["a", "a:", ":1", "a:0", "a:1.5", "a:-1", "a:nan", "a:x", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME:SHARE"):
        parse_shares(text)


def test_a_name_comes_once() -> None:
    with pytest.raises(ValueError, match="named twice"):
        parse_shares("a:0.5,a:0.5")


def test_weights_may_be_any_above_0() -> None:
    assert parse_weights("b:2, a:0.5") == {"b": 2.0, "a": 0.5}


@pytest.mark.parametrize("text", ["a", ":1", "a:0", "a:-1", "a:nan", "a:inf", "a:x", ""])
def test_what_is_no_weight_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME:WEIGHT"):
        parse_weights(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "x"])
def test_what_is_not_above_0_is_refused(text: str) -> None:
    for parse in (parse_positive, parse_count):
        with pytest.raises(ValueError, match="above 0"):
            parse(text)
    assert (parse_positive("0.5"), parse_count("5")) == (0.5, 5)
