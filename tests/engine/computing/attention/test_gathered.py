"""Contexts that are gathered: how decodes are grouped, and by what they are multiplied."""

from __future__ import annotations

import pytest
import torch

from engine.computing import cpu
from engine.computing.attention.gathered import GatheredKv, group_decodes
from engine.computing.cpu import GROUP_COST
from tests.engine.computing.attention.equality import CONFIG, PAGE, check_equal


def test_decodes_of_very_different_contexts_are_grouped_and_still_right() -> None:
    lengths = [7, GROUP_COST + 400, 0, GROUP_COST + 300, 30]
    check_equal(lengths, [(5, 3)])
    check_equal(lengths, [(5, 3)], torch.bfloat16)


def test_a_group_is_cut_where_its_padding_would_pass_the_limit() -> None:
    assert group_decodes([], 10) == []
    assert group_decodes([9, 9, 8], 10) == [(0, 3)]
    assert group_decodes([50, 48, 3, 2, 1], 10) == [(0, 2), (2, 5)]
    assert group_decodes([12, 5, 4], 10) == [(0, 2), (2, 3)]


def test_many_decodes_are_padded_with_sequences_that_nobody_reads() -> None:
    """18 is the next number after 17; the chunk's rows, or none, lie where the padding computes."""
    check_equal([70] * 17, [], torch.bfloat16)
    check_equal([70] * 17, [(0, 40)], torch.bfloat16)
    check_equal([270] * 17, [(5, 40)])


@pytest.mark.parametrize(
    ("dtype", "has_matrix_units", "expected"),
    [
        (torch.bfloat16, True, False),
        (torch.bfloat16, False, True),
        (torch.float32, True, False),
        (torch.float32, False, False),
    ],
)
def test_products_are_written_out_where_the_fused_kernel_lacks_matrix_units(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, has_matrix_units: bool, expected: bool
) -> None:
    monkeypatch.setattr(cpu, "has_matrix_units", lambda: has_matrix_units)
    assert GatheredKv(CONFIG, 1, PAGE, dtype).by_products == expected
