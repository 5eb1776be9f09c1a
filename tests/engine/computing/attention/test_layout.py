"""Either layout of KV memory: its attention, its padding, its pages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.in_place import InPlaceKv
from engine.computing.attention.layout import bytes_per_page, pages_in
from engine.computing.batch import BatchBuilder
from tests.engine.computing.attention.equality import (
    CONFIG,
    DIM,
    HEADS,
    KV_HEADS,
    PAGE,
    Layout,
    check_equal,
)
from tests.engine.computing.parts import content_shape, fill, make_plan, make_sequence


@settings(max_examples=40, deadline=None)
@given(
    decodes=st.lists(st.integers(0, 40), max_size=5),
    chunks=st.lists(st.tuples(st.just(0) | st.integers(0, 20), st.integers(1, 20)), max_size=5),
)
def test_paged_attention_equals_attention_written_out(
    decodes: list[int], chunks: list[tuple[int, int]]
) -> None:
    if decodes or chunks:
        check_equal(decodes, chunks)


def test_padding_is_neither_written_nor_attended_to() -> None:
    check_equal([5, 2], [], least=4)
    check_equal([], [(3, 2)], least=4)
    check_equal([], [(0, 33)])


@pytest.mark.parametrize("layout", [GatheredKv, InPlaceKv])
def test_what_is_not_finite_in_the_pages_of_one_reaches_nobody_else(
    layout: type[Layout],
) -> None:
    """Padding of the shorter context is read from a page that nobody owns."""
    kv = layout(CONFIG, 9, PAGE)
    content = torch.zeros(content_shape(kv))
    content[:, :, :PAGE] = torch.nan
    fill(kv, content)
    sequences = [
        make_sequence([1] * 20, [1, 2, 3, 4, 5], num_computed=19),
        make_sequence([1] * 4, [6], num_computed=3),
    ]
    batch = BatchBuilder(kv).build(make_plan(sequences, []))
    out = batch.attention.attend(torch.randn(2, HEADS + 2 * KV_HEADS, DIM), 1)
    assert out.isfinite().all()


def test_pages_that_fit_are_counted_over_all_layers() -> None:
    page = 2 * KV_HEADS * DIM * CONFIG.num_layers * PAGE * 4
    assert bytes_per_page(CONFIG, PAGE, torch.float32) == page
    assert bytes_per_page(CONFIG, PAGE, torch.bfloat16) == page // 2
    assert pages_in(10 * page - 1, CONFIG, PAGE, torch.float32) == 9
    assert GatheredKv(CONFIG, 9, PAGE).num_bytes == (9 + 2) * page  # spare one and sink
