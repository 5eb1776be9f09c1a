"""The batched, paged attention against attention written out token by token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.computing.attention import attend, attend_slowly
from engine.computing.batch import GROUP_COST, BatchBuilder, group_decodes
from engine.computing.config import ModelConfig
from engine.computing.kv import KvMemory, bytes_per_page, pages_in
from engine.deciding.plan import Chunk
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import make_plan, make_sequence

PAGE, HEADS, KV_HEADS, DIM = 4, 6, 2, 8
CONFIG = ModelConfig(
    vocab_size=10,
    hidden_size=HEADS * DIM,
    intermediate_size=8,
    num_layers=2,
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=DIM,
    max_positions=4096,
)


def check_equal(decodes: list[int], chunks: list[tuple[int, int]]) -> None:
    """Decodes with so much context, chunks of (start, length): all rows as `attend_slowly`."""
    generator = torch.Generator().manual_seed(0)
    contexts = [n + 1 for n in decodes] + [start + length for start, length in chunks]
    counts = [-(-n // PAGE) for n in contexts]
    kv = KvMemory(CONFIG, sum(counts), PAGE)
    kv.slots.normal_(generator=generator)
    order = torch.randperm(sum(counts), generator=generator).split(counts)
    sequences = [
        make_sequence([1] * n, pages.tolist()) for n, pages in zip(contexts, order, strict=True)
    ]
    for sequence, start in zip(sequences, [*decodes, *(c[0] for c in chunks)], strict=True):
        sequence.num_computed = start
    plan = make_plan(
        sequences[: len(decodes)],
        [
            Chunk(s, start, length, False)
            for s, (start, length) in zip(sequences[len(decodes) :], chunks, strict=True)
        ],
    )
    batch = BatchBuilder(PAGE, torch.float32, torch.device("cpu")).build(plan)
    qkv = torch.randn(len(batch.tokens), HEADS + 2 * KV_HEADS, DIM, generator=generator)
    out = attend(qkv, kv.layers()[1], batch.attention, KV_HEADS)

    rows = batch.rows.tolist()[: len(decodes)] + list(range(len(decodes), len(qkv)))
    owners = [(s, s.num_computed) for s in sequences[: len(decodes)]]
    for s, (start, length) in zip(sequences[len(decodes) :], chunks, strict=True):
        owners += [(s, position) for position in range(start, start + length)]
    for row, (sequence, position) in zip(rows, owners, strict=True):
        keys, values = _context(kv, sequence, position + 1)
        expected = attend_slowly(qkv[row, :HEADS], keys, values).flatten()
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(keys[-1], qkv[row, HEADS : HEADS + KV_HEADS])
        torch.testing.assert_close(values[-1], qkv[row, HEADS + KV_HEADS :])


def _context(kv: KvMemory, sequence: Sequence, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of layer 1 by position, read slot by slot."""
    slots = [sequence.pages[p // PAGE] * PAGE + p % PAGE for p in range(length)]
    return kv.slots[1, slots, 0], kv.slots[1, slots, 1]


@settings(max_examples=40, deadline=None)
@given(
    decodes=st.lists(st.integers(0, 40), max_size=5),
    chunks=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=3),
)
def test_paged_attention_equals_attention_written_out(
    decodes: list[int], chunks: list[tuple[int, int]]
) -> None:
    if decodes or chunks:
        check_equal(decodes, chunks)


def test_decodes_of_very_different_contexts_are_grouped_and_still_right() -> None:
    check_equal([7, GROUP_COST + 400, 0, GROUP_COST + 300, 30], [(5, 3)])


def test_a_group_is_cut_where_its_padding_would_pass_the_limit() -> None:
    assert group_decodes([], 10) == []
    assert group_decodes([9, 9, 8], 10) == [(0, 3)]
    assert group_decodes([50, 48, 3, 2, 1], 10) == [(0, 2), (2, 5)]
    assert group_decodes([12, 5, 4], 10) == [(0, 2), (2, 3)]


def test_pages_that_fit_are_counted_over_all_layers() -> None:
    page = 2 * KV_HEADS * DIM * CONFIG.num_layers * PAGE * 4
    assert bytes_per_page(CONFIG, PAGE, torch.float32) == page
    assert bytes_per_page(CONFIG, PAGE, torch.bfloat16) == page // 2
    assert pages_in(10 * page - 1, CONFIG, PAGE, torch.float32) == 9
    assert KvMemory(CONFIG, 9, PAGE).num_bytes == 9 * page
