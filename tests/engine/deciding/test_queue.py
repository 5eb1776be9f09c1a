"""The queue of sequences: order by key, ties by arrival."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deciding.queue import Key, SequenceQueue
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
