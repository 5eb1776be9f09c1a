"""The numbers of rows that batches have, in either layout of the KV memory."""

from __future__ import annotations

import pytest
import torch

from engine.computing import cpu
from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.in_place import InPlaceKv
from engine.computing.attention.layout import LEAST
from engine.computing.batch import BatchBuilder
from engine.computing.cpu import NO_ROWS, rounded_up
from engine.deciding.plan import Chunk
from tests.engine.computing.attention.equality import CONFIG, PAGE, Layout
from tests.engine.computing.parts import make_plan, make_sequence


@pytest.mark.parametrize(
    ("layout", "least", "expected"),
    [(GatheredKv, 0, []), (GatheredKv, 2, [0]), (InPlaceKv, 2, [0])],
)
def test_a_lone_token_that_samples_nothing_has_a_row_only_where_code_is_compiled(
    layout: type[Layout], least: int, expected: list[int]
) -> None:
    plan = make_plan([], [Chunk(make_sequence([1, 2], [0]), 0, 1, False)])
    kv = layout(CONFIG, 4, PAGE, torch.float32)
    assert BatchBuilder(kv, least).build(plan).rows.tolist() == expected


def test_lengths_are_rounded_up_to_few() -> None:
    assert [rounded_up(n, 4) for n in (1, 4, 5, 8, 9, 16, 17)] == [1, 4, 6, 8, 12, 16, 24]
    assert rounded_up(1025, 32, coarsest=16) == 1040
    batch_sizes = {rounded_up(n, 32, coarsest=16) for n in range(1, 2049)}
    assert len(batch_sizes) < 200
    assert {rounded_up(n, 32, coarsest=16) >= n for n in range(1, 2049)} == {True}


@pytest.mark.parametrize("layout", [GatheredKv, InPlaceKv])
@pytest.mark.parametrize(
    ("has_matrix_units", "slow_rows", "num_tokens"),
    [
        (True, range(17, 36), {16: 16, 17: 36, 32: 36, 35: 36, 65: 72, 130: 144}),
        (True, NO_ROWS, {16: 16, 17: 18, 32: 32, 35: 36, 65: 72, 130: 144}),
        (False, NO_ROWS, {16: 16, 17: 17, 32: 32, 35: 36, 65: 68, 130: 136}),
    ],
)
def test_numbers_of_rows_are_few_and_none_that_is_slow(
    monkeypatch: pytest.MonkeyPatch,
    layout: type[Layout],
    has_matrix_units: bool,
    slow_rows: range,
    num_tokens: dict[int, int],
) -> None:
    """Whether decodes make them up or a chunk does; of sampled rows only the slow are avoided."""
    monkeypatch.setattr(cpu, "has_matrix_units", lambda: has_matrix_units)
    builder = BatchBuilder(layout(CONFIG, 256, PAGE, torch.bfloat16), LEAST, slow_rows)
    for count, expected in num_tokens.items():
        length = count - (LEAST if layout is InPlaceKv else 0)  # beside decodes, if of padding
        chunk = Chunk(make_sequence([1] * length, range(64)), 0, length, True)
        batch = builder.build(make_plan([], [chunk]))
        assert (len(batch.tokens), len(batch.rows)) == (expected, LEAST)
        decodes = [make_sequence([1] * 5, [number], num_computed=3) for number in range(count)]
        batch = builder.build(make_plan(decodes, []))
        sampled = slow_rows.stop if count in slow_rows else count
        assert (len(batch.tokens), len(batch.rows)) == (expected, sampled)
