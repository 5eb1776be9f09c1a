"""The batched, paged attention of either layout against attention written out token by token."""

from __future__ import annotations

import torch

from engine.checkpoint.model_config import ModelConfig
from engine.computing.attention.gathered import GatheredKv
from engine.computing.attention.in_place import InPlaceKv
from engine.computing.attention.layout import LEAST, KvLayout
from engine.computing.attention.prompts import attend_slowly
from engine.computing.batch import BatchBuilder
from engine.deciding.plan import Chunk
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import content_shape, fill, make_plan, make_sequence

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
Layout = GatheredKv | InPlaceKv


def check_equal(
    decodes: list[int],
    chunks: list[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    least: int = 0,
    pads_prompts: bool | None = None,
) -> None:
    """Decodes with so much context, chunks of (start, length): all rows as `attend_slowly`, in
    either layout of the memory, by the fused kernel and by products.
    """
    for by_products in (False, True):
        check_layout(GatheredKv, decodes, chunks, dtype, least, by_products, pads_prompts)
    more = max(least, LEAST)
    check_layout(InPlaceKv, decodes, chunks, dtype, more, pads_prompts=pads_prompts)


def check_layout(
    layout: type[Layout],
    decodes: list[int],
    chunks: list[tuple[int, int]],
    dtype: torch.dtype,
    least: int = 0,
    by_products: bool | None = None,
    pads_prompts: bool | None = None,
) -> None:
    """As `check_equal`, in one layout and one way. What is compiled in service is computed as it is
    written.
    """
    generator = torch.Generator().manual_seed(0)
    contexts = [n + 1 for n in decodes] + [start + length for start, length in chunks]
    counts = [-(-n // PAGE) for n in contexts]
    kv = layout(CONFIG, sum(counts), PAGE, dtype, by_products=by_products)
    fill(kv, torch.randn(content_shape(kv), generator=generator))
    order = torch.randperm(sum(counts), generator=generator).split(counts)
    starts = [*decodes, *(start for start, _ in chunks)]
    sequences = [
        make_sequence([1] * n, pages.tolist(), num_computed=start)
        for n, pages, start in zip(contexts, order, starts, strict=True)
    ]
    plan = make_plan(
        sequences[: len(decodes)],
        [
            Chunk(s, start, length, True)
            for s, (start, length) in zip(sequences[len(decodes) :], chunks, strict=True)
        ],
    )
    batch = BatchBuilder(kv, least, pads_prompts=pads_prompts).build(plan)
    qkv = torch.randn(len(batch.tokens), HEADS + 2 * KV_HEADS, DIM, generator=generator).to(dtype)
    out = batch.attention.attend(qkv, 1)

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


def _context(kv: KvLayout, sequence: Sequence, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of layer 1 by position, read slot by slot."""
    places = [(sequence.pages[p // PAGE], p % PAGE) for p in range(length)]
    if isinstance(kv, InPlaceKv):
        keys = torch.stack([kv.keys[1, page, :, :, offset] for page, offset in places])
        return keys, torch.stack([kv.values[1, page, :, offset] for page, offset in places])
    assert isinstance(kv, GatheredKv)
    slots = [page * PAGE + offset for page, offset in places]
    keys, values = kv.keys_and_values[1][:, slots].transpose(0, 1).split(KV_HEADS, 1)
    return keys, values
