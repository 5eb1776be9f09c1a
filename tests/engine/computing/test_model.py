"""Logits against transformers, whatever the chunks, the company and the pages."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint.model_config import RopeConfig
from engine.computing.model import inverse_frequencies
from engine.deciding.plan import Chunk
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import (
    CHECKPOINTS,
    CONTEXT,
    TEXTS,
    Recorder,
    Saved,
    make_executor,
    make_plan,
    make_sequence,
)

PAGE = 4
TOLERANCE = 1e-4
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


class Schedule:
    """Runs texts through an executor in random iterations, comparing every sampled row.

    What a sequence "samples" is replaced by the next token of its text.
    """

    def __init__(self, executor: Recorder, saved: Saved, draw: random.Random) -> None:
        self._executor = executor
        self._saved = saved
        self._draw = draw
        self._free = list(range(executor.num_pages))
        draw.shuffle(self._free)
        self._text_of: dict[Sequence, int] = {}
        self.num_compared = 0

    def add(self, text: int, prompt_len: int) -> None:
        tokens = self._saved.texts[text].tolist()
        self._text_of[make_sequence(tokens[:prompt_len], ())] = text

    def run(self) -> None:
        while live := [s for s in self._text_of if s.num_computed < CONTEXT]:
            members = [s for s in live if self._draw.random() < 0.7] or live[:1]
            self._draw.shuffle(members)
            decodes = [s for s in members if s.num_uncomputed == 1 and s.output]
            chunks = [self._chunk(s) for s in members if s not in decodes]
            for sequence in decodes:
                self._grant(sequence, sequence.num_known)
            plan = make_plan(decodes, chunks)
            self._executor.run(plan)
            self._compare(plan.sampling)
            for chunk in chunks:
                if not chunk.samples:
                    chunk.sequence.prefill(chunk.length, 0.0)
            for sequence in plan.sampling:
                self._extend(sequence)

    def _chunk(self, sequence: Sequence) -> Chunk:
        length = self._draw.randint(1, sequence.num_uncomputed)
        self._grant(sequence, sequence.num_computed + length)
        samples = length == sequence.num_uncomputed
        return Chunk(sequence, sequence.num_computed, length, samples)

    def _grant(self, sequence: Sequence, num_tokens: int) -> None:
        while len(sequence.pages) * PAGE < num_tokens:
            sequence.pages.append(self._free.pop())

    def _compare(self, sampled: list[Sequence]) -> None:
        logits = self._executor.logits.cpu()
        assert len(logits) == len(sampled)
        for row, sequence in zip(logits, sampled, strict=True):
            expected = self._saved.logits[self._text_of[sequence], sequence.num_known - 1]
            torch.testing.assert_close(row, expected, atol=TOLERANCE, rtol=0)
            self.num_compared += 1

    def _extend(self, sequence: Sequence) -> None:
        text = self._saved.texts[self._text_of[sequence]].tolist()
        sequence.expect_token(0.0)
        sequence.take_token([*text, 0][sequence.num_computed], 0.0)
        if sequence.num_computed < CONTEXT and self._draw.random() < 0.05:
            self._free += sequence.pages  # everything is computed again
            sequence.pages.clear()
            sequence.preempt()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CHECKPOINTS)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prompts=st.lists(st.integers(1, CONTEXT), min_size=1, max_size=TEXTS),
    seed=st.integers(0, 2**32 - 1),
)
def test_logits_equal_transformers_for_any_split_and_company(
    name: str,
    device: str,
    saved: Callable[[str], Saved],
    prompts: list[int],
    seed: int,
) -> None:
    checkpoint = saved(name)
    num_pages = TEXTS * CONTEXT // PAGE
    executor = make_executor(checkpoint.folder, num_pages, PAGE, device)
    schedule = Schedule(executor, checkpoint, random.Random(seed))
    for text, prompt_len in enumerate(prompts):
        schedule.add(text, prompt_len)
    schedule.run()
    assert schedule.num_compared >= sum(CONTEXT - p + 1 for p in prompts)


def test_number_of_parameters_equals_transformers(saved: Callable[[str], Saved]) -> None:
    for name in CHECKPOINTS:
        checkpoint = saved(name)
        executor = make_executor(checkpoint.folder)
        assert executor.config.num_parameters == checkpoint.model.num_parameters()


def test_rope_scalings_change_the_frequencies_they_should() -> None:
    """Linear stretches all alike; llama3 keeps the fastest and stretches the slowest fully."""
    plain = inverse_frequencies(RopeConfig(theta=10000.0), 32)
    linear = inverse_frequencies(RopeConfig(10000.0, "linear", factor=4.0), 32)
    llama3 = inverse_frequencies(RopeConfig(10000.0, "llama3", 8.0, 1.0, 4.0, 64), 32)
    torch.testing.assert_close(linear, plain / 4)
    assert llama3[0] == plain[0]
    torch.testing.assert_close(llama3[-1], plain[-1] / 8)
    assert torch.all(llama3 <= plain)
