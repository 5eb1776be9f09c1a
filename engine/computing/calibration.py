"""Measures what iterations cost on this machine: real plans of many shapes, run by the executor.

The scheduler predicts how long an iteration takes from counts alone (engine/deciding/latency.py).
The coefficients of that are fitted to what is measured here before service begins, when no sequence
owns pages yet and all of them are scratch. What is measured is chosen to tell the coefficients
apart: few and many decodes, of short and of long contexts; prompts of many lengths, from their
beginning and from further on; and both together. Some more shapes, drawn at random as service has
them, are not fitted but held out: they tell how far the prediction is off.

The machine may be busy for a moment, and the time is limited. So every shape is measured again and
again, always the one that had least time so far, until the time is used up: cheap ones often and
costly ones seldom, and a busy moment falls on all alike. Of the durations of a shape the lower
quartile counts. Durations are seconds, lengths are tokens.
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
LARGEST_SHARE = 0.2  # the share of the time that one run of one shape may take
SMALL_TOKENS = 16  # iterations of at most so many tokens are measured at any price
HELD_OUT = 12  # shapes that judge a profile instead of making it
# The first run of a shape allocates memory, and may compile. It counts only where it takes more
# than this share of the time, which is then too short for another.
KEEP_FIRST = 0.01


class Computes(Protocol):
    """What is measured: an executor with its memory."""

    @property
    def num_pages(self) -> int: ...

    @property
    def page_size(self) -> int: ...

    def run(self, plan: Plan) -> list[Token]: ...


class Room(NamedTuple):
    """The most that an iteration may ask for."""

    context_len: int
    max_batch_size: int
    num_positions: int  # tokens that the memory holds


class Shape(NamedTuple):
    """What an iteration computes: `decodes` has the context length of each decode, `chunks` the
    (start, length) of each chunk of a prompt.
    """

    decodes: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()

    @property
    def work(self) -> Work:
        """The counts that the time of such an iteration is predicted from."""
        work = Work(len(self.decodes), sum(self.decodes))
        for start, length in self.chunks:
            work = add_chunk(work, start, length)
        return work

    def fits(self, room: Room, page_size: int) -> bool:
        """Whether such an iteration is within the room, each sequence on pages of its own."""
        lengths = [*self.decodes, *(start + length for start, length in self.chunks)]
        positions = sum(-(-n // page_size) * page_size for n in lengths)
        return (
            max(lengths) <= room.context_len
            and len(lengths) <= room.max_batch_size
            and positions <= room.num_positions
        )


@dataclass(slots=True)
class Measured:
    """A shape with a plan that is ready to run, and how long its runs took so far."""

    shape: Shape
    plan: Plan
    seconds: list[float] = field(default_factory=list)

    def run(self, executor: Computes) -> None:
        """Runs the plan once more, and notes how long it took."""
        started_at = time.perf_counter()
        executor.run(self.plan)
        self.seconds.append(time.perf_counter() - started_at)

    @property
    def sample(self) -> Sample:
        """The work of the shape with the lower quartile of its durations."""
        return Sample(self.shape.work, sorted(self.seconds)[len(self.seconds) // 4])


class Measurements(NamedTuple):
    """What calibration found."""

    samples: list[Sample]  # a profile is made of these
    held_out: list[Sample]  # and judged by these
    max_chunk: int  # the longest chunk among the samples, in tokens


def measure(
    executor: Computes, context_len: int, max_batch_size: int, seconds: float
) -> Measurements:
    """Measures iterations of up to `max_batch_size` sequences and contexts of up to `context_len`
    tokens. It takes about `seconds`, however slow the model: where they do not suffice, the largest
    shapes are left out.
    """
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
    """Measures these shapes, from small to large, as many as there is time for."""
    ends_at = time.perf_counter() + seconds
    ordered = sorted(shapes, key=lambda s: (s.work.num_tokens, s.work.prefill_pairs, s))
    measured: list[Measured] = []
    for shape in ordered:
        if measured and _is_too_large(shape, measured[-1], seconds, ends_at):
            break
        measured.append(Measured(shape, make_plan(shape, executor.page_size)))
        measured[-1].run(executor)
        if measured[-1].seconds[0] < KEEP_FIRST * seconds:
            measured[-1].seconds.clear()
            measured[-1].run(executor)
    while True:
        least = min(measured, key=lambda m: sum(m.seconds))
        is_done = len(least.seconds) >= MAX_REPEATS
        if is_done or time.perf_counter() + least.seconds[0] > ends_at:
            return measured
        least.run(executor)


def _is_too_large(shape: Shape, smaller: Measured, seconds: float, ends_at: float) -> bool:
    """Whether the first run of a shape would take too much of the time, judged by that of a smaller
    one. The smallest are run in any case, so that there is something to fit.
    """
    expected_s = smaller.seconds[-1] * shape.work.num_tokens / smaller.shape.work.num_tokens
    if shape.work.num_tokens <= SMALL_TOKENS:
        return False
    return expected_s > LARGEST_SHARE * seconds or time.perf_counter() + expected_s > ends_at


def _powers(low: int, high: int, factor: int = 2) -> Iterator[int]:
    """Yields low, low * factor, low * factor ** 2 and so on, and last `high`."""
    while low < high:
        yield low
        low *= factor
    yield high


def _shapes(room: Room) -> Iterator[Shape]:
    """Yields the shapes that a profile is fitted to, also such as do not fit into the room."""
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
    """Yields mixed iterations as service has them, the same ones on every machine."""
    rng = random.Random(20_24)
    for _ in range(4 * HELD_OUT):
        count = rng.randint(1, max(1, min(48, room.max_batch_size - 2)))
        decodes = tuple(rng.randint(8, 800) for _ in range(count))
        lengths = [rng.randint(1, 400) for _ in range(rng.choice((0, 1, 1, 2)))]
        yield Shape(decodes, tuple((rng.choice((0, 0, 160)), n) for n in lengths))


def make_plan(shape: Shape, page_size: int) -> Plan:
    """Makes a plan of this shape as the scheduler would, in which each sequence has pages of its
    own, from page 0 on.
    """
    next_page = 0

    def sequence(length: int, computed: int) -> Sequence:
        """Makes one of `length` known tokens of which so many are computed."""
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
