"""The executor: order of tokens, seeded output in company and after recomputation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.computing.runner import ModelExecutor
from engine.deciding.plan import Chunk
from engine.deciding.request import Sampling
from engine.deciding.sequence import Sequence
from tests.engine.computing.parts import (
    Recorder,
    Saved,
    advance,
    make_executor,
    make_plan,
    make_sequence,
)

PAGES_EACH = 8  # of 4 tokens
LENGTH = 30


@pytest.fixture
def executor(saved: Callable[[str], Saved]) -> Recorder:
    return make_executor(saved("qwen2").folder)


def numbered(count: int, **sampling: object) -> list[Sequence]:
    """Sequences with prompts of 3, 4, ... tokens, pages and seeds of their own."""
    return [
        make_sequence(
            [(7 * i + j) % 97 for j in range(3 + i)],
            range(i * PAGES_EACH, (i + 1) * PAGES_EACH),
            Sampling(**{"temperature": 0.9, "top_p": 0.9, "seed": i, **sampling}),  # type: ignore[arg-type] # any field
            f"r{i}",
        )
        for i in range(count)
    ]


def generate(executor: ModelExecutor, sequences: list[Sequence], until: int = LENGTH) -> None:
    """Prefills all at once, then decodes; each leaves when it knows `until` tokens."""
    while live := [s for s in sequences if s.num_known < until]:
        decodes = [s for s in live if s.num_uncomputed == 1 and s.output]
        chunks = [
            Chunk(s, s.num_computed, s.num_uncomputed, True) for s in live if s not in decodes
        ]
        plan = make_plan(decodes, chunks)
        advance(plan, [token.id for token in executor.run(plan)])


def outputs(sequences: list[Sequence]) -> list[list[int]]:
    return [s.output for s in sequences]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_output_is_the_same_alone_and_in_company(executor: Recorder, temperature: float) -> None:
    together = numbered(7, temperature=temperature)
    generate(executor, together)
    for alone, other in zip(numbered(7, temperature=temperature), together, strict=True):
        generate(executor, [alone])
        assert alone.output == other.output
    assert len({tuple(s.output[:10]) for s in together}) > 3


def test_output_is_the_same_after_preemption(executor: Recorder) -> None:
    steady, preempted = numbered(3), numbered(3)
    generate(executor, steady)
    generate(executor, preempted, until=15)
    preempted[1].pages.clear()
    preempted[1].preempt()
    preempted[1].pages.extend(range(40, 40 + PAGES_EACH))
    generate(executor, preempted)
    assert outputs(preempted) == outputs(steady)


def test_tokens_come_in_the_order_of_the_plan(executor: Recorder) -> None:
    """Rows are reordered by context inside: the longest decode, first there, is last here."""
    sequences = numbered(5, temperature=0.0)
    generate(executor, sequences, until=9)
    waiting = make_sequence(range(12), range(48, 56), name="waiting")
    plan = make_plan(sequences, [Chunk(waiting, 0, 5, False)])
    tokens = executor.run(plan)
    assert len(tokens) == 5
    assert [t.id for t in tokens] == executor.logits.argmax(1).tolist()
    for sequence, token in zip(sequences, tokens, strict=True):
        alone = make_plan([sequence])
        assert executor.run(alone) == [token]


def test_a_chunk_that_does_not_sample_yields_nothing_but_counts(executor: Recorder) -> None:
    whole, parts = make_sequence(range(20), range(5)), make_sequence(range(20), range(5, 10))
    (expected,) = executor.run(make_plan(chunks=[Chunk(whole, 0, 20, True)]))
    assert executor.run(make_plan(chunks=[Chunk(parts, 0, 11, False)])) == []
    assert executor.run(make_plan(chunks=[Chunk(parts, 11, 9, True)])) == [expected]


def test_logprobs_pass_through_the_executor(executor: Recorder) -> None:
    sequence = make_sequence(range(5), range(2), Sampling(temperature=0.0, logprobs=2))
    (token,) = executor.run(make_plan(chunks=[Chunk(sequence, 0, 5, True)]))
    own = torch.log_softmax(executor.logits[0], 0)
    assert token.logprob == pytest.approx(own.max().item(), abs=1e-5)
    assert token.top[0] == (token.id, token.logprob)


def test_warm_up_leaves_no_trace_in_what_is_computed_later(executor: Recorder) -> None:
    fresh, warmed = numbered(2), numbered(2)
    generate(executor, fresh)
    executor.warm_up()
    generate(executor, warmed)
    assert outputs(fresh) == outputs(warmed)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_decode_continues_with_a_token_that_is_still_in_flight(
    executor: Recorder, saved: Callable[[str], Saved], graphs: bool
) -> None:
    """Two iterations are launched before the first one's tokens are asked for; of the streams some
    sit the second out, one is new, and they stand in another order. By hand: each iteration is
    launched when the tokens before it are known.
    """
    sampling = {"frequency_penalty": 0.7, "repetition_penalty": 1.3, "logprobs": 2}
    expected, looked_ahead = numbered(6, **sampling), numbered(6, **sampling)
    again = make_executor(saved("qwen2").folder)
    if graphs:
        again.capture_decodes(8, 2 * LENGTH, lambda compute: compute, 1 << 30)
    for one, sequences in ((executor, expected), (again, looked_ahead)):
        generate(one, sequences[:5], until=12)
        generate(one, sequences[5:], until=9)
    first, second = [0, 1, 2, 3, 4], [3, 5, 0, 4]
    known = []
    for rows in (first, second):
        plan = make_plan([expected[row] for row in rows])
        tokens = executor.run(plan)
        advance(plan, [token.id for token in tokens])
        known.append(tokens)
    pending = [again.launch(make_plan([looked_ahead[row] for row in first]))]
    for row in first:
        looked_ahead[row].expect_token(0.0)
    pending.append(again.launch(make_plan([looked_ahead[row] for row in second])))
    found = [each.tokens() for each in pending]
    assert [[t.id for t in tokens] for tokens in found] == [[t.id for t in k] for k in known]
    for a, b in zip(found[1], known[1], strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
def test_a_launch_does_not_wait_for_the_device(saved: Callable[[str], Saved], graphs: bool) -> None:
    """Whatever its requests ask for. Torch raises where the host would wait."""
    executor = make_executor(saved("qwen2").folder, device="cuda")
    if graphs:
        executor.capture_decodes(8, 2 * LENGTH)
    asked: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"top_k": 5, "logprobs": 2},
        {"min_p": 0.1, "frequency_penalty": 0.5},
        {"top_p": 0.9, "min_tokens": 40, "stop_token_ids": frozenset({3, 4})},
    ]
    sequences = [numbered(i + 1, **sampling)[i] for i, sampling in enumerate(asked)]
    generate(executor, sequences, until=12)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = executor.launch(make_plan(sequences))
        for sequence in sequences:
            sequence.expect_token(0.0)
        chunk = Chunk(make_sequence(range(9), range(40, 43)), 0, 9, True)
        later = executor.launch(make_plan(sequences, [chunk], cleared=[42]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [len(pending.tokens()), len(later.tokens())] == [4, 5]
