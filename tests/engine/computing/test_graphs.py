"""Padded decode batches against the plain ones. The capture here computes anew at each replay, so
it shows all but the capturing itself, which needs a CUDA device.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.computing.graphs import capture_on_cuda, sizes_to
from engine.computing.runner import load
from engine.deciding.request import Sampling
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import Saved, make_plan, make_sequence

PAGES, PAGE, CONTEXT = 64, 4, 48
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


@pytest.fixture
def folder(saved: Callable[[str], Saved]) -> Path:
    return saved("llama").folder


def batch(rng: random.Random) -> list[Sequence]:
    pages = list(range(PAGES))
    rng.shuffle(pages)
    sequences = []
    for _ in range(rng.randint(1, 9)):
        length = rng.choice((1, 4, 5, 17, 20))
        sampling = Sampling(temperature=0.0, logprobs=1)
        tokens = [rng.randrange(97) for _ in range(length)]
        own = [pages.pop() for _ in range(-(-length // PAGE))]
        sequences.append(make_sequence(tokens, own, sampling))
        sequences[-1].num_computed = length - 1
    return sequences


@pytest.mark.parametrize("device", DEVICES)
def test_a_padded_batch_computes_the_same_and_writes_to_its_own_pages_alone(
    folder: Path, device: str
) -> None:
    plain = load(folder, device=device, dtype="float32", num_pages=PAGES, page_size=PAGE)
    graphed = load(folder, device=device, dtype="float32", num_pages=PAGES, page_size=PAGE)
    captured = 0

    def capture(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        nonlocal captured
        captured += 1
        return compute if device == "cpu" else capture_on_cuda(compute)

    graphed.capture_decodes(8, CONTEXT, capture)
    num_captured = captured
    assert num_captured > 4
    rng = random.Random(2)
    for _ in range(30):
        memory = torch.randn(plain.kv.slots.shape, generator=torch.manual_seed(1))
        plain.kv.slots.copy_(memory)
        graphed.kv.slots.copy_(memory)
        plan = make_plan(batch(rng))
        expected, found = plain.run(plan), graphed.run(plan)
        assert [t.id for t in found] == [t.id for t in expected]
        for a, b in zip(found, expected, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        kept = slice(0, PAGES * PAGE)
        torch.testing.assert_close(
            graphed.kv.slots[:, :, kept], plain.kv.slots[:, :, kept], atol=1e-5, rtol=1e-5
        )
    assert captured == num_captured  # nothing is captured in service


def test_a_batch_is_padded_by_half_of_it_at_most() -> None:
    assert sizes_to(1) == [1]
    assert sizes_to(64)[-1] == 64
    sizes = sizes_to(64)
    assert sizes == sorted(set(sizes))
    for number in range(1, 65):
        size = next(s for s in sizes if s >= number)
        assert size <= max(2 * number - 1, 1) if number <= 8 else size <= 1.5 * number
