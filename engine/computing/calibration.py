"""Measures what iterations cost: real plans of many shapes, run by the real executor.

Runs before any sequence owns pages, and uses them as scratch. Every shape is measured again and
again, whichever had least time so far first, until the time is used up: cheap ones often, costly
ones seldom, and a busy moment of the machine falls on all alike. Of a shape's durations the lower
quartile counts. Seconds; lengths in tokens.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from engine.computing.fit import Sample
from engine.deciding.latency import add_chunk
from engine.deciding.plan import Chunk, Plan, Token, Work
from engine.deciding.request import Request, Sampling
from engine.deciding.sequence import Sequence

MAX_CHUNK = 2048
MAX_REPEATS = 15
LARGEST_SHARE = 0.2  # of the time, that one run of one shape may take
SMALL_TOKENS = 16  # iterations of at most so many tokens are measured at any price
HELD_OUT = 12  # shapes that are measured to judge a profile, not to make it
KEEP_FIRST = 0.01  # of the time: the first run of a costlier shape counts, warm or not


class Computes(Protocol):
    """An executor with its memory: what is measured."""

    @property
    def num_pages(self) -> int: ...

    @property
    def page_size(self) -> int: ...

    def run(self, plan: Plan) -> list[Token]: ...


class Room(NamedTuple):
    """What an iteration may ask for."""

    context_len: int
    max_batch_size: int
    num_positions: int  # that the memory holds


class Shape(NamedTuple):
    """An iteration: a context per decode, and (start, length) per chunk."""

    decodes: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()

    @property
    def work(self) -> Work:
        work = Work(len(self.decodes), sum(self.decodes))
        for start, length in self.chunks:
            work = add_chunk(work, start, length)
        return work

    def fits(self, room: Room, page_size: int) -> bool:
        lengths = [*self.decodes, *(start + length for start, length in self.chunks)]
        positions = sum(-(-n // page_size) * page_size for n in lengths)
        return (
            max(lengths) <= room.context_len
            and len(lengths) <= room.max_batch_size
            and positions <= room.num_positions
        )


@dataclass(slots=True)
class Measured:
    """A shape, ready to run, and how long its runs took."""

    shape: Shape
    plan: Plan
    seconds: list[float] = field(default_factory=list)

    def run(self, executor: Computes) -> None:
        started_at = time.perf_counter()
        executor.run(self.plan)
        self.seconds.append(time.perf_counter() - started_at)

    @property
    def sample(self) -> Sample:
        return Sample(self.shape.work, sorted(self.seconds)[len(self.seconds) // 4])


class Measurements(NamedTuple):
    """`held_out` are for judging what is made of `samples`."""

    samples: list[Sample]
    held_out: list[Sample]
    max_chunk: int


def measure(
    executor: Computes, context_len: int, max_batch_size: int, seconds: float
) -> Measurements:
    """Takes about `seconds`, however slow the model; the largest shapes are left out first."""
    size = executor.page_size
    room = Room(context_len, max_batch_size, executor.num_pages * size)
    shapes = [s for s in _shapes(room) if s.fits(room, size)]
    held_out = [s for s in _random_shapes(room) if s.fits(room, size)][:HELD_OUT]
    measured = _measure(executor, {*shapes, *held_out}, seconds)
    samples = [m.sample for m in measured if m.shape not in held_out]
    judged = [m.sample for m in measured if m.shape in held_out]
    max_chunk = max(s.work.num_prefill for s in samples if s.work.num_chunks == 1)
    return Measurements(samples, judged, max_chunk)


def _measure(executor: Computes, shapes: Iterable[Shape], seconds: float) -> list[Measured]:
    ends_at = time.perf_counter() + seconds
    ordered = sorted(shapes, key=lambda s: (s.work.num_tokens, s.work.prefill_pairs, s))
    measured: list[Measured] = []
    for shape in ordered:
        if measured and _is_too_large(shape, measured[-1], seconds, ends_at):
            break
        measured.append(Measured(shape, make_plan(shape, executor.page_size)))
        measured[-1].run(executor)
        if measured[-1].seconds[0] < KEEP_FIRST * seconds:  # it allocated, and may have compiled
            measured[-1].seconds.clear()
            measured[-1].run(executor)
    while True:
        least = min(measured, key=lambda m: sum(m.seconds))
        is_done = len(least.seconds) >= MAX_REPEATS
        if is_done or time.perf_counter() + least.seconds[0] > ends_at:
            return measured
        least.run(executor)


def _is_too_large(shape: Shape, smaller: Measured, seconds: float, ends_at: float) -> bool:
    """Whether its first run would take too much of the time; the first shapes of all are run in any
    case, so that there is something to fit.
    """
    expected_s = smaller.seconds[-1] * shape.work.num_tokens / smaller.shape.work.num_tokens
    if shape.work.num_tokens <= SMALL_TOKENS:
        return False
    return expected_s > LARGEST_SHARE * seconds or time.perf_counter() + expected_s > ends_at


# Shapes


def _powers(low: int, high: int, factor: int = 2) -> Iterator[int]:
    """low, low * factor, ... and high."""
    while low < high:
        yield low
        low *= factor
    yield high


def _shapes(room: Room) -> Iterator[Shape]:
    deep = room.context_len // 2
    for count in _powers(1, room.max_batch_size):
        for context in (16, 128, 512, deep):
            yield Shape((context,) * count)
        yield Shape(tuple(32 + 700 * i // count for i in range(count)))
    for length in _powers(4, min(MAX_CHUNK, room.context_len - 1)):
        for start in (0, 256, deep) if length <= 512 else (0,):
            yield Shape(chunks=((start, length),))
    for count in (1, 4, 16, 48, room.max_batch_size - 1):
        for context, length, start in (
            (64, 4, 0),
            (64, 32, 64),
            (512, 16, 512),
            (200, 96, 0),
            (400, 256, 128),
            (100, 512, 0),
        ):
            yield Shape((context,) * count, ((start, length),))
    for count in (2, 4, 8):
        yield Shape(chunks=((0, 24),) * count)
        yield Shape((150,) * 8, ((0, 48),) * count)


def _random_shapes(room: Room) -> Iterator[Shape]:
    """Mixed iterations as service has them, the same on every machine."""
    rng = random.Random(20_24)
    for _ in range(4 * HELD_OUT):
        count = rng.randint(1, max(1, min(48, room.max_batch_size - 2)))
        decodes = tuple(rng.randint(8, 800) for _ in range(count))
        lengths = [rng.randint(1, 400) for _ in range(rng.choice((0, 1, 1, 2)))]
        yield Shape(decodes, tuple((rng.choice((0, 0, 160)), n) for n in lengths))


def make_plan(shape: Shape, page_size: int) -> Plan:
    """A real plan on pages of its own for each sequence, from page 0 on."""
    next_page = 0

    def sequence(length: int, computed: int) -> Sequence:
        nonlocal next_page
        number = -(-length // page_size)
        pages = list(range(next_page, next_page + number))
        next_page += number
        # What is sampled, and how, is what most requests ask for: temperature 1, a seed.
        request = Request("", [0] * length, Sampling(seed=0), 0.0)
        return Sequence(request, 0.0, pages=pages, num_computed=computed)

    decodes = tuple(sequence(context, context - 1) for context in shape.decodes)
    chunks = tuple(
        Chunk(sequence(start + length, start), start, length, True)
        for start, length in shape.chunks
    )
    return Plan(decodes, chunks, shape.work, planned_at=0.0, predicted_s=0.0)
