"""Contexts that are read in place: which pages compiled code reads, in which sizes."""

from __future__ import annotations

import pytest
import torch

from engine.computing.attention.in_place import InPlaceKv
from engine.computing.attention.layout import LEAST
from engine.computing.batch import BatchBuilder
from engine.deciding.plan import Chunk
from tests.engine.computing.attention.equality import CONFIG, PAGE
from tests.engine.computing.parts import make_plan, make_sequence


def test_each_page_of_a_context_is_read_once_and_no_short_one_as_far_as_the_longest() -> None:
    kv = InPlaceKv(CONFIG, 16, PAGE)
    long = make_sequence([1] * 18, [3, 5, 4, 9, 2], num_computed=17)
    short = make_sequence([1] * 3, [7], num_computed=2)
    one_token = Chunk(make_sequence([1] * 6, [8, 6]), 5, 1, True)
    attention = BatchBuilder(kv).build(make_plan([short, long], [one_token])).attention
    _, _, owner, pages, lengths, parts = (tensor.tolist() for tensor in attention.inputs)
    assert pages == [3, 5, 4, 9, 2, 7, 8, 6, kv.spare_page]
    assert owner == [0, 0, 0, 0, 0, 1, 2, 2, 0]
    assert lengths == [4, 4, 4, 4, 2, 3, 4, 2, 0]
    assert parts == [[0, 1, 2, 3, 4], [5, 8, 8, 8, 8], [6, 7, 8, 8, 8]]
    assert not attention.has_rest


@pytest.mark.parametrize("num_decodes", [0, 1])
def test_no_size_is_smaller_than_compiled_code_has_it(num_decodes: int) -> None:
    """Beside a chunk: a lone decode has code of its own."""
    kv = InPlaceKv(CONFIG, 16, PAGE)
    decodes = [make_sequence([1] * 3, [0], num_computed=2)][:num_decodes]
    chunk = Chunk(make_sequence([1] * 9, [1, 2, 3]), 0, 9, True)
    batch = BatchBuilder(kv, LEAST).build(make_plan(decodes, [chunk]))
    assert batch.attention.has_rest
    sizes = [size for tensor in batch.attention.inputs for size in tensor.shape]
    assert min(sizes) >= LEAST


def test_no_cuda_graph_is_captured_of_it() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(NotImplementedError):
        InPlaceKv(CONFIG, 1, PAGE).padded_plan(none, none, none)
