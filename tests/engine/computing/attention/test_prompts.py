"""Chunks of prompts: how they are grouped and padded, and by what they are multiplied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.in_place import InPlaceKv
from engine.computing.attention.layout import LEAST
from engine.computing.attention.prompts import group_prompts
from engine.computing.batch import BatchBuilder
from engine.computing.cpu import (
    FLOAT32_PRODUCTS_UP_TO,
    FUSED_MULTIPLE,
    LONGEST_TOGETHER,
    MATRIX_UNITS_FROM,
    QUERIES_AT_ONCE,
    WORTH_MATRIX_UNITS,
    rounded_up,
)
from engine.deciding.plan import Chunk
from tests.engine.computing.attention.equality import (
    CONFIG,
    PAGE,
    check_equal,
    check_layout,
)
from tests.engine.computing.parts import make_plan, make_sequence


@settings(max_examples=12, deadline=None)
@given(
    decodes=st.lists(st.integers(0, 40), max_size=4),
    chunks=st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 2 * QUERIES_AT_ONCE + 9)), max_size=3
    ),
)
def test_chunks_in_bfloat16_equal_attention_written_out(
    decodes: list[int], chunks: list[tuple[int, int]]
) -> None:
    if decodes or chunks:
        check_equal(decodes, chunks, torch.bfloat16)


def test_prompts_of_similar_length_are_computed_together_and_long_ones_by_themselves() -> None:
    assert group_prompts([]) == []
    assert group_prompts([90, 80, 20, 19]) == [
        (0, 2),
        (2, 4),
    ]  # 90^2 - 80^2 < 8,192 <= + 90^2 - 20^2
    assert group_prompts([512] * 5) == [(0, 2), (2, 4), (4, 5)]  # 2 * 512^2 = 2^19 pairs
    check_equal([3], [(0, 90), (0, 80), (2, 70), (0, 20), (0, LONGEST_TOGETHER + 1), (0, 90)])


def test_prompts_not_much_shorter_than_matrix_units_take_are_padded_and_right() -> None:
    kv = GatheredKv(CONFIG, 256, PAGE, torch.bfloat16)
    lengths = [WORTH_MATRIX_UNITS - 1, WORTH_MATRIX_UNITS, MATRIX_UNITS_FROM, MATRIX_UNITS_FROM + 1]
    widths = []
    for length in lengths:
        sequence = make_sequence(range(length), range(64))
        plan = make_plan([], [Chunk(sequence, 0, length, True)])
        (group,) = BatchBuilder(kv, pads_prompts=True).build(plan).attention.prefill.prompts
        widths.append(group.length)
    expected = [rounded_up(lengths[0], 16), MATRIX_UNITS_FROM, MATRIX_UNITS_FROM]
    assert widths == [*expected, rounded_up(lengths[3], 16)]
    check_equal([3], [(0, length) for length in lengths[:3]], torch.bfloat16, pads_prompts=True)


def test_prompts_in_float32_are_right_on_either_side_of_where_products_are_faster() -> None:
    check_equal(
        [],
        [
            (0, FLOAT32_PRODUCTS_UP_TO),
            (0, FLOAT32_PRODUCTS_UP_TO - 3),
            (0, FLOAT32_PRODUCTS_UP_TO + 1),
            (0, FLOAT32_PRODUCTS_UP_TO + 9),
        ],
    )


def test_the_fused_kernel_is_given_few_sizes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps code for each new one: a server that met all lengths grew without end."""
    sizes: set[int] = set()
    fused = F.scaled_dot_product_attention

    def noted(q: torch.Tensor, k: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        sizes.update((q.shape[2], k.shape[2]))
        return fused(q, k, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    chunks = [(0, LONGEST_TOGETHER + 5), (7, 33), (40, 1)]  # short prompts have few lengths anyway
    check_layout(GatheredKv, [], chunks, torch.bfloat16, by_products=False)
    check_layout(InPlaceKv, [], chunks, torch.bfloat16, least=LEAST)
    assert sizes
    assert {size % FUSED_MULTIPLE for size in sizes} == {0}
