"""A token whose embedding is NaN, as in a broken checkpoint, spoils only sequences that have it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.computing.loading import load
from engine.computing.runner import ModelExecutor
from engine.deciding.plan import NOT_FINITE, Chunk
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import Saved, advance, make_plan, make_sequence

BAD, GOOD = 96, 95  # one such token, and one like any other
FORMATS = [("float32", "none"), ("bfloat16", "none"), ("float32", "int8")]
PAGES = range(4)  # of 4 tokens: those of the sequence with that token, then those of another


@pytest.fixture(params=FORMATS, ids="-".join)
def executor(saved: Callable[[str], Saved], request: pytest.FixtureRequest) -> ModelExecutor:
    dtype, quantize = request.param
    folder = saved("llama").folder
    made = load(folder, dtype=dtype, quantize=quantize, num_pages=64, page_size=4)
    made.model.embedding[BAD] = torch.nan
    return made


def compute(executor: ModelExecutor, sequences: list[Sequence], *cleared: int) -> list[int]:
    """One iteration for all: what has output decodes, the others are prefilled."""
    decodes = [s for s in sequences if s.output]
    chunks = [Chunk(s, 0, s.num_known, True) for s in sequences if not s.output]
    plan = make_plan(decodes, chunks, cleared)
    ids = [token.id for token in executor.run(plan)]
    advance(plan, ids)
    return ids


def others() -> list[Sequence]:
    """Some are computed together with others of their length, one is too long for that."""
    lengths = (3, 7, 8, 15)
    return [
        make_sequence(range(i, i + n), range(8 + 6 * i, 14 + 6 * i)) for i, n in enumerate(lengths)
    ]


def run(executor: ModelExecutor, token: int, *, clear: bool = True) -> tuple[list[int], list[int]]:
    """What the one sequence with that token samples, and what all the others do: the one that has
    its pages afterwards too, in the last of them a single token.
    """
    executor.kv.keys_and_values.zero_()
    company = others()
    one = make_sequence([*range(20, 30), token, *range(40, 45)], PAGES)
    own, *found = compute(executor, [one, *company])
    later = make_sequence(range(13), PAGES)
    found += compute(executor, [*company, later], *[PAGES[-1]] * clear)
    found += compute(executor, [*company, later])
    return [own], found


def test_who_shares_the_batch_and_who_has_the_pages_later_sample_as_ever(
    executor: ModelExecutor,
) -> None:
    (own,), found = run(executor, BAD)
    (other,), expected = run(executor, GOOD)
    assert own == NOT_FINITE != other
    assert found == expected
    assert NOT_FINITE not in found


def test_a_page_that_was_not_cleared_would_spoil_its_next_owner(executor: ModelExecutor) -> None:
    _, found = run(executor, BAD, clear=False)
    assert found.count(NOT_FINITE) == 1
    assert found[-1] == NOT_FINITE, "it decodes beside others: what is behind it is masked"


def test_clearing_leaves_all_other_pages_as_they_are(executor: ModelExecutor) -> None:
    memory = executor.kv.keys_and_values
    memory.fill_(1.0)
    executor.kv.clear((3, 7))
    empty = memory.view(*memory.shape[:2], -1, 4, memory.shape[-1]).sum((0, 1, 3, 4)) == 0
    assert empty.nonzero().flatten().tolist() == [3, 7]
