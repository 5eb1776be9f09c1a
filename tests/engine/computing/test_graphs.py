"""Padded decode batches against the plain ones. The capture here computes anew at each replay, so
it shows all but the capturing itself, which needs a CUDA device.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from engine.computing import graphs
from engine.computing.graphs import Capture, CudaCapture, Replay, sizes_to
from engine.computing.loading import load
from engine.computing.runner import ModelExecutor
from engine.deciding.request import Sampling
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import Saved, make_plan, make_sequence

CONTEXT, BATCH = 48, 8
NUM_PAGES = {1: 400, 4: 128}  # by page size
PLENTY = 1 << 30
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]
# Context lengths of a batch with pages of one token, and whether a graph is worth its padding.
BATCHES = [
    ([1], True),
    ([9, 12, 16], True),  # 4 of 16 pages
    ([17, 20, 20, 30], True),  # 4 of 32
    ([33], True),  # 1 of 64
    ([40] * 8, True),  # 8 of 64
    ([48, 1, 1, 1, 1, 1], False),  # 8 of 64 instead of 53
    ([1] * 9, False),  # more than were captured
]


class Counting:
    """Captures by `capture`, and counts captures and replays."""

    def __init__(self, device: str) -> None:
        self._capture: Capture = CudaCapture() if device == "cuda" else lambda compute: compute
        self.captures = self.replays = 0

    def __call__(self, compute: Callable[[], object]) -> Replay:
        self.captures += 1
        replay = self._capture(compute)

        def counted() -> None:
            self.replays += 1
            replay()

        return counted


@pytest.fixture
def folder(saved: Callable[[str], Saved]) -> Path:
    return saved("llama").folder


def batch(lengths: list[int], page_size: int, rng: random.Random) -> list[Sequence]:
    pages = list(range(NUM_PAGES[page_size]))
    rng.shuffle(pages)
    sequences = []
    for length in lengths:
        sampling = Sampling(temperature=0.0, logprobs=1)
        tokens = [rng.randrange(97) for _ in range(length)]
        own = [pages.pop() for _ in range(-(-length // page_size))]
        sequences.append(make_sequence(tokens, own, sampling, num_computed=length - 1))
    return sequences


def pair(folder: Path, device: str, page_size: int) -> tuple[ModelExecutor, ModelExecutor]:
    made = [
        load(
            folder,
            device=device,
            dtype="float32",
            num_pages=NUM_PAGES[page_size],
            page_size=page_size,
        )
        for _ in range(2)
    ]
    return made[0], made[1]


def compare(plain: ModelExecutor, graphed: ModelExecutor, sequences: list[Sequence]) -> None:
    """One iteration on the same memory: tokens, log probabilities, and what is written."""
    memory = torch.randn(plain.kv.keys_and_values.shape, generator=torch.manual_seed(1))
    plain.kv.keys_and_values.copy_(memory)
    graphed.kv.keys_and_values.copy_(memory)
    plan = make_plan(sequences)
    tokens, same = plain.run(plan), graphed.run(plan)
    assert [t.id for t in same] == [t.id for t in tokens]
    for a, b in zip(same, tokens, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    kept = slice(0, plain.num_pages * plain.page_size)
    found, expected = (e.kv.keys_and_values[:, :, kept] for e in (graphed, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_padded_batch_computes_the_same_and_writes_to_its_own_pages_alone(
    folder: Path, device: str
) -> None:
    plain, graphed = pair(folder, device, 4)
    counting = Counting(device)
    graphed.capture_decodes(BATCH, CONTEXT, counting, PLENTY)
    captures = counting.captures
    assert captures > 4
    rng = random.Random(2)
    for _ in range(30):
        lengths = [rng.choice((1, 4, 5, 17, 20, 33, 48)) for _ in range(rng.randint(1, 9))]
        compare(plain, graphed, batch(lengths, 4, rng))
    assert counting.replays > 20
    assert counting.captures == captures  # nothing is captured in service


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_is_replayed_where_its_padding_is_worth_it(folder: Path, device: str) -> None:
    plain, graphed = pair(folder, device, 1)
    counting = Counting(device)
    graphed.capture_decodes(BATCH, CONTEXT, counting, PLENTY)
    rng = random.Random(3)
    for lengths, is_replayed in BATCHES:
        before = counting.replays
        compare(plain, graphed, batch(lengths, 1, rng))
        assert counting.replays - before == is_replayed, lengths


@pytest.mark.parametrize("device", DEVICES)
def test_padding_that_is_not_a_number_is_read_by_nobody(folder: Path, device: str) -> None:
    """Padding decodes token 0, and what it reads with weight 0 must be a number."""
    plain, graphed = pair(folder, device, 4)
    for executor in (plain, graphed):
        executor.model.embedding[0] = torch.nan
    graphed.capture_decodes(BATCH, CONTEXT, Counting(device), PLENTY)
    sequences = batch([5, 9, 17], 4, random.Random(1))
    for sequence in sequences:
        sequence.expect_token(0.0)
        sequence.take_token(1, 0.0)  # what is decoded
    for _ in range(2):  # the first writes what the second must not read
        found, expected = (executor.run(make_plan(sequences)) for executor in (graphed, plain))
        assert [token.id for token in found] == [token.id for token in expected]
        assert all(token.is_sampled for token in found)


def test_no_graph_gathers_more_than_it_may_and_the_largest_is_captured_first(folder: Path) -> None:
    plain, graphed = pair(folder, "cpu", 1)
    counting = Counting("cpu")
    per_page = 2 * 2 * 8 * 4  # bytes: keys and values, heads, their size, float32
    buckets = graphed.capture_decodes(BATCH, CONTEXT, counting, 128 * per_page)
    sizes = [bucket.sequences * bucket.pages for bucket in buckets]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 128
    compare(plain, graphed, batch([40] * 8, 1, random.Random(4)))  # 8 of 64 pages
    assert counting.replays == 0
    compare(plain, graphed, batch([30] * 4, 1, random.Random(4)))  # 4 of 32
    assert counting.replays == 1


class FakeCuda:
    """What torch.cuda has for capturing; `done` is what happened, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._current: list[FakeStream] = [FakeStream("service", self.done)]
        self._num_pools = self._num_streams = 0

    def graph_pool_handle(self) -> str:
        self._num_pools += 1
        return f"pool {self._num_pools}"

    def Stream(self) -> FakeStream:  # as torch has it
        self._num_streams += 1
        return FakeStream(f"stream {self._num_streams}", self.done)

    def current_stream(self) -> FakeStream:
        return self._current[-1]

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self._current.append(stream)
        yield
        self._current.pop()

    def CUDAGraph(self) -> FakeGraph:  # as torch has it
        return FakeGraph()

    @contextmanager
    def graph(self, graph: FakeGraph, pool: str, stream: FakeStream) -> Iterator[None]:
        self.done.append(f"capture on {stream.name} from {pool}")
        with self.stream(stream):
            yield


