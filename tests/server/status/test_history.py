"""What the status page remembers: sums and gains by label, over restarts of who counts."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from server.status.history import History, Sample, Window


def window_of(*rows: dict[str, float], most: int = 600) -> Window:
    """A history of one series `n` for each name, with one row a second."""
    history = History(most)
    for at, row in enumerate(rows):
        history.add(float(at), [Sample("n_total", {"who": who}, n) for who, n in row.items()])
    return history.window()


def test_counters_gain_from_zero_what_they_have_when_they_are_first_seen() -> None:
    window = window_of({"a": 3}, {"a": 5, "b": 2}, {"a": 5, "b": 7})
    assert window.gained("n_total", 1.0) == 5
    assert window.gained("n_total", 2.0) == 9
    assert window.gained("n_total", 60.0) == 9  # no more is known
    assert window.gained_by("n_total", 2.0, "who") == {"a": 2, "b": 7}
    assert window.gained("n_total", 2.0, who="b") == 7
    assert window.rate("n_total", 2.0) == 4.5
    assert window.value("n_total") == 12
    assert window.by("n_total", "who") == {"a": 5, "b": 7}


def test_what_was_never_told_is_not_known() -> None:
    window = window_of({"a": 1}, {"a": 1})
    assert window.value("other_total") is None
    assert window.rate("other_total", 10.0) is None
    assert window.gained("other_total", 10.0) == 0
    assert window.value("n_total", who="nobody") is None
    assert History().window().value("n_total") is None
    assert History().window().spread(10) == []


def test_a_gauge_is_not_known_while_nobody_tells_it_and_a_counter_is_where_it_was() -> None:
    history = History()
    history.add(0.0, [Sample("depth", {}, 4.0), Sample("n_total", {}, 4.0)])
    history.add(1.0, [])
    window = history.window()
    assert window.value("depth") is None
    assert window.value("n_total") == 4
    assert window.series("depth", window.rows) == [4, None]


def test_only_the_last_samples_are_kept() -> None:
    window = window_of(*({"a": n} for n in range(1000)), most=600)
    assert len(window.rows) == 600
    assert window.gained("n_total", 1e6) == 599
    spread = window.spread(150)
    assert len(spread) == 150
    assert spread[-1].at == 999


@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), min_size=1, max_size=40))
def test_a_counter_gains_what_all_that_counted_have_counted(gains: list[int | None]) -> None:
    """None: whoever counts is replaced, and begins at zero."""
    history, count = History(), 0
    history.add(0.0, [Sample("n_total", {}, 0.0)])
    for at, gain in enumerate(gains, 1):
        count = 0 if gain is None else count + gain
        history.add(float(at), [Sample("n_total", {}, float(count))])
    window = history.window()
    assert window.gained("n_total", math.inf) == sum(gain or 0 for gain in gains)
    told = window.series("n_total", window.rows)
    assert told == sorted(told, key=lambda value: value or 0.0)
