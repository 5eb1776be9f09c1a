"""The queue of sequences: order by key, ties by arrival."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.queue import SAMPLE, Key, SequenceQueue
from engine.deciding.sequence import Sequence
from tests.engine.deciding.parts import make_sequence

SEQUENCES = [make_sequence(f"r{i}") for i in range(8)]
KEY = st.tuples(st.integers(0, 2), st.integers(0, 3).map(float))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(SEQUENCES), st.one_of(st.none(), KEY)), max_size=30))
def test_order_is_by_key_and_then_by_arrival(
    operations: list[tuple[Sequence, Key | None]],
) -> None:
    """A new key for the absent adds, for the present rekeys; none removes."""
    queue = SequenceQueue()
    model: dict[Sequence, Key] = {}  # in order of arrival
    for sequence, key in operations:
        if key is None:
            if sequence in model:
                queue.remove(sequence)
                del model[sequence]
        elif sequence in model:
            queue.rekey(sequence, key)
            model[sequence] = key
        else:
            queue.add(sequence, key)
            model[sequence] = key
        expected = sorted(model, key=model.__getitem__)  # stable
        assert list(queue) == expected
        assert sorted(model, key=queue.place) == expected
        for rank in range(3):
            assert list(queue.of_rank(rank)) == [s for s in expected if model[s][0] == rank]
    assert len(queue) == len(model)


def test_rekeying_everybody_keeps_ties_in_order_of_arrival() -> None:
    queue = SequenceQueue()
    for i, sequence in enumerate(SEQUENCES):
        queue.add(sequence, (0, -float(i)))
    queue.rekey_all(dict.fromkeys(SEQUENCES[:6], (0, 1.0)))
    assert list(queue) == [*SEQUENCES[:5:-1], *SEQUENCES[:6]]
    assert queue.place(SEQUENCES[0]) == ((0, 1.0), 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.0, 10.0)), min_size=1, max_size=300))
def test_a_sum_before_a_place_is_exact_for_few_and_like_them_for_many(
    entries: list[tuple[int, float]],
) -> None:
    queue = SequenceQueue()
    values: dict[Sequence, float] = {}
    for index, (key, value) in enumerate(entries):
        sequence = make_sequence(f"r{index}")
        queue.add(sequence, (0, float(key)))
        values[sequence] = value
    ordered = list(queue)
    for number in {0, len(ordered) // 2, len(ordered) - 1}:
        before = [values[s] for s in ordered[:number]]
        told = queue.sum_before(queue.place(ordered[number]), values.__getitem__)
        if number <= SAMPLE:
            assert told == pytest.approx(sum(before))
        else:
            assert number * min(before) <= told * (1 + 1e-9)
            assert told <= number * max(before) * (1 + 1e-9)
            constant = queue.sum_before(queue.place(ordered[number]), lambda _: 0.5)
            assert constant == pytest.approx(number / 2)
    everybody = queue.sum_before(((0, 5.0), math.inf), lambda _: 1.0)
    assert everybody == pytest.approx(len(ordered)), "ties go before who comes now"
