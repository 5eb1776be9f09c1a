"""The batched, paged attention against attention written out token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.model_config import ModelConfig
from engine.computing import cpu
from engine.computing.attention import PagedAttention, attend_slowly
from engine.computing.batch import Batch, group_decodes, group_prompts, make_builder, rounded_up
from engine.computing.cpu import (
    FLOAT32_PRODUCTS_UP_TO,
    FUSED_MULTIPLE,
    GROUP_COST,
    LONGEST_TOGETHER,
    MATRIX_UNITS_FROM,
    NO_ROWS,
    QUERIES_AT_ONCE,
    WORTH_MATRIX_UNITS,
)
from engine.computing.kv import KvLanes, KvMemory, KvSlots, bytes_per_page, pages_in
from engine.computing.lanes import LEAST, LaneAttention
from engine.deciding.plan import Chunk
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import content_shape, fill, make_plan, make_sequence

PAGE, HEADS, KV_HEADS, DIM = 4, 6, 2, 8
LONGEST = 2 * QUERIES_AT_ONCE + 9  # tokens of a chunk: three runs of queries
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


def check_equal(
    decodes: list[int],
    chunks: list[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    least: int = 0,
) -> None:
    """Decodes with so much context, chunks of (start, length): all rows as `attend_slowly`, in
    either layout of the memory, by the fused kernel and by products.
    """
    for by_products in (False, True):
        _check_equal(decodes, chunks, dtype, least, by_products)
    _check_equal(decodes, chunks, dtype, max(least, LEAST), layout=KvLanes)


def _check_equal(
    decodes: list[int],
    chunks: list[tuple[int, int]],
    dtype: torch.dtype,
    least: int,
    by_products: bool | None = None,
    layout: type[KvSlots | KvLanes] = KvSlots,
) -> None:
    generator = torch.Generator().manual_seed(0)
    contexts = [n + 1 for n in decodes] + [start + length for start, length in chunks]
    counts = [-(-n // PAGE) for n in contexts]
    kv = layout(CONFIG, sum(counts), PAGE, dtype)
    fill(kv, torch.randn(content_shape(kv), generator=generator))
    order = torch.randperm(sum(counts), generator=generator).split(counts)
    sequences = [
        make_sequence([1] * n, pages.tolist()) for n, pages in zip(contexts, order, strict=True)
    ]
    for sequence, start in zip(sequences, [*decodes, *(c[0] for c in chunks)], strict=True):
        sequence.num_computed = start
    plan = make_plan(
        sequences[: len(decodes)],
        [
            Chunk(s, start, length, True)
            for s, (start, length) in zip(sequences[len(decodes) :], chunks, strict=True)
        ],
    )
    batch = make_builder(kv, HEADS, least).build(plan)
    qkv = torch.randn(len(batch.tokens), HEADS + 2 * KV_HEADS, DIM, generator=generator).to(dtype)
    out = _attend(kv, batch, qkv, by_products)

    assert len(out) == len(qkv)
    ends = batch.rows.tolist()
    rows, owners = ends[: len(decodes)], [(s, s.num_computed) for s in sequences[: len(decodes)]]
    for s, end, (start, length) in zip(
        sequences[len(decodes) :], ends[len(decodes) : len(sequences)], chunks, strict=True
    ):
        rows += range(end + 1 - length, end + 1)
        owners += [(s, position) for position in range(start, start + length)]
    assert len(set(rows)) == len(decodes) + sum(length for _, length in chunks)
    padding = [row for row in range(len(out)) if row not in rows]
    assert not out[padding].any()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for row, (sequence, position) in zip(rows, owners, strict=True):
        keys, values = _context(kv, sequence, position + 1)
        torch.testing.assert_close(keys[-1], qkv[row, HEADS : HEADS + KV_HEADS])
        torch.testing.assert_close(values[-1], qkv[row, HEADS + KV_HEADS :])
        expected = attend_slowly(qkv[row, :HEADS].float(), keys.float(), values.float()).flatten()
        torch.testing.assert_close(out[row].float(), expected, atol=tolerance, rtol=tolerance)


def _attend(
    kv: KvMemory, batch: Batch, qkv: torch.Tensor, by_products: bool | None
) -> torch.Tensor:
    """Layer 1, what is compiled in service computed as it is written."""
    attention: PagedAttention | LaneAttention
    if isinstance(kv, KvLanes):
        attention = LaneAttention(kv)
    else:
        assert isinstance(kv, KvSlots)
        attention = PagedAttention(kv, by_products)
    attention.plan = batch.attention  # type: ignore[assignment]
    decoded: Any = attention.traced(qkv, attention.memory(1), attention.inputs())
    return attention.attend(qkv, 1, decoded)


def _context(kv: KvMemory, sequence: Sequence, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of layer 1 by position, read slot by slot."""
    places = [(sequence.pages[p // PAGE], p % PAGE) for p in range(length)]
    if isinstance(kv, KvLanes):
        keys = torch.stack([kv.keys[1, page, :, :, offset] for page, offset in places])
        return keys, torch.stack([kv.values[1, page, :, offset] for page, offset in places])
    assert isinstance(kv, KvSlots)
    slots = [page * PAGE + offset for page, offset in places]
    keys, values = kv.slots[1][:, slots].transpose(0, 1).split(KV_HEADS, 1)
    return keys, values


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


def test_padding_is_neither_written_nor_attended_to() -> None:
    check_equal([5, 2], [], least=4)
    check_equal([], [(3, 2)], least=4)
    check_equal([], [(0, 33)])


def test_decodes_of_very_different_contexts_are_grouped_and_still_right() -> None:
    lengths = [7, GROUP_COST + 400, 0, GROUP_COST + 300, 30]
    check_equal(lengths, [(5, 3)])
    check_equal(lengths, [(5, 3)], torch.bfloat16)


def test_a_group_is_cut_where_its_padding_would_pass_the_limit() -> None:
    assert group_decodes([], 10) == []
    assert group_decodes([9, 9, 8], 10) == [(0, 3)]
    assert group_decodes([50, 48, 3, 2, 1], 10) == [(0, 2), (2, 5)]
    assert group_decodes([12, 5, 4], 10) == [(0, 2), (2, 3)]


def test_prompts_of_similar_length_are_computed_together_and_long_ones_by_themselves() -> None:
    assert group_prompts([]) == []
    assert group_prompts([90, 80, 20, 19]) == [
        (0, 2),
        (2, 4),
    ]  # 90^2 - 80^2 < 8,192 <= + 90^2 - 20^2
    assert group_prompts([512] * 5) == [(0, 2), (2, 4), (4, 5)]  # 2 * 512^2 = 2^19 pairs
    check_equal([3], [(0, 90), (0, 80), (2, 70), (0, 20), (0, LONGEST_TOGETHER + 1), (0, 90)])


def test_prompts_not_much_shorter_than_matrix_units_take_are_padded_and_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "has_matrix_units", lambda: True)
    kv = KvSlots(CONFIG, 256, PAGE, torch.bfloat16)
    lengths = [WORTH_MATRIX_UNITS - 1, WORTH_MATRIX_UNITS, MATRIX_UNITS_FROM, MATRIX_UNITS_FROM + 1]
    widths = []
    for length in lengths:
        sequence = make_sequence(range(length), range(64))
        plan = make_plan([], [Chunk(sequence, 0, length, True)])
        (group,) = make_builder(kv, HEADS).build(plan).attention.prompts
        widths.append(group.length)
    expected = [rounded_up(lengths[0], 16), MATRIX_UNITS_FROM, MATRIX_UNITS_FROM]
    assert widths == [*expected, rounded_up(lengths[3], 16)]
    check_equal([3], [(0, length) for length in lengths[:3]], torch.bfloat16)


@pytest.mark.parametrize(
    ("layout", "least", "expected"), [(KvSlots, 0, []), (KvSlots, 2, [0]), (KvLanes, 2, [0])]
)
def test_a_lone_token_that_samples_nothing_has_a_row_only_where_code_is_compiled(
    layout: type[KvSlots | KvLanes], least: int, expected: list[int]
) -> None:
    plan = make_plan([], [Chunk(make_sequence([1, 2], [0]), 0, 1, False)])
    kv = layout(CONFIG, 4, PAGE, torch.float32)
    assert make_builder(kv, HEADS, least).build(plan).rows.tolist() == expected


def test_prompts_in_float32_are_right_on_either_side_of_where_products_are_faster() -> None:
    check_equal([], [(0, FLOAT32_PRODUCTS_UP_TO + more) for more in (0, -3, 1, 9)])


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
    assert PagedAttention(KvSlots(CONFIG, 1, PAGE, dtype))._by_products == expected


def test_the_fused_kernel_is_given_few_sizes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps code for each new one: a server that met all lengths grew without end."""
    sizes: set[int] = set()
    fused = F.scaled_dot_product_attention

    def noted(q: torch.Tensor, k: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        sizes.update((q.shape[2], k.shape[2]))
        return fused(q, k, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    chunks = [(0, LONGEST_TOGETHER + 5), (7, 33), (40, 1)]  # short prompts have few lengths anyway
    _check_equal([], chunks, torch.bfloat16, least=0, by_products=False)
    _check_equal([], chunks, torch.bfloat16, least=LEAST, layout=KvLanes)
    assert sizes
    assert {size % FUSED_MULTIPLE for size in sizes} == {0}


def test_lengths_are_rounded_up_to_few() -> None:
    assert [rounded_up(n, 4) for n in (1, 4, 5, 8, 9, 16, 17)] == [1, 4, 6, 8, 12, 16, 24]
    assert rounded_up(1025, 32, coarsest=16) == 1040
    batch_sizes = {rounded_up(n, 32, coarsest=16) for n in range(1, 2049)}
    assert len(batch_sizes) < 200
    assert {rounded_up(n, 32, coarsest=16) >= n for n in range(1, 2049)} == {True}


@pytest.mark.parametrize("layout", [KvSlots, KvLanes])
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
    layout: type[KvSlots | KvLanes],
    has_matrix_units: bool,
    slow_rows: range,
    num_tokens: dict[int, int],
) -> None:
    """Whether decodes make them up or a chunk does; of sampled rows only the slow are avoided."""
    monkeypatch.setattr(cpu, "has_matrix_units", lambda: has_matrix_units)
    builder = make_builder(layout(CONFIG, 256, PAGE, torch.bfloat16), HEADS, LEAST, slow_rows)
    for count, expected in num_tokens.items():
        length = count - (LEAST if layout is KvLanes else 0)  # beside decodes, if of padding
        chunk = Chunk(make_sequence([1] * length, range(64)), 0, length, True)
        batch = builder.build(make_plan([], [chunk]))
        assert (len(batch.tokens), len(batch.rows)) == (expected, LEAST)
        decodes = [make_sequence([1] * 5, [number]) for number in range(count)]
        for sequence in decodes:
            sequence.num_computed = 3
        batch = builder.build(make_plan(decodes, []))
        sampled = slow_rows.stop if count in slow_rows else count
        assert (len(batch.tokens), len(batch.rows)) == (expected, sampled)


@pytest.mark.parametrize("layout", [KvSlots, KvLanes])
def test_what_is_not_finite_in_the_pages_of_one_reaches_nobody_else(
    layout: type[KvSlots | KvLanes],
) -> None:
    """Padding of the shorter context is read from a page that nobody owns."""
    kv = layout(CONFIG, 9, PAGE)
    content = torch.zeros(content_shape(kv))
    content[:, :, :PAGE] = torch.nan
    fill(kv, content)
    sequences = [make_sequence([1] * 20, [1, 2, 3, 4, 5]), make_sequence([1] * 4, [6])]
    for sequence in sequences:
        sequence.num_computed = len(sequence.request.prompt) - 1
    batch = make_builder(kv, HEADS).build(make_plan(sequences, []))
    out = _attend(kv, batch, torch.randn(2, HEADS + 2 * KV_HEADS, DIM), None)
    assert out.isfinite().all()


def test_many_decodes_are_padded_with_sequences_that_nobody_reads() -> None:
    """18 is the next number after 17; the chunk's rows, or none, lie where the padding computes."""
    check_equal([70] * 17, [], torch.bfloat16)
    check_equal([70] * 17, [(0, 40)], torch.bfloat16)
    check_equal([270] * 17, [(5, 40)])


def test_pages_that_fit_are_counted_over_all_layers() -> None:
    page = 2 * KV_HEADS * DIM * CONFIG.num_layers * PAGE * 4
    assert bytes_per_page(CONFIG, PAGE, torch.float32) == page
    assert bytes_per_page(CONFIG, PAGE, torch.bfloat16) == page // 2
    assert pages_in(10 * page - 1, CONFIG, PAGE, torch.float32) == 9
    assert KvSlots(CONFIG, 9, PAGE).num_bytes == (9 + 2) * page  # spare one and sink
