"""What was noted of every iteration in service, and the latency profile that it amounts to."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from engine.computing.fit import Sample, fit
from engine.deciding.latency import LatencyProfile, Segment
from engine.deciding.plan import Work

NOTES = "NIYAMA_BENCH_NOTES"  # names the file for the engine process
NORMAL = 1.4826  # standard deviations of a normal distribution in a median absolute deviation


class Note(NamedTuple):
    """What was noted of one iteration. Durations are seconds; of `actual_s`, the executor took
    `run_s`.
    """

    planned_at: float
    predicted_s: float
    actual_s: float
    run_s: float
    after_rest: bool  # before it there was nothing to compute
    num_decodes: int
    decode_context: int
    num_prefill: int
    prefill_context: int
    prefill_pairs: int
    num_chunks: int

    @property
    def work(self) -> Work:
        return Work(*self[5:])

    @property
    def error(self) -> float:
        return abs(self.actual_s / self.predicted_s - 1)


def read(path: Path) -> list[Note]:
    """Returns the notes of a file, one for each iteration."""
    return [Note(*json.loads(line)) for line in path.read_text().splitlines()]


def gaps(notes: Sequence[Note]) -> Iterator[float]:
    """Yields the seconds from the end of an iteration to the next plan, which go to commit,
    messages and loop. Where the engine rested in between, there is no such gap.
    """
    for before, after in itertools.pairwise(notes):
        if not after.after_rest:
            yield after.planned_at - before.planned_at - before.actual_s


class InService(NamedTuple):
    """A profile, and as `error` the standard deviation of actual over expected durations, without
    the outliers.
    """

    profile: LatencyProfile
    error: float


def in_service(name: str, notes: Sequence[Note], max_chunk: int) -> InService:
    """Fits a profile to what iterations took beside everything else that the machine does in
    service. An iteration lasts from plan to plan here: what lies between a commit and the next plan
    counts as part of it.
    """
    between_s = statistics.fmean(gaps(notes))
    samples = [Sample(note.work, note.actual_s + between_s) for note in notes]
    profile = _adding_up(fit(name, samples, max_chunk), samples)
    ratios = [sample.seconds / profile.seconds(sample.work) for sample in samples]
    middle = statistics.median(ratios)
    return InService(profile, NORMAL * statistics.median(abs(r - middle) for r in ratios))


def _adding_up(profile: LatencyProfile, samples: Sequence[Sample]) -> LatencyProfile:
    """Scales the profile so that its sum over the samples is theirs: a fit goes through the middle,
    but stalls count too where throughput is the question.
    """
    scale = sum(s.seconds for s in samples) / sum(profile.seconds(s.work) for s in samples)
    segments = tuple(Segment(s.up_to, *(scale * x for x in s[1:])) for s in profile.segments)
    return replace(profile, segments=segments)
