"""A compiled step against the plain one, and how often it compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine.computing import compiled, runner
from engine.computing.runner import ModelExecutor, load
from engine.deciding.plan import Chunk
from engine.deciding.request import Sampling
from tests.engine.computing.parts import Saved, make_plan, make_sequence

# (contexts of the decodes, (start, length) of the chunks)
SHAPES: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([5], []),
    ([5, 9], []),
    ([4, 4, 30, 2, 11], []),
    ([], [(0, 1)]),
    ([], [(0, 31)]),
    ([], [(8, 17), (0, 3)]),
    ([3, 20], [(0, 9)]),
    ([7], [(12, 1)]),
]


def likeliest(
    executor: ModelExecutor, decodes: list[int], chunks: list[tuple[int, int]]
) -> list[tuple[int, float]]:
    """Tokens of one iteration with log probabilities, on memory that was filled the same way."""
    executor.kv.slots.copy_(torch.randn(executor.kv.slots.shape, generator=torch.manual_seed(5)))
    page, sequences = 0, []
    for length in [n + 1 for n in decodes] + [start + n for start, n in chunks]:
        count = -(-length // executor.page_size)
        tokens = [(3 * page + j) % 97 for j in range(length)]
        sampling = Sampling(temperature=0.0, logprobs=20)
        sequences.append(make_sequence(tokens, range(page, page + count), sampling))
        page += count
    for sequence, computed in zip(sequences, decodes, strict=False):
        sequence.num_computed = computed
    made = [
        Chunk(sequence, start, length, index % 2 == 0)
        for index, (sequence, (start, length)) in enumerate(
            zip(sequences[len(decodes) :], chunks, strict=True)
        )
    ]
    plan = make_plan(sequences[: len(decodes)], made)
    return [(t.id, t.logprob or 0.0) for t in executor.run(plan)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(saved: Callable[[str], Saved]) -> Path:
    return saved("qwen3").folder


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own
def test_what_warm_up_compiles_serves_every_shape_and_computes_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    if not compiled.wants_compiler("auto", torch.device("cpu")):
        pytest.skip("no C++ compiler on this machine")
    for module in (compiled, runner):  # so that iterations of more tokens count as large
        monkeypatch.setattr(module, "SMALL", 16)
    monkeypatch.setattr(runner, "WARM", 8)
    plain = load(folder, dtype="float32", num_pages=64, page_size=4)
    fast = load(folder, dtype="float32", num_pages=64, page_size=4, compile="on")
    assert (plain.compilations, fast.compilations) == (0, 0)
    fast.warm_up()
    compiled_once = fast.compilations
    assert compiled_once == 3
    for decodes, chunks in SHAPES:
        expected, found = (likeliest(e, decodes, chunks) for e in (plain, fast))
        assert len(found) == len(expected)
        for (token, logprob), (same, other) in zip(found, expected, strict=True):
            assert token == same
            assert logprob == pytest.approx(other, abs=1e-4)
    assert fast.compilations == compiled_once


def test_without_a_compiler_auto_is_eager_and_on_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert load(folder, num_pages=4, compile="auto").is_compiled is False
    with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
        load(folder, num_pages=4, compile="on")
    with pytest.raises(ValueError, match="must be one of auto, on, off"):
        load(folder, num_pages=4, compile="maybe")


def test_int8_serves_and_stays_close(folder: Path) -> None:
    plain = load(folder, dtype="float32", num_pages=64, page_size=4)
    small = load(folder, dtype="float32", num_pages=64, page_size=4, quantize="int8")
    pairs = zip(likeliest(plain, [], [(0, 9)]), likeliest(small, [], [(0, 9)]), strict=True)
    for (_, expected), (_, found) in pairs:
        assert found == pytest.approx(expected, abs=0.5)
    with pytest.raises(ValueError, match="must be one of none, int8"):
        load(folder, num_pages=4, quantize="int2")