class FakeStream:
    def __init__(self, name: str, done: list[str]) -> None:
        self.name = name
        self._done = done

    def wait_stream(self, other: FakeStream) -> None:
        self._done.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def replay(self) -> None:
        pass


def test_all_graphs_are_captured_from_one_pool_on_one_stream_after_warming_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a pool each they needed the sum of their memory, with a stream each to warm up on the
    sum of that of the streams.
    """
    cuda = FakeCuda()
    monkeypatch.setattr(graphs.torch, "cuda", cuda)
    capture = CudaCapture()
    for _ in range(2):
        cuda.done.clear()
        capture(lambda: cuda.done.append(f"computed on {cuda.current_stream().name}"))
        assert cuda.done == [
            "stream 1 waits for service",
            "computed on stream 1",
            "computed on stream 1",
            "service waits for stream 1",
            "capture on stream 1 from pool 1",
            "computed on stream 1",
        ]


def test_a_batch_is_padded_by_half_of_it_at_most() -> None:
    assert sizes_to(1) == [1]
    assert sizes_to(64)[-1] == 64
    sizes = sizes_to(64)
    assert sizes == sorted(set(sizes))
    for number in range(1, 65):
        size = next(s for s in sizes if s >= number)
        assert size <= max(2 * number - 1, 1) if number <= 8 else size <= 1.5 * number
